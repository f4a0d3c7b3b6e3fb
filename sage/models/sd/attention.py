"""Attention with its inside exposed: a `Site` is where guidance listens and rewrites.

    Attention(Q, K, V) = A V,  A = softmax(Q K^T / sqrt(d))          (Vaswani et al. 2017, eq. 1)

A map costs N x M numbers a head, so it is formed only where a forward hook asks for it; everywhere else the
fused kernel computes A V without it.  Who needs a map later, or its gradient, takes the queries and keys it is made of,
which are several times smaller.  Nothing here knows of guidance, time or prompts.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from sage.models.layers import Conv2d, GroupNorm, Linear
from sage.models.sites import Site

KeysValues = tuple[Tensor, Tensor]

# Up to this many entries a head, a map of the picture's own is no slower than the fused kernel on a CPU, and rounds as
# the maps it is compared with: the slope of |A - A_ref| hangs on the last bit where the two are nearly equal.
SMALL = 2**16


class Attention(nn.Module):
    """Multi-head attention with separate q, k, v projections, named as the checkpoints name them.

    Args:
        width: channels of the queries' side, divisible by `heads`.
        context_width: channels of the keys' side; `width` for self-attention.
    """

    def __init__(self, width: int, context_width: int, heads: int, site: Site):
        super().__init__()
        self.heads = heads
        self.to_q = Linear(width, width, bias=False)
        self.to_k = Linear(context_width, width, bias=False)
        self.to_v = Linear(context_width, width, bias=False)
        self.to_out = nn.ModuleList([Linear(width, width)])
        self.site = site

    def keys_values(self, context: Tensor) -> KeysValues:
        """(B, M, C') context -> keys and values, (B, H, M, D) each."""
        return self._heads(self.to_k(context)), self._heads(self.to_v(context))

    def forward(self, x: Tensor, context: KeysValues | None = None) -> Tensor:
        """(B, N, C) tokens, attending to `keys_values` of a context or to themselves -> (B, N, C)."""
        k, v = self.keys_values(x) if context is None else context
        site = self.site
        q, k, v = site.projected(self._heads(self.to_q(x)), k, v)
        if site.tapped:
            out = site.map(q, k).to(v.dtype) @ v
        elif context is None and q.device.type == "cpu" and q.shape[2] ** 2 <= SMALL:
            out = site.map.probabilities(q, k).to(v.dtype) @ v
        elif site.map.upcast:
            with torch.autocast(q.device.type, enabled=False):
                out = F.scaled_dot_product_attention(q.float(), k.float(), v.float()).to(v.dtype)
        else:
            out = F.scaled_dot_product_attention(q, k, v)
        return site.out(self.to_out[0](rearrange(out, "b h n d -> b n (h d)")))

    def _heads(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        return x.view(b, n, self.heads, c // self.heads).transpose(1, 2)  # (B, N, C) -> (B, H, N, D)


# What each cross-attention layer makes of the text: it depends on the prompt alone.
TextKeysValues = dict[Attention, KeysValues]


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

        def site(name: str, kind: str) -> Site:
            return Site(f"{path}.{name}", kind, level, place, heads, width // heads, upcast)

        self.norm1 = nn.LayerNorm(width)
        self.attn1 = Attention(width, width, heads, site("attn1", "self"))
        self.norm2 = nn.LayerNorm(width)
        self.attn2 = Attention(width, context_width, heads, site("attn2", "cross"))
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width)

    def forward(self, x: Tensor, text: TextKeysValues) -> Tensor:
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
        self.norm = GroupNorm(groups, width, eps=1e-6)
        self.proj_in = project(width, width)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(width, context_width, heads, f"{path}.transformer_blocks.{i}", level, place, upcast)
            for i in range(depth))
        self.proj_out = project(width, width)

    def forward(self, x: Tensor, text: TextKeysValues) -> Tensor:
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
