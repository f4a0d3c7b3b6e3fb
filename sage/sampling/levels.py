"""Noise levels and the grids that visit them.  Tables are float64 on the CPU; a schedule is a value, not a cursor.

    z_t = sqrt(a_t) x0 + sqrt(1 - a_t) eps,   a_t = prod_{s <= t} (1 - beta_s)      (Ho et al. 2020, eq. 4)

Every solver step is given both of its ends, so that nothing has to be guessed from one label.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from sage.errors import SettingsError

SPACINGS = ("leading", "trailing", "linspace")
GRIDS = ("consistent", "released")


@dataclass(frozen=True)
class ScheduleParams:
    """The noise a network was trained with; the defaults are those of Stable Diffusion.

    Attributes:
        steps_offset: added to every timestep of the leading grid.
        set_alpha_to_one: whether the cleanest level has no noise at all (a = 1) or that of timestep 0.
        zero_terminal_snr: rescale so that the last level is pure noise (Lin et al. 2023, algorithm 1).
    """

    train_steps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    steps_offset: int = 1
    set_alpha_to_one: bool = False
    zero_terminal_snr: bool = False

    def __post_init__(self):
        if self.beta_schedule not in ("scaled_linear", "linear"):
            raise SettingsError(f"beta schedule {self.beta_schedule!r} is not known: scaled_linear or linear")


def alphas_cumprod(params: ScheduleParams) -> Tensor:
    """(train_steps,) float64: the share of signal a_t left at each timestep, falling from near 1."""
    p = params
    if p.beta_schedule == "scaled_linear":
        betas = torch.linspace(p.beta_start**0.5, p.beta_end**0.5, p.train_steps, dtype=torch.float64) ** 2
    else:
        betas = torch.linspace(p.beta_start, p.beta_end, p.train_steps, dtype=torch.float64)
    alphas = torch.cumprod(1 - betas, dim=0)
    if p.zero_terminal_snr:
        root = alphas.sqrt()
        alphas = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return alphas


def timesteps(params: ScheduleParams, steps: int, spacing: str = "leading") -> list[int]:
    """The timesteps of `steps` solver steps, ascending (Lin et al. 2023, table 2, names the spacings)."""
    total = params.train_steps
    if not 1 <= steps <= total:
        raise SettingsError(f"steps is {steps}: must be between 1 and {total}")
    if spacing == "leading":
        grid = [i * (total // steps) + params.steps_offset for i in range(steps)]
    elif spacing == "trailing":
        # In numpy, as where the grids come from: what lies halfway between two timesteps is rounded as there.
        grid = (np.arange(total, 0, -total / steps)[:steps].round().astype(int) - 1)[::-1].tolist()
    elif spacing == "linspace":
        grid = np.linspace(0, total - 1, steps).round().astype(int).tolist()
    else:
        raise SettingsError(f"spacing {spacing!r} is not known: {', '.join(SPACINGS)}")
    if grid[-1] >= total:
        raise SettingsError(f"{steps} {spacing} steps with offset {params.steps_offset} pass timestep {total - 1}")
    return grid


@dataclass(frozen=True)
class Level:
    """One noise level: the label `t` the network is told, and the share of signal `alpha` in the latents."""

    t: int
    alpha: float


Edge = tuple[Level, Level]


@dataclass(frozen=True)
class Schedule:
    """The steps of an inversion and of the sampling that undoes it.

    Attributes:
        inversion: N edges in the order they are walked, clean to noisy.
        sampling: N edges in the order they are walked, noisy to clean.

    On the consistent grid sampling[i] is inversion[N - 1 - i] backwards.
    """

    inversion: tuple[Edge, ...]
    sampling: tuple[Edge, ...]

    def __len__(self) -> int:
        return len(self.sampling)


def make_schedule(params: ScheduleParams, steps: int, spacing: str = "leading", grid: str = "consistent") -> Schedule:
    """Lay out a schedule.

    Args:
        grid: "consistent" walks the same levels both ways.  "released" is the arithmetic of the SAGE code on
            diffusers 0.21.4: ends inferred from labels and train_steps // steps, so that the second inversion step
            treats latents of level r as if of level 1.
    Raises:
        SettingsError: steps, spacing or grid out of range.
    """
    a = alphas_cumprod(params).tolist()
    final = 1.0 if params.set_alpha_to_one else a[0]
    visited = timesteps(params, steps, spacing)
    if grid == "consistent":
        levels = [Level(0, final)] + [Level(t, a[t]) for t in visited]
        inversion = tuple(pairwise(levels))
        return Schedule(inversion, tuple((b, a) for a, b in reversed(inversion)))
    if grid != "released":
        raise SettingsError(f"grid {grid!r} is not known: {', '.join(GRIDS)}")
    ratio = params.train_steps // steps

    def level(t: int) -> Level:
        return Level(max(t, 0), a[min(t, len(a) - 1)] if t >= 0 else final)

    return Schedule(
        inversion=tuple((level(t), level(t + ratio)) for t in [0, *visited[:-1]]),
        sampling=tuple((level(t), level(t - ratio)) for t in reversed(visited)))
