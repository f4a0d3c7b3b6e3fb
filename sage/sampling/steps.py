"""What a network predicts, and every solver step that methods take with it: pure functions of both ends of a step.

    z = s x0 + n eps                          at a level of signal s and noise n, of a diffusion or of a flow
    z' = s' x0 + n' eps                       DDIM (Song et al. 2021, eq. 12, sigma = 0); Euler of a rectified flow
    z' = (s' / s) z + (n' - n s' / s) eps     the same, linear in z

Run from noisy to clean they sample, from clean to noisy they invert.  No network is imported here.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sage.sampling.levels import Edge, Level

PREDICTIONS = ("epsilon", "v_prediction", "flow")


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a network sees in latents z = signal x0 + noise eps.  Sums and multiples are those of both.

    Attributes:
        x0, eps: (B, C, h, w) float32, clean latents and noise.
    """

    x0: Tensor
    eps: Tensor

    def __add__(self, other: "Prediction") -> "Prediction":
        return Prediction(self.x0 + other.x0, self.eps + other.eps)

    def __sub__(self, other: "Prediction") -> "Prediction":
        return Prediction(self.x0 - other.x0, self.eps - other.eps)

    def __mul__(self, factor: float | Tensor) -> "Prediction":
        return Prediction(factor * self.x0, factor * self.eps)

    __rmul__ = __mul__

    @property
    def velocity(self) -> Tensor:
        """eps - x0: what a rectified flow predicts."""
        return self.eps - self.x0

    def double(self) -> "Prediction":
        """In float64, for solvers that undo their steps."""
        return Prediction(self.x0.double(), self.eps.double())

    def detach(self) -> "Prediction":
        """Without its graph."""
        return Prediction(self.x0.detach(), self.eps.detach())

    def chunk(self, parts: int) -> "tuple[Prediction, ...]":
        """The batch in equal parts."""
        return tuple(Prediction(x0, eps) for x0, eps in zip(self.x0.chunk(parts), self.eps.chunk(parts), strict=True))


def renoise(p: Prediction, to: Level) -> Tensor:
    """The latents at level `to` that the prediction stands for: a DDIM step, or an Euler step of a flow."""
    return to.signal * p.x0 + to.noise * p.eps


def clean(z: Tensor, eps: Tensor, level: Level) -> Tensor:
    """The clean latents that `z`, at a level of some signal, was made from if its noise was `eps`."""
    return (z - level.noise * eps) / level.signal


def with_noise(z: Tensor, eps: Tensor, level: Level) -> Prediction:
    """`z` at `level` as made with the noise `eps`."""
    return Prediction(clean(z, eps, level), eps)


def with_clean(z: Tensor, x0: Tensor, level: Level) -> Prediction:
    """`z`, at a level of some noise, as made from the clean latents `x0`."""
    return Prediction(x0, (z - level.signal * x0) / level.noise)


def ddim_step(z: Tensor, eps: Tensor, here: Level, there: Level) -> Tensor:
    """Carry `z` from one level to another with one noise estimate; swap the ends for the inverse."""
    return renoise(with_noise(z, eps, here), there)


def advance(p: Prediction, here: Level, there: Level) -> Tensor:
    """(s' - s) x0 + (n' - n) eps: how far latents move from one level to another.

    It may be that of a difference of two predictions, as in FlowEdit (Kulikov et al. 2024, eq. 7).
    """
    return (there.signal - here.signal) * p.x0 + (there.noise - here.noise) * p.eps


def affine(here: Level, there: Level) -> tuple[float, float]:
    """A and B of z' = A z + B eps (EDICT, Wallace et al. 2023, eq. 12)."""
    a = there.signal / here.signal
    return a, there.noise - here.noise * a


def ancestral(p: Prediction, here: Level, there: Level, eta: float = 1.0) -> tuple[Tensor, float]:
    """Mean and standard deviation of a stochastic step (Song et al. 2021, eq. 12 and 16; eta = 1 is DDPM).

        var = eta^2 n'^2 (1 - (s n' / (s' n))^2),   mean = s' x0 + sqrt(n'^2 - var) eps
    """
    ratio = here.signal * there.noise / (there.signal * here.noise)
    var = eta**2 * there.noise**2 * max(0.0, 1 - ratio**2)
    return there.signal * p.x0 + max(0.0, there.noise**2 - var) ** 0.5 * p.eps, var**0.5


def reaching(p: Prediction, here: Level, there: Level, eta: float = 1.0) -> tuple[Tensor, float]:
    """As `ancestral`, for noise that is found and not drawn: its scale is 1 where the step has none of its own."""
    mean, deviation = ancestral(p, here, there, eta)
    return mean, deviation or 1.0


def second_order(p: Prediction, before: Prediction, last: Level, here: Level, there: Level) -> Prediction:
    """What DPM-Solver++ (2M) puts in the place of a prediction (Lu et al. 2211.01095, algorithm 2).

        x0 <- x0 + (h / 2 h_before) (x0 - x0_before),   h = l' - l,   l = log(s / n)

    With it `renoise` is that solver's step, and `ancestral` that of its stochastic kind.

    Args:
        before: what was predicted a step earlier, at level `last`.
        here, there: levels with some noise.
    """
    ratio = (_log_ratio(there) - _log_ratio(here)) / (_log_ratio(here) - _log_ratio(last))
    shift = 0.5 * ratio * (p.x0 - before.x0)
    return Prediction(p.x0 + shift, p.eps - here.signal / here.noise * shift)


def _log_ratio(level: Level) -> float:
    return math.log(level.signal / level.noise) if level.signal else -math.inf


def stochastic(p: Prediction, here: Level, there: Level, eta: float, noise: Callable[[], Tensor]) -> Tensor:
    """A step with some fresh noise in it; with eta 0 none is drawn, and it is `renoise`.

    Args:
        noise: draws standard normal numbers in the shape of the latents, or of one picture's.
    """
    if eta == 0:
        return renoise(p, there)
    mean, deviation = ancestral(p, here, there, eta)
    return mean + deviation * noise()


def from_output(z: Tensor, output: Tensor, level: Level, prediction: str) -> Prediction:
    """A network's output for latents `z` at `level`.

    v = s eps - n x0 (Salimans & Ho 2022, appendix D); a flow's u = eps - x0, at s + n = 1 (Liu et al. 2023).

    Raises:
        ValueError: `prediction` is none of `PREDICTIONS`.
    """
    if prediction == "epsilon":
        return with_noise(z, output, level)
    if prediction == "v_prediction":
        return Prediction(level.signal * z - level.noise * output, level.signal * output + level.noise * z)
    if prediction == "flow":
        return Prediction(z - level.noise * output, z + level.signal * output)
    raise ValueError(f"prediction {prediction!r} is not one of {', '.join(PREDICTIONS)}")


def to_output(p: Prediction, level: Level, prediction: str) -> Tensor:
    """What the network gave when it predicted `p` at `level`: the inverse of `from_output`.

    Raises:
        ValueError: `prediction` is none of `PREDICTIONS`.
    """
    if prediction == "epsilon":
        return p.eps
    if prediction == "v_prediction":
        return level.signal * p.eps - level.noise * p.x0
    if prediction == "flow":
        return p.velocity
    raise ValueError(f"prediction {prediction!r} is not one of {', '.join(PREDICTIONS)}")


Predict = Callable[[Tensor, Level], Prediction]


def walk(predict: Predict, z: Tensor, edges: Iterable[Edge]) -> Iterator[Tensor]:
    """Follow `edges` from `z`, yielding the latents after each: inversion or plain sampling, as the edges lead.

    Args:
        predict: (latents, level) -> what they are made of.
        z: (B, C, h, w) latents at the first edge's start.
    """
    for here, there in edges:
        z = renoise(predict(z, here), there)
        yield z


def mixed_with_noise(z: Tensor, noise: Tensor, share: float) -> Tensor:
    """(1 - b) z + b noise, brought back to unit variance."""
    return z if share == 0 else ((1 - share) * z + share * noise) / ((1 - share) ** 2 + share**2) ** 0.5


def classifier_free(negative: Prediction, positive: Prediction, w: float | Tensor) -> Prediction:
    """negative + w (positive - negative) (Ho & Salimans 2022, eq. 6)."""
    return negative + w * (positive - negative)


def gaussian(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    """Standard normal numbers drawn on the CPU, so that a seed means the same on every device."""
    return torch.randn(shape, generator=generator).to(like)
