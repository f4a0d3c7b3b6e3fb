"""The ways to noise that methods share: DDIM inversion, with the attention that edits are held to; DDPM inversion."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from torch import Tensor

from sage.guidance.hooks import listen
from sage.models.backbone import Text
from sage.models.memory import on_host
from sage.models.sites import QueriesKeys
from sage.sampling.levels import Edges, Level
from sage.sampling.skipping import Continued, evaluated
from sage.sampling.steps import Prediction, renoise
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

    With a cache the network is asked at some of the steps, and what it predicted is continued at the others.
    """
    edges = edges or job.up
    asked, continued = evaluated(len(edges), job.cached.stride), Continued(job.model.prediction_type == "flow")
    keep, latents = _Recorder(job, wants, asked), [job.z0]
    for k, (here, there) in enumerate(edges):
        z = latents[-1]
        if k in asked:
            with keep.at(k), around():
                seen = job.predict(z, here, text)
            continued.add(seen, here)
        else:
            seen = continued.at(z, here, there)
        latents.append(renoise(seen, there))
        job.report("invert", k + 1, len(edges))
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
    keep = _Recorder(job, wants, range(len(job.up)))
    for k, (z, (here, _)) in enumerate(zip(path.latents, job.up, strict=False)):
        if any(k in wanted.steps for wanted in wants):
            with keep.at(k):
                predict(z, here)
        job.report("invert", k + 1, len(job.up))
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
    """Keeps the attention that is wanted, of steps that are skipped that of the last one before.

    Args:
        asked: the steps at which there is a pass.
    """

    def __init__(self, job: "Job[Any]", wants: Sequence[Wanted], asked: Sequence[int]):
        self.wants, self.savings, self.steps = wants, job.model.savings, range(max(asked, default=-1) + 1)
        self.sites = [job.model.sites().at(wanted.where) if wanted.steps else () for wanted in wants]
        self.serves = {k: max(done for done in asked if done <= k) for k in self.steps}
        self._heard: list[dict[int, tuple[QueriesKeys, ...]]] = [{} for _ in wants]

    @property
    def heard(self) -> tuple[Heard, ...]:
        return tuple(tuple(heard[self.serves[k]] if k in wanted.steps else None for k in self.steps)
                     for wanted, heard in zip(self.wants, self._heard, strict=True))

    @contextmanager
    def at(self, k: int) -> Iterator[None]:
        """Context around the pass of a step."""
        with ExitStack() as stack:
            taps = [stack.enter_context(listen(sites)) if k in {self.serves[step] for step in wanted.steps} else None
                    for wanted, sites in zip(self.wants, self.sites, strict=True)]
            yield
        for heard, tap in zip(self._heard, taps, strict=True):
            if tap is not None:
                pairs = tuple(tap.pop())
                heard[k] = mapped(pairs, lambda name, t: on_host(t)) if self.savings.references else pairs
