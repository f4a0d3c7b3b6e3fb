"""The encoder of T5 v1.1: token ids -> one embedding a token (Raffel et al. 1910.10683; Shazeer 2002.05202).

Pre-normalised by root mean square without a mean, attention without 1 / sqrt(d), its scores raised by a learned number
for each bucket of distances, the same in every layer.  Module names are the key names of the checkpoints.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sage.models.layers import Linear


@dataclass(frozen=True)
class T5Params:
    """What tells one encoder from another; the defaults are T5 v1.1 XXL.

    Attributes:
        head_width: numbers in a head, whatever `width`.
        buckets, max_distance: of the distances between tokens: half of the buckets for each direction, half of these
            for single distances, the rest for ever wider ranges up to `max_distance`.
    """

    width: int = 4096
    head_width: int = 64
    heads: int = 64
    mlp_width: int = 10240
    layers: int = 24
    vocabulary: int = 32128
    buckets: int = 32
    max_distance: int = 128
    eps: float = 1e-6


class T5Norm(nn.Module):
    """x / sqrt(mean x^2 + eps) times a weight, in float32."""

    def __init__(self, p: T5Params):
        super().__init__()
        self.eps, self.weight = p.eps, nn.Parameter(torch.ones(p.width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)


def buckets(params: T5Params, length: int) -> Tensor:
    """(N, N) the bucket of the distance from each token (row) to each other (column)."""
    distance = torch.arange(length) - torch.arange(length)[:, None]
    half = params.buckets // 2
    single = half // 2
    far = distance.abs().clamp(min=1).float()
    wide = single + (torch.log(far / single) / math.log(params.max_distance / single) * (half - single)).long()
    near = distance.abs() < single
    return (distance > 0) * half + torch.where(near, distance.abs(), wide.clamp(max=half - 1))


class T5Attention(nn.Module):
    def __init__(self, p: T5Params, biased: bool):
        super().__init__()
        self.heads = p.heads
        inner = p.heads * p.head_width
        self.q, self.k, self.v = (Linear(p.width, inner, bias=False) for _ in range(3))
        self.o = Linear(inner, p.width, bias=False)
        if biased:
            self.relative_attention_bias = nn.Embedding(p.buckets, p.heads)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), scale=1.0)
        return self.o(out.transpose(1, 2).flatten(2))


class T5SelfAttention(nn.Module):
    def __init__(self, p: T5Params, biased: bool):
        super().__init__()
        self.SelfAttention = T5Attention(p, biased)
        self.layer_norm = T5Norm(p)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        return x + self.SelfAttention(self.layer_norm(x), bias)


class GatedMLP(nn.Module):
    def __init__(self, p: T5Params):
        super().__init__()
        self.wi_0, self.wi_1 = Linear(p.width, p.mlp_width, bias=False), Linear(p.width, p.mlp_width, bias=False)
        self.wo = Linear(p.mlp_width, p.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.wo(F.gelu(self.wi_0(x), approximate="tanh") * self.wi_1(x))


class T5FeedForward(nn.Module):
    def __init__(self, p: T5Params):
        super().__init__()
        self.DenseReluDense = GatedMLP(p)
        self.layer_norm = T5Norm(p)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.DenseReluDense(self.layer_norm(x))


class T5Block(nn.Module):
    def __init__(self, p: T5Params, biased: bool):
        super().__init__()
        self.layer = nn.ModuleList([T5SelfAttention(p, biased), T5FeedForward(p)])

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        attention, feed_forward = self.layer
        return feed_forward(attention(x, bias))


class T5Stack(nn.Module):
    def __init__(self, p: T5Params):
        super().__init__()
        self.block = nn.ModuleList(T5Block(p, biased=i == 0) for i in range(p.layers))
        self.final_layer_norm = T5Norm(p)

    def forward(self, x: Tensor, bucket: Tensor) -> Tensor:
        first = self.get_submodule("block.0.layer.0.SelfAttention.relative_attention_bias")
        bias = first(bucket).permute(2, 0, 1)[None]  # (1, H, N, N)
        for block in self.block:
            x = block(x, bias)
        return self.final_layer_norm(x)


class T5Text(nn.Module):
    """Token ids -> text embedding."""

    def __init__(self, params: T5Params):
        super().__init__()
        self.params = params
        self.shared = nn.Embedding(params.vocabulary, params.width)
        self.encoder = T5Stack(params)

    def forward(self, ids: Tensor) -> Tensor:
        """(B, N) int64 token ids, padding among them -> (B, N, width): the last hidden state, normalised."""
        return self.encoder(self.shared(ids), buckets(self.params, ids.shape[1]).to(ids.device))
