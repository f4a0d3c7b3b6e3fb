"""From cross-attention maps to the mask of where the picture may change (Hertz et al. 2022, local blending).  Pure."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def token_attention(maps: Sequence[Tensor], tokens: Sequence[int], height: int, width: int) -> Tensor:
    """How much each place looks at the tokens: summed over tokens and sites, mean over heads.

    Args:
        maps: (B, H, N, M) each, N = height x width.
    Returns:
        (B, 1, height, width) float32; zero where `tokens` is empty.
    """
    total = sum(m[..., list(tokens)].float().sum(dim=-1).mean(dim=1) for m in maps)  # (B, N)
    return total.reshape(-1, 1, height, width)


def threshold(attention: Tensor, share: float) -> Tensor:
    """Places whose 3x3-max-pooled attention exceeds `share` of the picture's maximum.

    Args:
        attention: (B, 1, h, w), >= 0.
    Returns:
        (B, 1, h, w) bool, all False where there is no attention at all.
    """
    pooled = F.max_pool2d(attention, 3, stride=1, padding=1)
    return pooled > share * pooled.amax(dim=(2, 3), keepdim=True)


def resize(mask: Tensor, height: int, width: int) -> Tensor:
    """(B, 1, h, w) bool -> (B, 1, height, width) float32 in {0, 1}, by nearest neighbour."""
    return F.interpolate(mask.float(), size=(height, width))
