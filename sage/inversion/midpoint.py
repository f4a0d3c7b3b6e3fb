"""Second-order steps of a rectified flow, both ways: the velocity that counts is that in the middle of the step.

    z_m = z + (h / 2) v,   v_m = v(z_m, t + h / 2),   z <- z + h v_m

v is the velocity at the step's start (RF-Solver, Wang et al. 2411.04746, eq. 8, whose Taylor step is this midpoint
rule), or that of the middle of the step before, which costs no pass (FireFlow, Deng et al. 2412.07517, eq. 12).

Sharing: in the first steps back attention has the values of the passes of the inversion step that is undone.  They are
not kept: these passes are made again, from the latents of the way to noise.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

from sage import kit
from sage.method import Method, Step
from sage.settings import FlowGuidance, PartWay, Picture, Span, frozen, setting

if TYPE_CHECKING:
    from torch import Tensor

    from sage.job import Job
    from sage.models.backbone import Backbone

    Predict = Callable[[Tensor, kit.Level], kit.Prediction]
    Values = list[Tensor]


@frozen
class Settings(FlowGuidance, PartWay, Picture):
    """Sharing."""

    guidance_scale: float = setting(2.0, "w: how strongly the target prompt is followed; 1 follows it plainly", low=0,
                                    high=100, search=Span(1, 8, log=True))
    shared_steps: int = setting(1, "steps back, from the first, whose attention has the picture's values: the more, "
                                "the more is kept", low=0, high=1000, search=(0, 1, 2, 4))
    first_block: float = setting(0.66, "share of the network's depth before the first layer whose values are shared",
                                 low=0, high=1)


S = TypeVar("S", bound=Settings)


class Midpoint(Method[S]):
    """A solver of second order, there and back.

    Attributes:
        reuses: a step begins with the velocity of the middle of the step before, not with one of its own.
    """

    reuses: bool

    def fits(self, model: "Backbone") -> str:
        """No network but a rectified flow has the times between two levels."""
        return "" if model.prediction_type == "flow" else "it is no rectified flow"

    def inversion(self, settings: S) -> str:
        """Its own."""
        return self.name

    def edges(self, model: "Backbone", settings: S, size: tuple[int, int]) -> tuple["kit.Edges", "kit.Edges"]:
        """Those of its share of the way."""
        return kit.part_way(super().edges(model, settings, size), settings.taken)

    def invert(self, job: "Job[S]") -> "kit.Trajectory":
        """By its own steps under the source prompt."""
        latents = [job.z0]
        for z in self._walked(lambda z, level: job.predict(z, level, job.source), job.z0, job.up, job):
            latents.append(z)
            job.report("invert", len(latents) - 1, len(job.up))
        return kit.Trajectory(origin=None, latents=tuple(latents))  # type: ignore[arg-type]  # the driver says of what

    def back(self, job: "Job[S]", path: "kit.Trajectory") -> "Iterator[Tensor]":
        """By its own steps."""
        text = job.model.embed([path.source[0]]).expand(len(path.noise))
        yield from self._walked(lambda z, level: job.predict(z, level, text), path.noise, job.down, job)

    def edit(self, job: "Job[S]", path: "kit.Trajectory") -> Iterator[Step]:
        """By its own steps under the target prompt, the first of them with the picture's values."""
        s = job.settings
        sites = _sites(job.model, s.first_block) if s.shared_steps else kit.Sites()
        z, velocity = path.noise, None
        for i, (here, there) in enumerate(job.down):
            first, second = self._values(job, path, i, sites) if i < s.shared_steps else (None, None)

            def predict(z: "Tensor", level: "kit.Level", values: "Values | None") -> "kit.Prediction":
                with _given(sites, values):
                    return job.cfg(z, level, job.target, job.empty, s.guidance_scale)

            middle = _between(job, here, there)
            if velocity is None or not self.reuses:
                velocity = predict(z, here, first).velocity
            target = predict(_moved(z, velocity, here, middle), middle, second)
            velocity = target.velocity
            guided = kit.from_output(z, velocity, here, "flow")
            z = job.confined(_moved(z, velocity, here, there), path.latents[-2 - i])
            yield Step(i, z, here, target=target, guided=guided, mask=job.mask)

    def _walked(self, predict: "Predict", z: "Tensor", edges: "kit.Edges", job: "Job[S]") -> "Iterator[Tensor]":
        velocity = None
        for here, there in edges:
            middle = _between(job, here, there)
            if velocity is None or not self.reuses:
                velocity = predict(z, here).velocity
            velocity = predict(_moved(z, velocity, here, middle), middle).velocity
            z = _moved(z, velocity, here, there)
            yield z

    def _values(self, job: "Job[S]", path: "kit.Trajectory", step: int,
                sites: "kit.Sites") -> "tuple[Values | None, Values]":
        """The values at `sites` in the passes of the inversion step that a step back undoes.

        The first are None where there was no such pass.
        """
        k = len(job.up) - 1 - step
        here, there = job.up[k]
        z, middle, first = path.latents[k], _between(job, here, there), None
        if k == 0 or not self.reuses:
            velocity, first = _heard(job, z, here, sites)
        else:
            before, now = job.up[k - 1]
            velocity = (z - path.latents[k - 1]) / (now.noise - before.noise)
        return first, _heard(job, _moved(z, velocity, here, middle), middle, sites)[1]


def _between(job: "Job[Any]", here: "kit.Level", there: "kit.Level") -> "kit.Level":
    return job.model.schedule.level((here.t + there.t) / 2)


def _moved(z: "Tensor", velocity: "Tensor", here: "kit.Level", there: "kit.Level") -> "Tensor":
    return z + (there.noise - here.noise) * velocity


# ---- values


def _sites(model: "Backbone", first: float) -> "kit.Sites":
    """Those of picture and text from a share of the depth on, in one order."""
    sites = model.sites()
    return kit.Sites((*sites.at(kit.Where("self", blocks=(first, 1.0))),
                      *sites.at(kit.Where("cross", blocks=(first, 1.0)))))


def _heard(job: "Job[Any]", z: "Tensor", level: "kit.Level", sites: "kit.Sites") -> "tuple[Tensor, Values]":
    """The velocity under the source prompt, and the values at `sites`."""
    with kit.listen(sites, keep=lambda p: p.values) as tap:
        velocity = job.predict(z, level, job.source).velocity
    return velocity, tap.pop()


def _given(sites: "kit.Sites", values: "Sequence[Tensor] | None") -> AbstractContextManager[None]:
    """Context in which attention at `sites` has other values, in each half of a batch that is guided."""
    if values is None:
        return nullcontext()
    of = {site.path: value for site, value in zip(sites, values, strict=True)}
    return kit.swap(sites, lambda p, site: p._replace(values=of[site.path].repeat(len(p.values) // len(of[site.path]),
                                                                                   1, 1, 1)))
