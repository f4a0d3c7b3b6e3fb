"""How far attention maps, or latents, are from those recorded, and the gradient of that.  Pure."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

DISTANCES: dict[str, Callable[..., Tensor]] = {"l1": F.l1_loss, "l2": F.mse_loss}


def mean_distance(current: Sequence[Tensor], reference: Sequence[Tensor], kind: str = "l1",
                  weight: Tensor | None = None) -> Tensor:
    """Mean of |A - A_ref| or its square over all entries of all maps (SAGE eq. 3), in float32.

    Args:
        current, reference: equally many tensors of pairwise equal shapes.
        kind: "l1" or "l2".
        weight: factor on the entries, broadcast to every map; what it leaves out still counts in the mean.
    Raises:
        ValueError: the counts or shapes differ.
    """
    if [t.shape for t in current] != [t.shape for t in reference]:
        raise ValueError(f"cannot compare {[tuple(t.shape) for t in current]} with "
                         f"{[tuple(t.shape) for t in reference]}")
    entries = sum(t.numel() for t in current)
    distance = DISTANCES[kind]

    def one(a: Tensor, b: Tensor) -> Tensor:
        if weight is None:
            return distance(a, b)
        return (distance(a, b, reduction="none") * weight).mean()

    return sum(one(a.float(), b.to(a.device).float()) * (a.numel() / entries)
               for a, b in zip(current, reference, strict=True))


def gradient(current: Sequence[Tensor], z: Tensor, loss: Callable[[Sequence[Tensor]], Tensor],
             largest: float = 1.0) -> tuple[Tensor, Tensor]:
    """A loss on tensors made from `z`, and its derivative with respect to `z`, both in float32.

    The derivatives of a mean over 42 million entries are below what float16 can hold, those of a mean square further
    still.  So they are taken at the compared tensors in float32, scaled there by a power of two, a picture at a time,
    until the greatest is about `largest`, and led back to `z`; then the scale is divided out.

    Args:
        current: (B, ...) each, of any float dtype, made from z with gradient.
        z: (B, ...).
        loss: `current` in float32 -> (B,), a picture's loss depending on its own entries only.
    Returns:
        (B,) and the shape of z.
    """
    leaves = [t.detach().float().requires_grad_() for t in current]
    losses = loss(leaves)
    slopes = torch.autograd.grad(losses.sum(), leaves)
    top = torch.stack([s.abs().flatten(1).amax(dim=1) for s in slopes]).amax(dim=0)  # (B,)
    scale = torch.exp2(-(top / largest).clamp(2.0**-100, 2.0**100).log2().ceil())
    (g,) = torch.autograd.grad(current, z, [(s * _beside(scale, s)).to(t.dtype)
                                            for s, t in zip(slopes, current, strict=True)])
    return losses.detach(), g.float() / _beside(scale, g)


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
