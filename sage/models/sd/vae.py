"""The autoencoder of latent diffusion: pictures in [-1, 1] <-> latents of about unit variance.

The scale between the encoder's numbers and the diffusion's latents lives inside; nobody else needs to know it.
"""

from dataclasses import dataclass, field
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sage.models.layers import Conv2d, GroupNorm, Linear
from sage.models.sd.tiles import OVERLAP, SIDE, by_tiles
from sage.models.sd.unet import Upsample


@dataclass(frozen=True)
class VAEParams:
    """What tells one autoencoder from another; the defaults are those of every Stable Diffusion 1.x and 2.x.

    Attributes:
        scaling, shift: the diffusion's latents are (z - shift) scaling.
        quant_convs: a 1x1 convolution after the encoder and before the decoder.
        upcast: it overflows in float16, and works in float32 there, as that of XL.
    """

    channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    latent_channels: int = 4
    groups: int = 32
    scaling: float = 0.18215
    shift: float = field(default=0.0, metadata={"later": True})
    quant_convs: bool = field(default=True, metadata={"later": True})
    upcast: bool = field(default=False, metadata={"later": True})

    def dtype(self, wanted: torch.dtype) -> torch.dtype:
        """What it works in where the other networks do so in `wanted`."""
        return torch.float32 if self.upcast and wanted == torch.float16 else wanted


class VAEResBlock(nn.Module):
    def __init__(self, c_in: int, c_out: int, groups: int):
        super().__init__()
        self.norm1 = GroupNorm(groups, c_in, eps=1e-6)
        self.conv1 = Conv2d(c_in, c_out, 3, padding=1)
        self.norm2 = GroupNorm(groups, c_out, eps=1e-6)
        self.conv2 = Conv2d(c_out, c_out, 3, padding=1)
        if c_in != c_out:
            self.conv_shortcut = Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x)


class VAEAttention(nn.Module):
    """One-head self-attention over the pixels, with a residual."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.group_norm = GroupNorm(groups, channels, eps=1e-6)
        self.to_q = Linear(channels, channels)
        self.to_k = Linear(channels, channels)
        self.to_v = Linear(channels, channels)
        self.to_out = nn.ModuleList([Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)[:, None]  # (B, 1, H W, C)
        out = F.scaled_dot_product_attention(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens))
        return x + self.to_out[0](out)[:, 0].transpose(1, 2).reshape(x.shape)


class VAEDownsample(nn.Module):
    """Stride-2 convolution padded on the right and bottom only, as the checkpoints were trained."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class VAEBlock(nn.Module):
    """ResBlocks at one resolution, then the change of resolution if there is one."""

    def __init__(self, c_in: int, c_out: int, layers: int, groups: int, resample: str | None):
        super().__init__()
        self.resnets = nn.ModuleList(VAEResBlock(c_in if i == 0 else c_out, c_out, groups) for i in range(layers))
        if resample == "down":
            self.downsamplers = nn.ModuleList([VAEDownsample(c_out)])
        elif resample == "up":
            self.upsamplers = nn.ModuleList([Upsample(c_out)])

    def forward(self, x: Tensor) -> Tensor:
        for layers in self.children():
            assert isinstance(layers, nn.ModuleList)
            for layer in layers:
                x = layer(x)
        return x


class VAEMidBlock(nn.Module):
    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.attentions = nn.ModuleList([VAEAttention(channels, groups)])
        self.resnets = nn.ModuleList(VAEResBlock(channels, channels, groups) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class Encoder(nn.Module):
    def __init__(self, p: VAEParams):
        super().__init__()
        c, last = p.channels, len(p.channels) - 1
        self.conv_in = Conv2d(3, c[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            VAEBlock(c[max(i - 1, 0)], c[i], p.layers_per_block, p.groups, "down" if i < last else None)
            for i in range(len(c)))
        self.mid_block = VAEMidBlock(c[-1], p.groups)
        self.conv_norm_out = GroupNorm(p.groups, c[-1], eps=1e-6)
        self.conv_out = Conv2d(c[-1], 2 * p.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    def __init__(self, p: VAEParams):
        super().__init__()
        c, last = p.channels[::-1], len(p.channels) - 1
        self.conv_in = Conv2d(p.latent_channels, c[0], 3, padding=1)
        self.mid_block = VAEMidBlock(c[0], p.groups)
        self.up_blocks = nn.ModuleList(
            VAEBlock(c[max(i - 1, 0)], c[i], p.layers_per_block + 1, p.groups, "up" if i < last else None)
            for i in range(len(c)))
        self.conv_norm_out = GroupNorm(p.groups, c[-1], eps=1e-6)
        self.conv_out = Conv2d(c[-1], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        z = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            z = block(z)
        return self.conv_out(F.silu(self.conv_norm_out(z)))


class VAE(nn.Module):
    """Pictures <-> latents; a diagonal Gaussian posterior of which the mean is used unless a sample is asked for."""

    def __init__(self, params: VAEParams):
        super().__init__()
        self.params = params
        self.encoder = Encoder(params)
        self.decoder = Decoder(params)
        if params.quant_convs:
            self.quant_conv = Conv2d(2 * params.latent_channels, 2 * params.latent_channels, 1)
            self.post_quant_conv = Conv2d(params.latent_channels, params.latent_channels, 1)

    @property
    def factor(self) -> int:
        """Pixels per latent, along each side."""
        return 2 ** (len(self.params.channels) - 1)

    def posterior(self, x: Tensor, tiled: bool = False) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) in [-1, 1] -> mean and log-variance, each (B, C, H / factor, W / factor), unscaled."""
        def moments(x: Tensor) -> Tensor:
            m = self.encoder(x)
            return self.quant_conv(m) if self.params.quant_convs else m

        m = by_tiles(moments, x, SIDE, OVERLAP, Fraction(1, self.factor)) if tiled else moments(x)
        mean, logvar = m.chunk(2, dim=1)
        return mean, logvar.clamp(-30.0, 20.0)

    def encode(self, x: Tensor, generator: torch.Generator | None = None, tiled: bool = False) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> scaled latents: the mean, or a sample when a CPU `generator` is given.

        Args:
            tiled: a tile at a time, in less memory and a little otherwise; so in `decode`.
        """
        mean, logvar = self.posterior(x, tiled)
        if generator is not None:
            noise = torch.randn(mean.shape, generator=generator).to(mean)
            mean = mean + torch.exp(0.5 * logvar) * noise
        return (mean - self.params.shift) * self.params.scaling

    def decode(self, z: Tensor, tiled: bool = False) -> Tensor:
        """Scaled latents (B, C, h, w) -> (B, 3, h * factor, w * factor), about [-1, 1], not clamped."""
        def pixels(z: Tensor) -> Tensor:
            return self.decoder(self.post_quant_conv(z) if self.params.quant_convs else z)

        z = z / self.params.scaling + self.params.shift
        if not tiled:
            return pixels(z)
        return by_tiles(pixels, z, SIDE // self.factor, OVERLAP // self.factor, Fraction(self.factor))
