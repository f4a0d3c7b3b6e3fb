"""The UNet of latent diffusion: eps_theta or v_theta (z_t, t, text) of Stable Diffusion 1.x, 2.x, XL and smaller kin.

Module names are the key names of the diffusers checkpoints, so loading needs no converter.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sage.models.layers import Conv2d, GroupNorm, Linear
from sage.models.sd.attention import SpatialTransformer, TextKeysValues, TransformerBlock
from sage.models.sites import Block, Feature, Sites, find_sites

SIZES = 6  # numbers that tell sizes: height and width of the original, top and left of the crop, height and width


@dataclass(frozen=True)
class UNetParams:
    """What tells one UNet from another; the defaults are Stable Diffusion 1.x.

    Attributes:
        attention: whether the down block at each level has attention; the up blocks mirror it.
        heads: attention heads at each level (what diffusers calls `attention_head_dim`).
        transformer_depth: transformer blocks in each place that has attention, the same everywhere or by level.
        upcast_attention: attention scores in float32 (SD 2.1).
        pooled_width, size_width: numbers of a prompt's pooled text, and features of each of the six numbers that tell
            sizes, both joined to the timestep (Podell et al. 2307.01952, sec. 2.2); 0 where neither is asked for.
    """

    in_channels: int = 4
    out_channels: int = 4
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    attention: tuple[bool, ...] = (True, True, True, False)
    layers_per_block: int = 2
    heads: tuple[int, ...] = (8, 8, 8, 8)
    transformer_depth: int | tuple[int, ...] = 1
    context_width: int = 768
    groups: int = 32
    norm_eps: float = 1e-5
    linear_projection: bool = False
    upcast_attention: bool = False
    pooled_width: int = field(default=0, metadata={"later": True})
    size_width: int = field(default=0, metadata={"later": True})

    @property
    def depths(self) -> tuple[int, ...]:
        """Transformer blocks at each level."""
        depth = self.transformer_depth
        return (depth,) * len(self.channels) if isinstance(depth, int) else depth

    @property
    def added_width(self) -> int:
        """Numbers that are joined to the timestep."""
        return self.pooled_width + SIZES * self.size_width


def timestep_embedding(t: Tensor, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """(B,) timesteps -> (B, width) [cos | sin] features of a dtype: f_j = 10000^(-j / (width / 2))."""
    half = width // 2
    f = torch.exp(-math.log(10000) * torch.arange(half, dtype=dtype, device=t.device) / half)
    angles = t.to(dtype)[:, None] * f[None]  # (B, width / 2)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimestepEmbedding(nn.Module):
    def __init__(self, width: int, out: int):
        super().__init__()
        self.linear_1 = Linear(width, out)
        self.linear_2 = Linear(out, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


class ResBlock(nn.Module):
    """Two 3x3 convolutions, the time embedding added between them, and a residual."""

    def __init__(self, c_in: int, c_out: int, time_width: int, p: UNetParams):
        super().__init__()
        self.norm1 = GroupNorm(p.groups, c_in, eps=p.norm_eps)
        self.conv1 = Conv2d(c_in, c_out, 3, padding=1)
        self.time_emb_proj = Linear(time_width, c_out)
        self.norm2 = GroupNorm(p.groups, c_out, eps=p.norm_eps)
        self.conv2 = Conv2d(c_out, c_out, 3, padding=1)
        if c_in != c_out:
            self.conv_shortcut = Conv2d(c_in, c_out, 1)
        self.feature = Feature()

    def forward(self, x: Tensor, time: "Time") -> Tensor:
        """(B, C, H, W) features -> (B, C', H, W)."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + time[self]
        h = self.feature(self.conv2(F.silu(self.norm2(h))))
        return h + (self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x)


# What each ResBlock adds, (B or 1, C', 1, 1): it depends on the timestep alone.
Time = dict[ResBlock, Tensor]


class Downsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class DownBlock(nn.Module):
    """ResBlocks, each followed by attention where the level has it; returns every feature map the up path skips to."""

    def __init__(self, c_in: int, c_out: int, time_width: int, attentions: Sequence[nn.Module], downsample: bool,
                 p: UNetParams):
        super().__init__()
        widths = [c_in] + [c_out] * (p.layers_per_block - 1)
        self.resnets = nn.ModuleList(ResBlock(w, c_out, time_width, p) for w in widths)
        if attentions:
            self.attentions = nn.ModuleList(attentions)
        if downsample:
            self.downsamplers = nn.ModuleList([Downsample(c_out)])

    def forward(self, x: Tensor, time: Time, text: TextKeysValues) -> tuple[Tensor, list[Tensor]]:
        skips = []
        for i, resnet in enumerate(self.resnets):
            x = resnet(x, time)
            if hasattr(self, "attentions"):
                x = self.attentions[i](x, text)
            skips.append(x)
        if hasattr(self, "downsamplers"):
            x = self.downsamplers[0](x)
            skips.append(x)
        return x, skips


class MidBlock(nn.Module):
    def __init__(self, channels: int, time_width: int, attention: nn.Module, p: UNetParams):
        super().__init__()
        self.attentions = nn.ModuleList([attention])
        self.resnets = nn.ModuleList(ResBlock(channels, channels, time_width, p) for _ in range(2))

    def forward(self, x: Tensor, time: Time, text: TextKeysValues) -> Tensor:
        x = self.resnets[0](x, time)
        return self.resnets[1](self.attentions[0](x, text), time)


class UpBlock(nn.Module):
    """As DownBlock, but each ResBlock also takes one skip of the down path, the latest first."""

    def __init__(self, widths: list[int], c_out: int, time_width: int, attentions: Sequence[nn.Module],
                 upsample: bool, p: UNetParams):
        super().__init__()
        self.resnets = nn.ModuleList(ResBlock(w, c_out, time_width, p) for w in widths)
        if attentions:
            self.attentions = nn.ModuleList(attentions)
        if upsample:
            self.upsamplers = nn.ModuleList([Upsample(c_out)])

    def forward(self, x: Tensor, skips: list[Tensor], time: Time, text: TextKeysValues) -> Tensor:
        for i, resnet in enumerate(self.resnets):
            x = resnet(torch.cat([x, skips.pop()], dim=1), time)
            if hasattr(self, "attentions"):
                x = self.attentions[i](x, text)
        return self.upsamplers[0](x) if hasattr(self, "upsamplers") else x


class Scale(nn.Module):
    """A down block, its up block, and what lies below them.

    It has no weights: the blocks keep the names that they have in the network.

    Args:
        down, up: the blocks.
        below: the next level, or the middle of the network.
    """

    def __init__(self, down: nn.Module, below: nn.Module, up: nn.Module):
        super().__init__()
        self.blocks = down, below, up  # a tuple, in which torch sees no modules

    def forward(self, x: Tensor, time: Time, text: TextKeysValues) -> Tensor:
        """(B, C, H, W) features from above, the first skip -> what is given back: (B, C', H, W), upsampled below."""
        down, below, up = self.blocks
        skips = [x]
        x, more = down(x, time, text)
        skips += more
        if isinstance(below, Scale):
            skips.pop()  # its own first
        return up(below(x, time, text), skips, time, text)


class UNet(nn.Module):
    """Predicts the noise (or v) in latents, given the timestep and the text (Rombach et al. 2022)."""

    def __init__(self, params: UNetParams):
        super().__init__()
        p = self.params = params
        last, time_width = len(p.channels) - 1, 4 * p.channels[0]

        def transformer(path: str, level: int) -> SpatialTransformer:
            return SpatialTransformer(
                p.channels[level], p.context_width, p.heads[level], p.depths[level], p.groups,
                p.linear_projection, path, level, path.partition("_")[0], p.upcast_attention)

        self.conv_in = Conv2d(p.in_channels, p.channels[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(p.channels[0], time_width)
        if p.added_width:
            self.add_embedding = TimestepEmbedding(p.added_width, time_width)

        self.down_blocks = nn.ModuleList()
        skip_widths = [p.channels[0]]
        for level, c in enumerate(p.channels):
            attentions = [transformer(f"down_blocks.{level}.attentions.{i}", level)
                          for i in range(p.layers_per_block)] if p.attention[level] else []
            self.down_blocks.append(DownBlock(skip_widths[-1], c, time_width, attentions, level < last, p))
            skip_widths += [c] * (p.layers_per_block + (level < last))

        self.mid_block = MidBlock(p.channels[-1], time_width, transformer("mid_block.attentions.0", last), p)

        self.up_blocks = nn.ModuleList()
        width = p.channels[-1]
        for block, level in enumerate(range(last, -1, -1)):
            c = p.channels[level]
            widths = []
            for _ in range(p.layers_per_block + 1):
                widths.append(width + skip_widths.pop())
                width = c
            attentions = [transformer(f"up_blocks.{block}.attentions.{i}", level)
                          for i in range(p.layers_per_block + 1)] if p.attention[level] else []
            self.up_blocks.append(UpBlock(widths, c, time_width, attentions, level > 0, p))

        scales: list[nn.Module] = [self.mid_block]
        for down, up in zip(reversed(self.down_blocks), self.up_blocks, strict=True):
            scales.insert(0, Scale(down, scales[0], up))
        self._scales = tuple(scales[:-1])  # by level; in a tuple, as above

        self.conv_norm_out = GroupNorm(p.groups, p.channels[0], eps=p.norm_eps)
        self.conv_out = Conv2d(p.channels[0], p.out_channels, 3, padding=1)
        self._sites = find_sites((*self.down_blocks, self.mid_block, *self.up_blocks))
        self._name_features()

    def _name_features(self) -> None:
        last = len(self.params.channels) - 1
        for name, block in self.named_modules():
            if isinstance(block, ResBlock):
                place, number = name.partition("_")[0], name.split(".")[1]
                level = {"down": int(number) if number.isdecimal() else 0, "mid": last}.get(place)
                block.feature.path, block.feature.place = name, place
                block.feature.level = last - int(number) if level is None else level

    @property
    def side_multiple(self) -> int:
        """Sides of the latents must be a multiple of this, so that every halving can be undone."""
        return 2 ** (len(self.params.channels) - 1)

    def sites(self) -> Sites:
        """Every attention layer of the network, in the order in which a forward pass visits them."""
        return self._sites

    def features(self) -> tuple[Feature, ...]:
        """What every residual block passes on, in the order of a forward pass."""
        blocks = (*self.down_blocks, self.mid_block, *self.up_blocks)
        return tuple(m for block in blocks for m in block.modules() if isinstance(m, Feature))

    def blocks(self) -> tuple[Block, ...]:
        """Every attention and feed-forward layer, and what lies below each level."""
        found = []
        for m in (m for block in (*self.down_blocks, self.mid_block, *self.up_blocks) for m in block.modules()):
            if isinstance(m, TransformerBlock):
                level = m.attn1.site.level
                found += [Block("attention", level, m.attn1), Block("attention", level, m.attn2),
                          Block("feedforward", level, m.ff)]
        return (*found, *(Block("deep", level, scale) for level, scale in enumerate(self._scales) if level))

    def time(self, t: Tensor | float, added: Tensor | None = None) -> Time:
        """What the network makes of timesteps in [0, 1000), a number or (B,), and of what is `added` to them."""
        weight = self.time_embedding.linear_1.weight
        t = torch.as_tensor(t, device=weight.device).reshape(-1)
        features = timestep_embedding(t, self.params.channels[0], torch.promote_types(weight.dtype, torch.float32))
        embedding = self.time_embedding(features.to(weight.dtype))
        embedding = F.silu(embedding if added is None else embedding + added)
        return {m: m.time_emb_proj(embedding)[:, :, None, None] for m in self.modules() if isinstance(m, ResBlock)}

    def added(self, pooled: Tensor, sizes: Tensor) -> Tensor:
        """What is added to the timestep: of (B, pooled_width) text, and of (B or 1, 6) sizes in pixels."""
        features = timestep_embedding(sizes.flatten(), self.params.size_width).reshape(len(sizes), -1)
        joined = torch.cat([pooled, features.expand(len(pooled), -1).to(pooled)], dim=-1)
        return self.add_embedding(joined.to(self.add_embedding.linear_1.weight.dtype))

    def text(self, context: Tensor) -> TextKeysValues:
        """What the network makes of (B, M, context_width) embedded prompts."""
        return {m.attn2: m.attn2.keys_values(context) for m in self.modules() if isinstance(m, TransformerBlock)}

    def forward(self, z: Tensor, t: Tensor | float | Time, context: Tensor | TextKeysValues,
                added: Tensor | None = None) -> Tensor:
        """Predict the noise, or v, in `z`.

        Args:
            z: (B, 4, h, w) latents, h and w multiples of `side_multiple`.
            t: timestep in [0, 1000), a number or (B,); or `time` of it, to be used again.
            context: (B, M, context_width) text embedding; or `text` of it, to be used again.
            added: (B, width) what `added` gives, for networks that are told sizes; not with `time`, which has it.
        Returns:
            (B, 4, h, w), in the dtype the last convolution gives.
        """
        time = t if isinstance(t, dict) else self.time(t, added)
        text = context if isinstance(context, dict) else self.text(context)
        x = self._scales[0](self.conv_in(z), time, text)
        return self.conv_out(F.silu(self.conv_norm_out(x)))
