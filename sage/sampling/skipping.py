"""Inversion step skipping: a network asked at some of the steps of a way, and continued at the others (2503.10270).

What is continued is the noise over sigma = n / s, in which z / s of a diffusion moves evenly while it is constant; of a
flow, the velocity over its time n:

    eps^(sigma) = eps_c + (eps_c - eps_b) (sigma - sigma_c) / (sigma_c - sigma_b)

c being the last step asked, b the one before.  A step takes the value at its middle, which is its exact integral;
where only one step was asked, that one's.  Held constant, the steps together are one coarse step of DDIM.
"""

from torch import Tensor

from sage.sampling.levels import Level
from sage.sampling.steps import Prediction, from_output, to_output


def evaluated(steps: int, every: int) -> tuple[int, ...]:
    """The steps of a way at which the network is asked.

    They are counted from the last, so that a way back that is computed whole at every so many steps from its first
    undoes such steps; the first is asked always.
    """
    return tuple(k for k in range(steps) if k == 0 or (steps - 1 - k) % every == 0)


class Continued:
    """What a network predicted last, continued to the levels after it.

    Args:
        flow: whether it is a rectified flow.
        held: what was predicted last stands as it is.
    """

    def __init__(self, flow: bool, held: bool = False):
        self.kind, self.held, self._last = "flow" if flow else "epsilon", held, list[tuple[float, Tensor]]()

    def add(self, seen: Prediction, here: Level) -> None:
        """What was predicted at a level."""
        self._last = [*self._last[-1:], (self._at(here), to_output(seen, here, self.kind))]

    def at(self, z: Tensor, here: Level, there: Level) -> Prediction:
        """What latents at `here` are made of, as far as it counts for a step to `there`."""
        (now, output), middle = self._last[-1], (self._at(here) + self._at(there)) / 2
        if len(self._last) == 2 and not self.held:
            before, earlier = self._last[0]
            output = output + (middle - now) / (now - before) * (output - earlier)
        return from_output(z, output, here, self.kind)

    def _at(self, level: Level) -> float:
        return level.noise if self.kind == "flow" else level.noise / level.signal
