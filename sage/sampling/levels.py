"""Noise levels and the grids that visit them.  Tables are float64 on the CPU; a schedule is a value, not a cursor.

    z = s x0 + n eps
    s = sqrt(a_t), n = sqrt(1 - a_t),   a_t = prod_{s <= t} (1 - beta_s)      diffusions (Ho et al. 2020, eq. 4)
    s = 1 - t,     n = t                                                      rectified flows (Liu et al. 2023)

Every solver step is given both of its ends, so that nothing has to be guessed from one label.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sage.errors import SettingsError

SPACINGS = ("leading", "trailing", "linspace")
GRIDS = ("consistent", "released")
DISTILLED = 50  # timesteps of a consistency model (Luo et al. 2310.04378)


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

    def __post_init__(self) -> None:
        if self.beta_schedule not in ("scaled_linear", "linear"):
            raise SettingsError(f"beta schedule {self.beta_schedule!r} is not known: scaled_linear or linear")


def alphas_cumprod(params: ScheduleParams, dtype: torch.dtype = torch.float64) -> Tensor:
    """(train_steps,): the share of signal a_t left at each timestep, falling from near 1.

    Args:
        dtype: in which it is computed; diffusers does so in float32.
    """
    p = params
    if p.beta_schedule == "scaled_linear":
        betas = torch.linspace(p.beta_start**0.5, p.beta_end**0.5, p.train_steps, dtype=dtype) ** 2
    else:
        betas = torch.linspace(p.beta_start, p.beta_end, p.train_steps, dtype=dtype)
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
    """One noise level.

    Attributes:
        t: what the network is told: a timestep, or a flow's time.
        signal, noise: z = signal x0 + noise eps.
    """

    t: float
    signal: float
    noise: float

    @classmethod
    def of(cls, t: float, alpha: float) -> "Level":
        """A level of a diffusion, by its share of signal `alpha` in [0, 1]."""
        return cls(t, alpha**0.5, (1 - alpha) ** 0.5)

    @property
    def alpha(self) -> float:
        """signal^2."""
        return self.signal**2


Edge = tuple[Level, Level]
Edges = tuple[Edge, ...]


class Schedule(Protocol):
    """The noise levels of a network."""

    def levels(self, steps: int, spacing: str, size: tuple[int, int]) -> tuple[Level, ...]:
        """N + 1 levels, clean to noisy, for latents of `size` (h, w); SettingsError for what cannot be had."""
        ...

    def level(self, t: float) -> Level:
        """The level of what the network is told."""
        ...


def upwards(levels: tuple[Level, ...]) -> Edges:
    """The steps from clean to noisy."""
    return tuple(pairwise(levels))


def of_timesteps(model: Any, member: str, said: str = "conventions is published") -> Callable[..., Any]:
    """A method of a model's schedule that only schedules with timesteps have; the grids of original codes are such.

    Args:
        said: the setting that asks for it.
    Raises:
        SettingsError: the model's has none.
    """
    found = getattr(model.schedule, member, None)
    if found is None:
        raise SettingsError(f"{said}: {model.name} has no timesteps")
    return found


def part_way(ways: tuple[Edges, Edges], steps: int) -> tuple[Edges, Edges]:
    """Of the steps from clean to noisy and back those between the clean end and the level that `steps` reach."""
    up, down = ways
    return up[:steps], down[len(down) - steps:]


def downwards(levels: tuple[Level, ...]) -> Edges:
    """The steps from noisy to clean: those of `upwards` backwards."""
    return tuple(pairwise(levels[::-1]))


@dataclass(frozen=True)
class DiffusionSchedule:
    """The levels of a network that was trained on 1000 timesteps, or as many as its parameters say.

    Attributes:
        made_for: steps of the trailing grid to whose levels the network was trained alone; 0 for one that knows all.
    """

    params: ScheduleParams = ScheduleParams()
    made_for: int = 0

    @cached_property
    def _alphas(self) -> list[float]:
        return alphas_cumprod(self.params).tolist()

    @property
    def _final(self) -> float:
        return 1.0 if self.params.set_alpha_to_one else self._alphas[0]

    def level(self, t: float) -> Level:
        """The level of timestep `t`, a whole number; below 0 the cleanest one."""
        return Level.of(max(int(t), 0), self._alphas[int(t)] if t >= 0 else self._final)

    def levels(self, steps: int, spacing: str = "leading", size: tuple[int, int] = (0, 0)) -> tuple[Level, ...]:
        """N + 1 levels, clean to noisy; the cleanest is told to the network as timestep 0.

        The clean end of "linspace" has no noise, whatever `set_alpha_to_one`: its first timestep is 0, and the step
        between would have no length.

        Raises:
            SettingsError: steps or spacing out of range.
        """
        visited = timesteps(self.params, steps, spacing)
        final = 1.0 if spacing == "linspace" else self._final
        return (Level.of(0, final), *(Level.of(t, self._alphas[t]) for t in visited))

    def rounded(self, t: int) -> Level:
        """The level of timestep `t` by the float32 table that diffusers keeps; below 0 the cleanest one."""
        a = alphas_cumprod(self.params, torch.float32)
        return Level.of(max(t, 0), a[t].item() if t >= 0 else 1.0 if self.params.set_alpha_to_one else a[0].item())

    def cleanest(self, steps: int, total: int, whole: bool) -> tuple[Level, ...]:
        """The clean end of a leading grid of diffusers, N + 1 levels, clean to noisy.

        Args:
            total: steps of the grid.
            whole: as DPMSolverMultistepScheduler has it: the step from the first timestep to 0 is as long as others,
                and the clean end has no noise; else as DDIMScheduler.
        Raises:
            SettingsError: more steps than timesteps.
        """
        length = self.params.train_steps // (total + whole)
        if length == 0:
            raise SettingsError(f"steps are {total} in all: must be below {self.params.train_steps}")
        clean = Level.of(0, 1.0) if whole else self.rounded(-1)
        return clean, *(self.rounded((k + whole) * length + 1) for k in range(steps))

    def consistency(self, steps: int) -> tuple[Level, ...]:
        """The levels of LCMScheduler of diffusers, N + 1, clean to noisy.

        Of 50 timesteps, the last of as many equal parts, which such a network is distilled on, they are those from the
        noisiest on whose numbers are spread evenly, rounded down.

        Raises:
            SettingsError: more steps than these.
        """
        if not 1 <= steps <= DISTILLED:
            raise SettingsError(f"steps is {steps}: as in the original code there are 1 to {DISTILLED}")
        length = self.params.train_steps // DISTILLED
        visited = [length * (DISTILLED - DISTILLED * k // steps) - 1 for k in range(steps)]
        return Level.of(0, self._final), *(self.rounded(t) for t in reversed(visited))

    def ahead(self, steps: int, spacing: str = "leading") -> tuple[Edges, Edges]:
        """The steps of the code of prompt-to-prompt and its kin, there and back.

        On the way to noise the network is told the level that it goes to, and has the latents of the one that it
        leaves.  The timesteps are one above multiples, whatever the checkpoint says: the pipeline puts that into its
        scheduler.
        """
        a = alphas_cumprod(self.params, torch.float32).tolist()
        visited = timesteps(replace(self.params, steps_offset=1), steps, spacing)
        levels = (Level.of(0, a[0]), *(Level.of(t, a[t]) for t in visited))
        return tuple((replace(here, t=there.t), there) for here, there in upwards(levels)), downwards(levels)

    def multiples(self, steps: int, spacing: str = "leading") -> tuple[Edges, Edges]:
        """The steps of the code of EDICT and of BDIA, there and back.

        The timesteps are all multiples of train_steps // steps, whatever the checkpoint says, which are more than
        `steps` where these do not divide train_steps.  Each step is train_steps / steps long: the last, which would go
        below 0, has no length.  Where that is no whole number, the share of signal between two timesteps is
        interpolated, each taken for as much as the other is near.  Their table of alphas is in float64.
        """
        a = self._alphas
        length = self.params.train_steps / steps

        def behind(t: int) -> Level:
            if t < length:
                return Level.of(0, a[0])
            low, high = math.floor(t - length), math.ceil(t - length)
            share = t - length - low
            return Level.of(low, a[low] * share + a[high] * (1 - share))

        visited = (range(0, self.params.train_steps, self.params.train_steps // steps) if spacing == "leading" else
                   timesteps(replace(self.params, steps_offset=0), steps, spacing))
        up = tuple((behind(t), Level.of(t, a[t])) for t in visited)
        return up, tuple((noisy, clean) for clean, noisy in reversed(up))

    def lagging(self, steps: int, spacing: str = "leading") -> tuple[Edges, Edges]:
        """The steps of pix2pix-zero's code, there and back; the authors' way there leaves out its first and its last.

        On the way to noise the network is told the timestep after that of the latents' level, and the last step goes to
        the last level there is.
        """
        a, last = alphas_cumprod(self.params, torch.float32).tolist(), self.params.train_steps - 1
        visited = timesteps(replace(self.params, steps_offset=1), steps, spacing)
        length = self.params.train_steps // steps
        up = tuple((Level.of(t, a[max(t - 1, 0)]), Level.of(t + length, a[min(t - 1 + length, last)])) for t in visited)
        return up, self.ahead(steps, spacing)[1]

    def inferred(self, steps: int, spacing: str = "leading") -> tuple[Edges, Edges]:
        """The steps that diffusers 0.21.4 infers from labels, there and back: each as long as train_steps // steps.

        So the second inversion step treats latents of level r as if of level 1.  The table of alphas is the float32 one
        that diffusers keeps.
        """
        a = alphas_cumprod(self.params, torch.float32).tolist()
        final = 1.0 if self.params.set_alpha_to_one else a[0]
        visited, ratio = timesteps(self.params, steps, spacing), self.params.train_steps // steps

        def level(t: int) -> Level:
            return Level.of(max(t, 0), a[min(t, len(a) - 1)] if t >= 0 else final)

        return (tuple((level(t), level(t + ratio)) for t in [0, *visited[:-1]]),
                tuple((level(t), level(t - ratio)) for t in reversed(visited)))


@dataclass(frozen=True)
class FlowParams:
    """How the steps of a rectified flow are shifted towards its noisy end; the defaults are those of FLUX.1 dev.

    Attributes:
        dynamic: by the size of the picture: mu is linear in its tokens, through (base_tokens, base_shift) and
            (max_tokens, max_shift), and the shift is e^mu; else it is `shift`.
        patch: latents along each side of a token.
    """

    dynamic: bool = True
    shift: float = 1.0
    base_shift: float = 0.5
    max_shift: float = 1.15
    base_tokens: int = 256
    max_tokens: int = 4096
    patch: int = 2


@dataclass(frozen=True)
class FlowSchedule:
    """The levels of a rectified flow, z = (1 - t) x0 + t eps, from t = 0, the picture, to t = 1, noise.

        t_k = m tau_k / (1 + (m - 1) tau_k) = 1 / (1 + (1 / tau_k - 1) / m),   tau_k = k / N

    (Esser et al. 2403.03206, eq. 23).
    """

    params: FlowParams = FlowParams()

    def level(self, t: float) -> Level:
        """The level of time `t` in [0, 1]."""
        return Level(t, 1 - t, t)

    def levels(self, steps: int, spacing: str = "leading", size: tuple[int, int] = (0, 0)) -> tuple[Level, ...]:
        """N + 1 levels, clean to noisy, both ends whole.

        Raises:
            SettingsError: no steps, or a spacing: a flow has one of its own.
        """
        if steps < 1:
            raise SettingsError(f"steps is {steps}: must be at least 1")
        if spacing != "leading":
            raise SettingsError(f"spacing is {spacing}: the steps of a flow have a spacing of their own; leave it out")
        shift = self.shift(size)
        return self.level(0.0), *(self.level(1 / (1 + (steps / k - 1) / shift)) for k in range(1, steps + 1))

    def shift(self, size: tuple[int, int]) -> float:
        """m, for latents of `size` (h, w)."""
        p = self.params
        if not p.dynamic:
            return p.shift
        tokens = math.prod(-(-side // p.patch) for side in size)
        slope = (p.max_shift - p.base_shift) / (p.max_tokens - p.base_tokens)
        return math.exp(p.base_shift + slope * (tokens - p.base_tokens))
