"""Deterministic DDIM (Song et al. 2021, eq. 12 with sigma = 0) as pure functions of both ends of a step.

    x0 = (z_s - sqrt(1 - a_s) eps) / sqrt(a_s)
    z_r = sqrt(a_r) x0 + sqrt(1 - a_r) eps

Run from noisy to clean it samples, from clean to noisy it inverts.  No network is imported here.
"""

from collections.abc import Callable, Iterable, Iterator

from torch import Tensor

from sage.sampling.levels import Edge, Level

PREDICTIONS = ("epsilon", "v_prediction")

Denoise = Callable[[Tensor, Level], tuple[Tensor, Tensor]]


def renoise(x0: Tensor, eps: Tensor, alpha: float) -> Tensor:
    """Clean latents and noise -> latents at the level with signal share `alpha`; any shape."""
    return alpha**0.5 * x0 + (1 - alpha) ** 0.5 * eps


def clean(z: Tensor, eps: Tensor, alpha: float) -> Tensor:
    """The clean latents that `z`, at signal share `alpha` > 0, was made from if its noise was `eps`."""
    return (z - (1 - alpha) ** 0.5 * eps) / alpha**0.5


def ddim_step(z: Tensor, eps: Tensor, start: float, end: float) -> Tensor:
    """Carry `z` from signal share `start` to `end` with one noise estimate; swap the ends for the inverse."""
    return renoise(clean(z, eps, start), eps, end)


def from_prediction(z: Tensor, output: Tensor, alpha: float, prediction: str) -> tuple[Tensor, Tensor]:
    """A network's output at signal share `alpha` -> (x0, eps).

    v = sqrt(a) eps - sqrt(1 - a) x0 (Salimans & Ho 2022, appendix D).

    Raises:
        ValueError: `prediction` is neither "epsilon" nor "v_prediction".
    """
    if prediction == "epsilon":
        return clean(z, output, alpha), output
    if prediction == "v_prediction":
        signal, noise = alpha**0.5, (1 - alpha) ** 0.5
        return signal * z - noise * output, signal * output + noise * z
    raise ValueError(f"prediction {prediction!r} is not one of {', '.join(PREDICTIONS)}")


def walk(denoise: Denoise, z: Tensor, edges: Iterable[Edge]) -> Iterator[Tensor]:
    """Follow `edges` from `z`, yielding the latents after each: inversion or plain sampling, as the edges lead.

    Args:
        denoise: (latents, level) -> (x0, eps).
        z: (B, 4, h, w) latents at the first edge's start.
    """
    for start, end in edges:
        x0, eps = denoise(z, start)
        z = renoise(x0, eps, end.alpha)
        yield z
