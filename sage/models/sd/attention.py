"""Attention with its probability maps exposed: `AttentionMap` is where guidance listens and rewrites.

    Attention(Q, K, V) = A V,  A = softmax(Q K^T / sqrt(d))          (Vaswani et al. 2017, eq. 1)

A map costs N x M numbers a head, so it is formed only where a forward hook asks for it; everywhere else the
fused kernel computes A V without it.  Who needs a map later, or its gradient, takes the queries and keys it is made of,
which are several times smaller.  Nothing here knows of guidance, time or prompts.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from sage.models.layers import Conv2d, Linear

KeysValues = tuple[Tensor, Tensor]

# Up to this many entries a head, a map of the picture's own is no slower than the fused kernel on a CPU, and rounds as
# the maps it is compared with: the slope of |A - A_ref| hangs on the last bit where the two are nearly equal.
SMALL = 2**16


class QueriesKeys(NamedTuple):
    """What a map is made of: (B, H, N, D) queries and (B, H, M, D) keys."""

    queries: Tensor
    keys: Tensor

    def map(self) -> Tensor:
        """(B, H, N, M) float32 probabilities."""
        q, k = self.queries.float(), self.keys.float()
        return (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(dim=-1)


class Projected(nn.Module):
    """Hands queries and keys through: the place to listen to them."""

    def forward(self, q: Tensor, k: Tensor) -> QueriesKeys:
        return QueriesKeys(q, k)


class AttentionMap(nn.Module):
    """The probabilities softmax(Q K^T / sqrt(d)) of one attention layer: a parameter-free module to hook.

    A site is chosen by these attributes, never by counting tokens, so that pictures need not be square.

    Attributes:
        path: the layer's name in the UNet, e.g. "down_blocks.1.attentions.0.transformer_blocks.0.attn1".
        kind: "self" or "cross".
        level: how often the latents were halved before this layer, 0 at full latent resolution.
        place: "down", "mid" or "up".
        upcast: form the scores in float32, whatever the dtype of q and k (SD 2.1 overflows in float16).
        projected: where queries and keys pass, in every forward pass; a hook on it costs nothing and changes nothing.
    """

    def __init__(self, path: str, kind: str, level: int, place: str, upcast: bool = False):
        super().__init__()
        self.path, self.kind, self.level, self.place, self.upcast = path, kind, level, place, upcast
        self.projected = Projected()

    @property
    def tapped(self) -> bool:
        """Whether a hook wants this map: the one place where the two paths of `Attention` part."""
        return bool(self._forward_hooks)

    def forward(self, q: Tensor, k: Tensor) -> Tensor:
        return self.probabilities(q, k)

    def probabilities(self, q: Tensor, k: Tensor) -> Tensor:
        """(B, H, N, D) queries and (B, H, M, D) keys -> (B, H, N, M) probabilities, in the dtype of q."""
        dtype = q.dtype
        if self.upcast:
            with torch.autocast(q.device.type, enabled=False):
                scores = q.float() @ k.float().transpose(-1, -2) * q.shape[-1] ** -0.5
        else:
            scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        return scores.softmax(dim=-1).to(dtype)

    def extra_repr(self) -> str:
        return f"{self.path}, {self.kind}, level {self.level}"


class Attention(nn.Module):
    """Multi-head attention with separate q, k, v projections, named as the checkpoints name them.

    Args:
        width: channels of the queries' side, divisible by `heads`.
        context_width: channels of the keys' side; `width` for self-attention.
    """

    def __init__(self, width: int, context_width: int, heads: int, map: AttentionMap):
        super().__init__()
        self.heads = heads
        self.to_q = Linear(width, width, bias=False)
        self.to_k = Linear(context_width, width, bias=False)
        self.to_v = Linear(context_width, width, bias=False)
        self.to_out = nn.ModuleList([Linear(width, width)])
        self.map = map

    def keys_values(self, context: Tensor) -> KeysValues:
        """(B, M, C') context -> keys and values, (B, H, M, D) each."""
        return self._heads(self.to_k(context)), self._heads(self.to_v(context))

    def forward(self, x: Tensor, context: KeysValues | None = None) -> Tensor:
        """(B, N, C) tokens, attending to `keys_values` of a context or to themselves -> (B, N, C)."""
        k, v = self.keys_values(x) if context is None else context
        q, k = self.map.projected(self._heads(self.to_q(x)), k)
        if self.map.tapped:
            out = self.map(q, k).to(v.dtype) @ v
        elif context is None and q.device.type == "cpu" and q.shape[2] ** 2 <= SMALL:
            out = self.map.probabilities(q, k).to(v.dtype) @ v
        elif self.map.upcast:
            with torch.autocast(q.device.type, enabled=False):
                out = F.scaled_dot_product_attention(q.float(), k.float(), v.float()).to(v.dtype)
        else:
            out = F.scaled_dot_product_attention(q, k, v)
        return self.to_out[0](rearrange(out, "b h n d -> b n (h d)"))

    def _heads(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        return x.view(b, n, self.heads, c // self.heads).transpose(1, 2)  # (B, N, C) -> (B, H, N, D)


# What each cross-attention layer makes of the text: it depends on the prompt alone.
Text = dict[Attention, KeysValues]


class GEGLU(nn.Module):
    """Linear layer gated by the exact GELU of its second half (Shazeer 2020)."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.proj = Linear(width, 2 * out)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """Width -> 4 x width -> width; index 1 of `net` is where the checkpoints keep a dropout without weights."""

    def __init__(self, width: int):
        super().__init__()
        self.net = nn.Sequential(GEGLU(width, 4 * width), nn.Identity(), Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention and feed-forward, each pre-normalised with a residual around it."""

    def __init__(self, width: int, context_width: int, heads: int, path: str, level: int, place: str, upcast: bool):
        super().__init__()

        def site(name: str, kind: str) -> AttentionMap:
            return AttentionMap(f"{path}.{name}", kind, level, place, upcast)

        self.norm1 = nn.LayerNorm(width)
        self.attn1 = Attention(width, width, heads, site("attn1", "self"))
        self.norm2 = nn.LayerNorm(width)
        self.attn2 = Attention(width, context_width, heads, site("attn2", "cross"))
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width)

    def forward(self, x: Tensor, text: Text) -> Tensor:
        """(B, N, C) image tokens -> (B, N, C)."""
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), text[self.attn2])
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Transformer blocks over the pixels of a feature map, with a residual around all of them.

    `linear_projection` tells SD 2.x (linear, on tokens) from SD 1.x (1x1 convolution, on pixels).
    """

    def __init__(self, width: int, context_width: int, heads: int, depth: int, groups: int,
                 linear_projection: bool, path: str, level: int, place: str, upcast: bool):
        super().__init__()
        self.linear_projection = linear_projection
        project = Linear if linear_projection else (lambda i, o: Conv2d(i, o, 1))
        self.norm = nn.GroupNorm(groups, width, eps=1e-6)
        self.proj_in = project(width, width)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(width, context_width, heads, f"{path}.transformer_blocks.{i}", level, place, upcast)
            for i in range(depth))
        self.proj_out = project(width, width)

    def forward(self, x: Tensor, text: Text) -> Tensor:
        """(B, C, H, W) features -> (B, C, H, W)."""
        height, residual = x.shape[-2], x
        to_tokens, to_pixels = "b c h w -> b (h w) c", "b (h w) c -> b c h w"
        x = self.norm(x)
        x = self.proj_in(rearrange(x, to_tokens)) if self.linear_projection else rearrange(self.proj_in(x), to_tokens)
        for block in self.transformer_blocks:
            x = block(x, text)
        if self.linear_projection:
            return rearrange(self.proj_out(x), to_pixels, h=height) + residual
        return self.proj_out(rearrange(x, to_pixels, h=height)) + residual
