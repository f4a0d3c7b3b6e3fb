"""Proximal maps: what is left of guidance when the small in it is taken for noise (Han et al. 2306.05414).  Pure."""

import torch
from torch import Tensor


def proximal(delta: Tensor, kappa: Tensor | float, kind: str = "soft") -> Tensor:
    """`delta` with its small entries taken out.

        soft   sign(delta) max(|delta| - kappa, 0)     of the l1 norm; what the original code calls "l0"
        hard   delta [|delta| > kappa]                 of the l0 norm
        l1     the original's option of that name: soft, and kappa taken off again by two comparisons one after the
               other, so that entries between -kappa and 0 change their sign

    Args:
        kappa: >= 0, to be broadcast.
    """
    if kind == "hard":
        return delta * (delta.abs() > kappa)
    soft = delta.sign() * (delta.abs() - kappa).clamp(min=0)
    if kind == "soft":
        return soft
    lowered = torch.where(soft > 0, soft - kappa, soft)
    return torch.where(lowered < 0, lowered + kappa, lowered)
