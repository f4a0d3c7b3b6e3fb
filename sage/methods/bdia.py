"""BDIA: each step goes on from the one before by what the network says of both its sides, and so can be undone.

    z_i-1 = g z_i+1 - g D(z_i; i+1) + D(z_i; i-1)          D(z; j): DDIM's step from z to level j, by one prediction
    z_i+1 = (z_i-1 - D(z_i; i-1)) / g + D(z_i; i+1)        the same solved for the other end  (Zhang et al. 2307.10829)

The first step of the way to noise is DDIM's.  The way back starts from its last two states, and costs what DDIM costs.
With g = 1 errors neither grow nor fade; below, they grow as g^-k on the way to noise: 0.5 is for ten steps.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sage import kit
from sage.inversion import exact
from sage.method import Method, Step
from sage.settings import Picture, frozen, setting

if TYPE_CHECKING:
    from torch import Tensor

    from sage.job import Job
    from sage.models.backbone import Backbone
    from sage.prompts.plan import Plan

PUBLISHED = dict(steps=50, strength=0.8, gamma=1.0, guidance_scale=4.0, guided_from="empty", conventions="published",
                 precision="float64", encode="sample", fit="crop", seed=1)


@frozen
class Settings(exact.TwoStates, Picture):
    """Integration."""

    fixes = frozenset({"gamma"})

    gamma: float = setting(1.0, "g: how much of a step comes from the state before the last; 1 is symmetric", low=0.01,
                           high=1)


class BDIA(Method[Settings]):
    """Exact diffusion inversion by bi-directional integration."""

    name, title, paper = "bdia", "BDIA", "2307.10829"
    about = "inverts to rounding at DDIM's own cost; follows the target prompt, and nothing else holds the picture"
    good_at = "giving the picture back to rounding at DDIM's own price"
    reads = frozenset({"source", "target", "negative"})
    presets = {"published": PUBLISHED}
    calls = "3 strength N - 2; 4 strength N - 2 with guided_from=empty"

    def edges(self, model: "Backbone", settings: Settings, size: tuple[int, int]) -> tuple["kit.Edges", "kit.Edges"]:
        return exact.part_way(model, settings, super().edges(model, settings, size))

    def notes(self, settings: Settings, plan: "Plan") -> tuple[str, ...]:
        if settings.taken > 1:
            return plan.notes
        return (*plan.notes, "the first step back is the inversion's last, and there is no other: the picture comes "
                             "back as it is; give more steps, or a larger strength")

    # ---- the way to noise

    def inversion(self, settings: Settings) -> str:
        return "bdia"

    def invert(self, job: "Job[Settings]") -> "kit.Trajectory":
        latents, before, z, cleaner = [job.z0], job.z0.double(), job.z0.double(), None
        for here, there in job.up:
            with exact.precise(job):
                seen = exact.guided(job, z, here, job.source).double()
            reached = kit.renoise(seen, there)
            if cleaner is not None:
                reached = (before - kit.renoise(seen, cleaner)) / job.settings.gamma + reached
            before, z, cleaner = z, reached, here
            latents.append(z.to(job.z0.dtype))
            job.report("invert", len(latents) - 1, len(job.up))
        return kit.Pair(origin=None, latents=tuple(latents), states=(z, before))  # type: ignore[arg-type]

    # ---- the way back

    def back(self, job: "Job[Settings]", path: "kit.Trajectory") -> "Iterator[Tensor]":
        return (step.z for step in self._sampled(job, path, job.source))

    def edit(self, job: "Job[Settings]", path: "kit.Trajectory") -> Iterator[Step]:
        return self._sampled(job, path, job.target)

    def _sampled(self, job: "Job[Settings]", path: "kit.Trajectory", text: "kit.Text") -> Iterator[Step]:
        g, (noisier, z) = job.settings.gamma, exact.states(path, job.z0)
        for i, (here, there) in enumerate(job.down):
            seen = None
            if i:
                with exact.precise(job):
                    above, seen = job.down[i - 1][0], exact.guided(job, z, here, text).double()
                noisier, z = z, g * (noisier - kit.renoise(seen, above)) + kit.renoise(seen, there)
            yield Step(i, z.to(job.z0.dtype), here, guided=seen)
