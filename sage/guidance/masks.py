"""From cross-attention maps to the mask of where the picture may change (Hertz et al. 2022, local blending).  Pure.

Beside them what fills a hole from around it.
"""

from collections.abc import Sequence
from functools import reduce
from operator import add

import torch
import torch.nn.functional as F
from torch import Tensor

SWEEPS = 32  # of relaxation at each scale


def token_attention(maps: Sequence[Tensor], tokens: Tensor, height: int, width: int) -> Tensor:
    """How much each place looks at the chosen tokens: summed over tokens and sites, mean over heads.

    Args:
        maps: (B, H, N, M) each, N = height x width.
        tokens: (B, M) in {0, 1}.
    Returns:
        (B, 1, height, width) float32; zero where no token is chosen.
    """
    total = reduce(add, ((m.float().mean(dim=1) * tokens[:, None]).sum(dim=-1) for m in maps))  # (B, N)
    return total.reshape(-1, 1, height, width)


def threshold(attention: Tensor, share: float, pooled: bool = True) -> Tensor:
    """Places whose attention exceeds `share` of the picture's maximum.

    Args:
        attention: (B, 1, h, w), >= 0.
        pooled: take the greatest of the 3x3 places around each.
    Returns:
        (B, 1, h, w) bool, all False where there is no attention at all.
    """
    if pooled:
        attention = F.max_pool2d(attention, 3, stride=1, padding=1)
    return attention / attention.amax(dim=(2, 3), keepdim=True) > share  # 0 / 0 is not greater


def upper(x: Tensor, share: float) -> Tensor:
    """Places (B, 1, h, w) bool where `x` (B, 1, h, w) is at least the picture's quantile `share`."""
    return x >= x.flatten(1).quantile(share, dim=1)[:, None, None, None]


def dilated(mask: Tensor, margin: int) -> Tensor:
    """`mask` (B, C, h, w) float in {0, 1}, each channel's places grown by `margin` to all sides."""
    return F.max_pool2d(mask, 2 * margin + 1, stride=1, padding=margin) if margin else mask


def attended(maps: Tensor) -> Tensor:
    """Places that are looked at more than the mean place is (Hong et al. 2210.00939).

    Args:
        maps: (B, H, N, N) float32 self-attention.
    Returns:
        (B, N) bool.
    """
    return maps.mean(dim=1).sum(dim=1) > 1  # each query has 1 to give, so that 1 is the mean


def resize(mask: Tensor, height: int, width: int) -> Tensor:
    """(B, 1, h, w) bool -> (B, 1, height, width) float32 in {0, 1}, by nearest neighbour."""
    return F.interpolate(mask.float(), size=(height, width))


def harmonic(x: Tensor, hole: Tensor) -> Tensor:
    """`x` with each place of a hole the mean of its four neighbours: Laplace's equation, relaxed from coarse to fine.

    Args:
        x: (B, C, h, w).
        hole: (B, 1, h, w) bool; where it is everything there is nothing to go by, and zeros are left.
    """
    if not hole.any():
        return x
    if max(x.shape[-2:]) == 1:
        return torch.where(hole, 0.0, x)
    known = (~hole).to(x)
    weight = F.avg_pool2d(known, 2, ceil_mode=True)
    coarse = F.avg_pool2d(x * known, 2, ceil_mode=True) / weight.clamp_min(1e-6)
    guess = F.interpolate(harmonic(coarse, weight == 0), size=x.shape[-2:], mode="bilinear")
    for _ in range(SWEEPS):
        x = torch.where(hole, guess, x)
        around = F.pad(x, (1, 1, 1, 1), mode="replicate")
        guess = (around[..., 1:-1, :-2] + around[..., 1:-1, 2:] + around[..., :-2, 1:-1] + around[..., 2:, 1:-1]) / 4
    return torch.where(hole, guess, x)
