"""The ways to noise that methods share: DDIM inversion, with the attention that edits are held to; DDPM inversion."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import TYPE_CHECKING, Any

from torch import Tensor

from sage.guidance.hooks import listen
from sage.models.backbone import Text
from sage.models.memory import on_host
from sage.models.sites import QueriesKeys
from sage.sampling.levels import Edges, Level
from sage.sampling.steps import Prediction, renoise, walk
from sage.trajectory.kinds import Heard, Noises, Recorded, Trajectory, Wanted, mapped

if TYPE_CHECKING:
    from sage.job import Job


def ddim_inversion(job: "Job[Any]", text: Text, wants: Sequence[Wanted] = (), *, edges: Edges | None = None,
                   around: Callable[[], AbstractContextManager[None]] = nullcontext) -> Trajectory:
    """Follow the prediction under a text from the clean latents to noise (Song et al. 2021, sec. 4.3).

    Args:
        text: usually of the source prompts.
        wants: the attention to keep on the way.
        edges: the steps; default: `job.up`.
        around: makes a context for each pass.
    """
    edges, keep = edges or job.up, _Recorder(job, wants)

    def predict(z: Tensor, level: Level) -> Prediction:
        with keep, around():
            return job.predict(z, level, text)

    latents = [job.z0]
    for done, z in enumerate(walk(predict, job.z0, edges), start=1):
        latents.append(z)
        job.report("invert", done, len(edges))
    if not wants:
        return Trajectory(origin=None, latents=tuple(latents))  # type: ignore[arg-type]  # the driver says of what
    return Recorded(origin=None, latents=tuple(latents), wanted=tuple(wants), heard=keep.heard)  # type: ignore[arg-type]


def heard_along(job: "Job[Any]", predict: Callable[[Tensor, Level], Prediction], path: Trajectory,
                wants: Sequence[Wanted]) -> Trajectory:
    """A way to noise with the attention that its latents give at their own levels, as DDIM inversion hears it.

    Args:
        predict: (latents, level) -> what they are made of, as on the way.
    """
    if not wants:
        return path
    keep = _Recorder(job, wants)
    for done, (z, (here, _)) in enumerate(zip(path.latents, job.up, strict=False), start=1):
        if any(done - 1 in wanted.steps for wanted in wants):
            with keep:
                predict(z, here)
        else:
            keep.pass_over()
        job.report("invert", done, len(job.up))
    return Recorded(origin=None, latents=path.latents, wanted=tuple(wants), heard=keep.heard)  # type: ignore[arg-type]


def noise_inversion(job: "Job[Any]", step: Callable[[Tensor, int], tuple[Tensor, float]]) -> Noises:
    """Latents of every level, drawn each by itself, and the noise with which stochastic sampling meets them.

        z_k = s_k z0 + n_k eps_k,   eps_k ~ N(0, I)
        u_k = (z_{k-1} - mean(z_k)) / scale          (Huberman-Spiegelglas et al. 2304.06140, eq. 5)

    Noises are drawn from the cleanest level up; steps are taken down `job.down`.

    Args:
        step: (z_k, number of the sampling step) -> mean and scale of the noise, as `reaching` gives them.
    """
    z0, edges = job.z0, job.down
    latents = [z0, *(renoise(Prediction(z0, job.noise(k)), level) for k, (level, _) in enumerate(edges[::-1], start=1))]
    noises = []
    for i in range(len(edges)):
        mean, scale = step(latents[-1 - i], i)
        noises.append((latents[-2 - i] - mean) / scale)
        latents[-2 - i] = mean + scale * noises[-1]  # as sampling will have it, rounding included
        job.report("invert", i + 1, len(edges))
    return Noises(origin=None, latents=(z0, *latents[1:]), noises=tuple(noises))  # type: ignore[arg-type]  # the driver


class _Recorder:
    """Keeps, step by step, the attention that is wanted."""

    def __init__(self, job: "Job[Any]", wants: Sequence[Wanted]):
        self.wants, self.savings, self._done = wants, job.model.savings, 0
        self.sites = [job.model.sites().at(wanted.where) if wanted.steps else () for wanted in wants]
        self._heard: list[list[tuple[QueriesKeys, ...] | None]] = [[] for _ in wants]

    @property
    def heard(self) -> tuple[Heard, ...]:
        return tuple(map(tuple, self._heard))

    def pass_over(self) -> None:
        """Leave a step out at which nothing is wanted."""
        for heard in self._heard:
            heard.append(None)
        self._done += 1

    def __enter__(self) -> None:
        self._stack = ExitStack()
        self._taps = [self._stack.enter_context(listen(sites)) if self._done in wanted.steps else None
                      for wanted, sites in zip(self.wants, self.sites, strict=True)]

    def __exit__(self, *error: object) -> None:
        self._stack.close()
        if error[0] is not None:
            return
        for heard, tap in zip(self._heard, self._taps, strict=True):
            pairs = None if tap is None else tuple(tap.pop())
            heard.append(mapped(pairs, lambda name, t: on_host(t)) if self.savings.references else pairs)
        self._done += 1
