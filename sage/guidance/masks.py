"""From cross-attention maps to the mask of where the picture may change (Hertz et al. 2022, local blending).  Pure."""

from collections.abc import Sequence
from functools import reduce
from operator import add

import torch.nn.functional as F
from torch import Tensor


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
