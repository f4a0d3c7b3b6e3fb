"""Gaussian blur.  Pure."""

import torch
import torch.nn.functional as F
from torch import Tensor


def gaussian_blur(x: Tensor, taps: int, deviation: float) -> Tensor:
    """Every channel blurred on its own, edges mirrored.

    Args:
        x: (B, C, h, w), both sides above taps // 2.
        taps: an odd number of them in each direction.
        deviation: of the Gaussian, in places.
    """
    half = taps // 2
    places = torch.arange(-half, half + 1, dtype=torch.promote_types(x.dtype, torch.float32))
    weights = torch.exp(-0.5 * (places / deviation) ** 2)
    weights = (weights / weights.sum()).to(x)
    kernel = (weights[:, None] * weights).expand(x.shape[1], 1, taps, taps)
    return F.conv2d(F.pad(x, (half,) * 4, mode="reflect"), kernel, groups=x.shape[1])
