"""How far attention maps, or latents, are from those recorded, and the gradient of it.  Pure."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Distance = Callable[[Tensor, Tensor], Tensor]
DISTANCES: dict[str, Distance] = {"l1": F.l1_loss, "l2": F.mse_loss}

# The gradient of a mean over 42 million entries is below what float16 can hold; scaled, it passes through.
UNDERFLOW_SCALE = 2.0**16


def mean_distance(current: Sequence[Tensor], reference: Sequence[Tensor], kind: str = "l1") -> Tensor:
    """Mean of |A - A_ref| or its square over all entries of all maps (SAGE eq. 3), in float32.

    Args:
        current, reference: equally many tensors of pairwise equal shapes.
        kind: "l1" or "l2".
    Raises:
        ValueError: the counts or shapes differ.
    """
    if [t.shape for t in current] != [t.shape for t in reference]:
        raise ValueError(f"cannot compare {[tuple(t.shape) for t in current]} with "
                         f"{[tuple(t.shape) for t in reference]}")
    entries = sum(t.numel() for t in current)
    distance = DISTANCES[kind]
    return sum(distance(a.float(), b.to(a.device).float()) * (a.numel() / entries)
               for a, b in zip(current, reference, strict=True))


def gradient(loss: Tensor, z: Tensor, scale: float = UNDERFLOW_SCALE) -> Tensor:
    """d loss / d z, taken through `scale` x loss so that float16 does not underflow; the scale is divided out."""
    (g,) = torch.autograd.grad(loss * scale, z)
    return g.float() / scale
