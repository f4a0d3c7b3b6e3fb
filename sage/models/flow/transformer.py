"""The transformer of FLUX.1: v_theta(z_t, t, text), the velocity eps - x0 of a rectified flow.

    z -> tokens of patch x patch latents;  text -> tokens;  t, guidance and the pooled text -> one vector
    double blocks   text and picture have weights of their own, and attend to both
    single blocks   one set of weights for [text; picture], attention and MLP side by side

Every block is modulated by the vector (Peebles & Xie 2212.09748, sec. 3.2): x + gate f(shift + (1 + scale) LN(x)).
Module names are the key names of the diffusers checkpoints.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from sage.models.flow.attention import JointAttention
from sage.models.layers import Linear
from sage.models.sd.unet import TimestepEmbedding, timestep_embedding
from sage.models.sites import Block, Projection, Sites, find_sites

TIME_WIDTH = 256  # of the features of a time
EPS = 1e-6


@dataclass(frozen=True)
class FluxParams:
    """What tells one transformer from another; the defaults are FLUX.1 dev.

    Attributes:
        channels: of the latents.
        patch: latents along each side of a token, a power of two.
        context_width, pooled_width: of the text's tokens, and of its pooled embedding.
        mlp_width: hidden width of the MLPs.
        axes: numbers of a head that say where a token is: in which picture, in which row, in which column; even, and
            all of the head together.
        theta: of the slowest rotation.
        qkv_bias: whether queries, keys and values of double blocks have a bias.
        guidance: whether guidance is an input.
    """

    channels: int = 16
    patch: int = 2
    width: int = 3072
    heads: int = 24
    mlp_width: int = 12288
    depth: int = 19
    depth_single: int = 38
    context_width: int = 4096
    pooled_width: int = 768
    axes: tuple[int, ...] = (16, 56, 56)
    theta: float = 10000.0
    qkv_bias: bool = True
    guidance: bool = True

    @property
    def token_width(self) -> int:
        """Numbers in a token of the picture."""
        return self.channels * self.patch**2

    @property
    def level(self) -> int:
        """Halvings from latents to tokens."""
        return self.patch.bit_length() - 1


# ---- positions


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """What must not be coarser than float32 is computed in, beside weights of this dtype."""
    return torch.promote_types(dtype, torch.float32)


def rotations(params: FluxParams, rows: int, columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """(rows * columns, D / 2) complex rotations e^(i p w_j) of the pairs of numbers of a head (Su et al. 2104.09864).

    w_j = theta^(-2 j / n) for the j-th pair of an axis of n numbers, in float64; p is 0 in the first axis, the row in
    the second and the column in the third.

    Args:
        dtype: of their parts.
    """
    places = torch.zeros(rows, columns, len(params.axes), dtype=torch.float64)
    places[..., 1] += torch.arange(rows)[:, None]
    places[..., 2] += torch.arange(columns)
    angles = [places[..., [axis]] * params.theta ** -(torch.arange(0, n, 2, dtype=torch.float64) / n)
              for axis, n in enumerate(params.axes)]
    angle = torch.cat(angles, dim=-1).flatten(0, 1)
    return torch.polar(torch.ones_like(angle), angle).to(torch.promote_types(dtype, torch.complex64))


def rotated(x: Tensor, rotation: Tensor) -> Tensor:
    """(B, H, N, D) with each pair (2 j, 2 j + 1) of the last dimension turned."""
    pairs = torch.view_as_complex(x.to(at_least_float32(x.dtype)).unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotation).flatten(-2).to(x.dtype)


class RMSNorm(nn.Module):
    """x / sqrt(mean x^2 + eps) times a weight, over the last dimension, in float32 or above."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        dtype = at_least_float32(x.dtype)
        return F.rms_norm(x.to(dtype), self.weight.shape, self.weight.to(dtype), EPS).to(x.dtype)


# ---- modulation


class Modulation(nn.Module):
    """Linear layer that makes `parts` vectors as wide as the tokens of the one that every block is given."""

    def __init__(self, width: int, parts: int):
        super().__init__()
        self.parts = parts
        self.linear = Linear(width, parts * width)

    def forward(self, vector: Tensor) -> Sequence[Tensor]:
        """(B, D) -> (B, 1, D) each."""
        return self.linear(F.silu(vector))[:, None].chunk(self.parts, dim=-1)


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """(1 + scale) LN(x) + shift."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=EPS), 1 + scale)


class Embeddings(nn.Module):
    """Time, guidance and the pooled text -> one vector."""

    def __init__(self, p: FluxParams):
        super().__init__()
        self.timestep_embedder = TimestepEmbedding(TIME_WIDTH, p.width)
        if p.guidance:
            self.guidance_embedder = TimestepEmbedding(TIME_WIDTH, p.width)
        self.text_embedder = TimestepEmbedding(p.pooled_width, p.width)

    def forward(self, t: Tensor, guidance: Tensor, pooled: Tensor) -> Tensor:
        """(B or 1,) times in [0, 1] and guidance, (B, pooled_width) -> (B, D)."""
        def features(x: Tensor) -> Tensor:
            return timestep_embedding(1000 * x, TIME_WIDTH, at_least_float32(pooled.dtype)).to(pooled.dtype)

        vector = self.timestep_embedder(features(t))
        if hasattr(self, "guidance_embedder"):
            vector = vector + self.guidance_embedder(features(guidance))
        return vector + self.text_embedder(pooled)


# ---- blocks


class Activation(nn.Module):
    """Linear layer and the GELU's approximation by tanh."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.proj = Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    """Width -> hidden -> width; index 1 of `net` is where the checkpoints keep a dropout without weights."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.net = nn.Sequential(Activation(width, hidden), nn.Identity(), Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)  # (B, N, D) -> (B, H, N, D / H)


class DoubleAttention(nn.Module):
    """Joint attention with weights of its own for the picture (to_*) and for the text (add_*)."""

    def __init__(self, p: FluxParams, path: str):
        super().__init__()
        self.heads, head = p.heads, p.width // p.heads
        self.norm_q, self.norm_k = RMSNorm(head), RMSNorm(head)
        self.to_q, self.to_k, self.to_v = (Linear(p.width, p.width, bias=p.qkv_bias) for _ in range(3))
        self.norm_added_q, self.norm_added_k = RMSNorm(head), RMSNorm(head)
        self.add_q_proj, self.add_k_proj, self.add_v_proj = (Linear(p.width, p.width, bias=p.qkv_bias)
                                                             for _ in range(3))
        self.to_out = nn.ModuleList([Linear(p.width, p.width)])
        self.to_add_out = Linear(p.width, p.width)
        self.joint = JointAttention(path, p.level, "double", p.heads, head)

    def forward(self, text: Tensor, image: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, D) and (B, N, D) tokens -> the same."""
        def heads(x: Tensor) -> Tensor:
            return _heads(x, self.heads)

        of_text = Projection(self.norm_added_q(heads(self.add_q_proj(text))),
                             self.norm_added_k(heads(self.add_k_proj(text))), heads(self.add_v_proj(text)))
        of_image = Projection(rotated(self.norm_q(heads(self.to_q(image))), rotation),
                              rotated(self.norm_k(heads(self.to_k(image))), rotation), heads(self.to_v(image)))
        text, image = self.joint(of_text, of_image)
        return self.to_add_out(text), self.to_out[0](image)


class DoubleBlock(nn.Module):
    """Joint attention, then an MLP for each of text and picture."""

    def __init__(self, p: FluxParams, path: str):
        super().__init__()
        self.norm1, self.norm1_context = Modulation(p.width, 6), Modulation(p.width, 6)
        self.attn = DoubleAttention(p, f"{path}.attn")
        self.ff, self.ff_context = FeedForward(p.width, p.mlp_width), FeedForward(p.width, p.mlp_width)

    def forward(self, text: Tensor, image: Tensor, vector: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, D) and (B, N, D) tokens, (B, D) -> tokens."""
        m, c = self.norm1(vector), self.norm1_context(vector)  # shift, scale, gate of attention; the same of the MLP
        to_text, to_image = self.attn(modulated(text, *c[:2]), modulated(image, *m[:2]), rotation)
        text, image = text + c[2] * to_text, image + m[2] * to_image
        text = text + c[5] * self.ff_context(modulated(text, *c[3:5]))
        return text, image + m[5] * self.ff(modulated(image, *m[3:5]))


class SingleAttention(nn.Module):
    """Joint attention with the same weights for text and picture."""

    def __init__(self, p: FluxParams, path: str):
        super().__init__()
        self.heads, head = p.heads, p.width // p.heads
        self.norm_q, self.norm_k = RMSNorm(head), RMSNorm(head)
        self.to_q, self.to_k, self.to_v = (Linear(p.width, p.width) for _ in range(3))
        self.joint = JointAttention(path, p.level, "single", p.heads, head)

    def forward(self, x: Tensor, text: int, rotation: Tensor) -> Tensor:
        """(B, T + N, D) tokens of which the first `text` are the text's -> the same."""
        q, k, v = self.norm_q(_heads(self.to_q(x), self.heads)), self.norm_k(_heads(self.to_k(x), self.heads)), (
            _heads(self.to_v(x), self.heads))
        of_text = Projection(q[:, :, :text], k[:, :, :text], v[:, :, :text])
        of_image = Projection(rotated(q[:, :, text:], rotation), rotated(k[:, :, text:], rotation), v[:, :, text:])
        return torch.cat(self.joint(of_text, of_image), dim=1)


class SingleBlock(nn.Module):
    """Attention and MLP side by side on [text; picture]."""

    def __init__(self, p: FluxParams, path: str):
        super().__init__()
        self.norm = Modulation(p.width, 3)
        self.attn = SingleAttention(p, f"{path}.attn")
        self.proj_mlp = Linear(p.width, p.mlp_width)
        self.proj_out = Linear(p.width + p.mlp_width, p.width)

    def forward(self, x: Tensor, text: int, vector: Tensor, rotation: Tensor) -> Tensor:
        """(B, T + N, D) tokens, (B, D) -> tokens."""
        shift, scale, gate = self.norm(vector)
        h = modulated(x, shift, scale)
        mlp = F.gelu(self.proj_mlp(h), approximate="tanh")
        return x + gate * self.proj_out(torch.cat([self.attn(h, text, rotation), mlp], dim=-1))


class FluxTransformer(nn.Module):
    """Predicts the velocity in latents, given the time and the text."""

    def __init__(self, params: FluxParams):
        super().__init__()
        p = self.params = params
        self.x_embedder = Linear(p.token_width, p.width)
        self.context_embedder = Linear(p.context_width, p.width)
        self.time_text_embed = Embeddings(p)
        self.transformer_blocks = nn.ModuleList(DoubleBlock(p, f"transformer_blocks.{i}") for i in range(p.depth))
        self.single_transformer_blocks = nn.ModuleList(SingleBlock(p, f"single_transformer_blocks.{i}")
                                                       for i in range(p.depth_single))
        self.norm_out = Modulation(p.width, 2)
        self.proj_out = Linear(p.width, p.token_width)
        self._sites = find_sites((*self.transformer_blocks, *self.single_transformer_blocks))

    def sites(self) -> Sites:
        """Two for every attention layer, of the picture and of the text, in the order of a forward pass."""
        return self._sites

    def blocks(self) -> tuple[Block, ...]:
        """Of each block attention and the layers of its MLPs; of double blocks the modulations."""
        level, both, found = self.params.level, ("text", "image"), list[Block]()
        for b in (*self.transformer_blocks, *self.single_transformer_blocks):
            if isinstance(b, DoubleBlock):
                found += [Block("modulation", level, b.norm1), Block("modulation", level, b.norm1_context),
                          Block("attention", level, b.attn, both, b.norm1_context),
                          Block("feedforward", level, b.ff_context, ("text",)), Block("feedforward", level, b.ff)]
            elif isinstance(b, SingleBlock):
                found += [Block("attention", level, b.attn, both), Block("feedforward", level, b.proj_mlp, both),
                          Block("feedforward", level, b.proj_out, both, b.norm)]
        return tuple(found)

    def positions(self, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        """`rotations` of the tokens of a picture."""
        return rotations(self.params, rows, columns, dtype)

    def forward(self, z: Tensor, t: Tensor | float, context: Tensor, pooled: Tensor,
                guidance: Tensor | float = 1.0, places: Tensor | None = None) -> Tensor:
        """Predict eps - x0 in `z`.

        Args:
            z: (B, C, h, w) latents, h and w multiples of the patch.
            t: time in [0, 1], a number or (B,): 0 is the picture, 1 noise.
            context: (B, T, context_width) text.
            pooled: (B, pooled_width), of the text as a whole.
            guidance: a number or (B,); without effect in networks that do not take it.
            places: (n,) int64, the tokens of the picture that are computed, counted row by row; default: all.
        Returns:
            (B, C, h, w), in the dtype of the weights; 0 where nothing was computed.
        """
        p, dtype = self.params, self.x_embedder.weight.dtype
        fine = at_least_float32(dtype)
        rows, columns = z.shape[2] // p.patch, z.shape[3] // p.patch
        tokens, rotation = rearrange(z, "b c (h p) (w q) -> b (h w) (c p q)", p=p.patch, q=p.patch), (
            self.positions(rows, columns, fine).to(z.device))
        if places is not None:
            tokens, rotation = tokens[:, places], rotation[places]
        image = self.x_embedder(tokens.to(dtype))
        text = self.context_embedder(context.to(dtype))
        t, guidance = (torch.as_tensor(x, dtype=fine, device=z.device).reshape(-1) for x in (t, guidance))
        vector = self.time_text_embed(t, guidance, pooled.to(dtype))
        length = text.shape[1]
        for block in self.transformer_blocks:
            text, image = block(text, image, vector, rotation)
        x = torch.cat([text, image], dim=1)
        for block in self.single_transformer_blocks:
            x = block(x, length, vector, rotation)
        scale, shift = self.norm_out(vector)
        tokens = self.proj_out(modulated(x[:, length:], shift, scale))
        if places is not None:
            tokens = tokens.new_zeros(len(z), rows * columns, p.token_width).index_copy(1, places, tokens)
        return rearrange(tokens, "b (h w) (c p q) -> b c (h p) (w q)", h=rows, p=p.patch, q=p.patch)
