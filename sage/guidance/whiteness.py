"""How far a prediction is from being white noise of unit variance (Parmar et al. 2302.03027, sec. 3.2).  Pure.

    L_ac = sum over channels, sizes and both sides of (mean of eps times eps shifted)^2
    L_kl = var + mean^2 - 1 - log var
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST = 8  # side from which on the noise is shrunk no further


def autocorrelation(eps: Tensor, shift: Callable[[int], int]) -> Tensor:
    """(B,): how alike (B, C, h, w) and itself shifted are, at half the size again and again.

    Args:
        shift: number of rows -> how far a channel of so many is shifted both ways; asked once for each size.
    """
    total = eps.new_zeros(len(eps))
    for channel in eps.split(1, dim=1):
        while True:
            by = shift(channel.shape[2])
            for side in (2, 3):
                total = total + (channel * channel.roll(by, side)).mean(dim=(1, 2, 3)).square()
            if min(channel.shape[2:]) <= SMALLEST:
                break
            channel = F.avg_pool2d(channel, 2)
    return total


def divergence(eps: Tensor) -> Tensor:
    """(B,): the Kullback-Leibler divergence of (B, C, h, w) from standard normal numbers, twice."""
    var, mean = torch.var_mean(eps, dim=(1, 2, 3))
    return var + mean.square() - 1 - (var + 1e-7).log()


def slope(loss: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The derivative (B, ...) of a loss (B,), a number a picture, with respect to `x`."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        (found,) = torch.autograd.grad(loss(x).sum(), x)
    return found
