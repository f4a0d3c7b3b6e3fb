"""How far attention maps, or latents, are from those recorded, and the gradient of that.  Pure.

Maps are made of queries and keys a site at a time, for as long as it takes to compare them:

    A = softmax(s Q K^T), L = mean d(A - A_ref)
    dL/dS = A (G - sum_m G A), G = d'(A - A_ref) / entries;   dL/dQ = s dL/dS K,  dL/dK = s dL/dS^T Q
"""

from collections.abc import Callable, Sequence
from functools import reduce
from operator import add

import torch
from torch import Tensor

from sage.models.sites import QueriesKeys

# Distance of a difference, and the distance's slope.
DISTANCES: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "l1": lambda d: (d.abs(), d.sign()),
    "l2": lambda d: (d.square(), 2 * d),
}

# Maps are compared in slices of about this many entries.
ENTRIES = 2**25


def latent_slopes(x: Tensor, reference: Tensor, kind: str = "l1") -> tuple[Tensor, list[Tensor]]:
    """Each picture's mean distance of latents (B, ...), (B,), and its derivative with respect to `x`, in a list."""
    value, slope = DISTANCES[kind](x.detach().float() - reference.to(x.device).float())
    return value.flatten(1).mean(dim=1), [slope / slope[0].numel()]


def map_slopes(current: Sequence[QueriesKeys], reference: Sequence[QueriesKeys], kind: str = "l1",
               weight: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
    """Mean of |A - A_ref| or its square over all entries of a picture's maps (SAGE eq. 3), and its derivatives.

    These are with respect to what the maps are made of.

    Args:
        current, reference: equally many sites.
        kind: "l1" or "l2".
        weight: (B, N, M) factor on the entries of every map; what it leaves out still counts in the mean.
    Returns:
        (B,), and float32 derivatives with respect to the queries and keys of each site of `current` in turn.
    Raises:
        ValueError: the counts or shapes differ.
    """
    _check([t.shape for site in current for t in site], [t.shape for site in reference for t in site])
    entries = sum(q[0, :, :, 0].numel() * k.shape[2] for q, k in current)
    losses, slopes = list[Tensor](), list[Tensor]()
    for now, then in zip(current, reference, strict=True):
        heads = max(1, ENTRIES // (len(now.keys) * now.queries.shape[2] * now.keys.shape[2]))
        parts = [_slopes(QueriesKeys(*a), QueriesKeys(*b), kind, weight) for a, b in zip(
            zip(*(t.detach().float().split(heads, dim=1) for t in now), strict=True),
            zip(*(t.to(now.queries.device, non_blocking=True).float().split(heads, dim=1) for t in then), strict=True),
            strict=True)]
        loss, *of_site = zip(*parts, strict=True)
        losses.append(reduce(add, loss) / entries)
        slopes += [torch.cat(part, dim=1) / entries for part in of_site]
    return reduce(add, losses), slopes


def square_slopes(current: Sequence[QueriesKeys],
                  reference: Sequence[QueriesKeys]) -> tuple[Tensor, list[Tensor]]:
    """Sum over sites of the mean over heads of sum (A - A_ref)^2 (Parmar et al. 2302.03027, code), and its derivatives.

    Args:
        current, reference: equally many sites.
    Returns:
        (B,), and a float32 derivative with respect to the queries of each site.
    """
    losses, slopes = list[Tensor](), list[Tensor]()
    for now, then in zip(current, reference, strict=True):
        mean, (slope, _) = map_slopes([now], [then], "l2")
        entries = now.queries.shape[2] * now.keys.shape[2]
        losses.append(entries * mean)
        slopes.append(entries * slope)
    return reduce(add, losses), slopes


def _slopes(now: QueriesKeys, then: QueriesKeys, kind: str, weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    a = now.map()
    value, g = DISTANCES[kind](a - then.map())
    if weight is not None:
        value, g = value * weight[:, None], g * weight[:, None]
    g = a * (g - (g * a).sum(dim=-1, keepdim=True)) * now.queries.shape[-1] ** -0.5  # at the scaled scores
    return value.sum(dim=(1, 2, 3)), g @ now.keys, g.transpose(-1, -2) @ now.queries


def _check(current: list[torch.Size], reference: list[torch.Size]) -> None:
    if current != reference:
        raise ValueError(f"cannot compare {[tuple(s) for s in current]} with {[tuple(s) for s in reference]}")


def gradient(current: Sequence[Tensor], slopes: Sequence[Tensor], z: Tensor, largest: float = 1.0) -> Tensor:
    """Lead a loss's derivatives with respect to tensors made from `z` back to `z`, in float32.

    The derivatives of a mean over 42 million entries are below what float16 can hold, those of a mean square further
    still.  So they are scaled by a power of two, a picture at a time, until the greatest is about `largest`, and led
    back to `z`; then the scale is divided out.

    Args:
        current: (B, ...) each, of any float dtype, made from z with gradient.
        slopes: float32, of the same shapes.
        z: (B, ...).
    """
    top = torch.stack([s.abs().flatten(1).amax(dim=1) for s in slopes]).amax(dim=0)  # (B,)
    scale = torch.exp2(-(top / largest).clamp(2.0**-100, 2.0**100).log2().ceil())
    (g,) = torch.autograd.grad(current, z, [(s * _beside(scale, s)).to(t.dtype)
                                            for s, t in zip(slopes, current, strict=True)])
    return g.float() / _beside(scale, g)


def limited(step: Tensor, most: float) -> Tensor:
    """A step (B, ...), each picture's shortened where its root mean square exceeds `most`; 0 is no limit.

    At single latents the maps of a network can depend so steeply on its input that a step a hundred times the usual
    one comes out, and nothing is left of the picture.
    """
    if most == 0:
        return step
    size = step.flatten(1).square().mean(dim=1).sqrt()
    return step * _beside((most / size.clamp(min=most)), step)


def _beside(scale: Tensor, t: Tensor) -> Tensor:
    return scale.reshape(-1, *[1] * (t.dim() - 1))
