"""Fixed-point inversion: DDIM's step to noise solved for its end, so that sampling retraces it (AIDI, 2309.04907).

    invert   z_k+1 <- a z_k + b eps(z_k+1, k+1)    until it settles; a = s_k+1 / s_k, b = n_k+1 - a n_k
    sample   eps = eps_source + w (eps_target - eps_source), DDIM

The plain inversion takes eps(z_k, k) in its place.  The rounds converge where steps are short and guidance is weak.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sage import kit
from sage.inversion import exact
from sage.method import Method, Step
from sage.settings import Picture, frozen

if TYPE_CHECKING:
    from torch import Tensor

    from sage.job import Job
    from sage.models.backbone import Backbone


@frozen
class Settings(exact.Mirrored, exact.Implicit, Picture):
    """Fixed point."""

    fixes = frozenset({"fixed_point_rounds", "fixed_point_tolerance", "fixed_point_damping"})


class FixedPoint(Method[Settings]):
    """DDIM inversion iterated to a stop."""

    name, title, paper = "fixed-point", "Fixed-point inversion", "2309.04907"
    about = "inverts by solving DDIM's step for its start, and follows the target prompt; nothing holds the picture"
    good_at = "giving the picture back: of the methods compared only a cached one keeps more, and both do little"
    reads = frozenset({"source", "target", "negative"})
    presets = {"published": dict(steps=50, guidance_scale=7.5, fixed_point_rounds=11, fixed_point_tolerance=0.0)}
    calls = "strength N (rounds + 2) + 1, some 5 strength N; strength N (2 rounds + 2) + 2 with guided_from=empty"

    def inversion(self, settings: Settings) -> str:
        return "fixed-point"

    def edges(self, model: "Backbone", settings: Settings, size: tuple[int, int]) -> tuple["kit.Edges", "kit.Edges"]:
        return kit.part_way(super().edges(model, settings, size), settings.taken)

    def invert(self, job: "Job[Settings]") -> "kit.Trajectory":
        return exact.fixed_point_inversion(job, lambda z, level: exact.guided(job, z, level, job.source))

    def back(self, job: "Job[Settings]", path: "kit.Trajectory") -> "Iterator[Tensor]":
        return kit.walk(lambda z, level: exact.guided(job, z, level, job.source), path.noise, job.down)

    def edit(self, job: "Job[Settings]", path: "kit.Trajectory") -> Iterator[Step]:
        exact.note_unsettled(job, path)
        z = path.noise
        for i, (here, there) in enumerate(job.down):
            guided = exact.guided(job, z, here, job.target)
            z = kit.renoise(guided, there)
            yield Step(i, z, here, guided=guided)
