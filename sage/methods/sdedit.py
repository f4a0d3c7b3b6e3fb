"""SDEdit: noise the picture part of the way, and let the target prompt take it back (Meng et al. 2108.01073, alg. 1).

    z_k = s_k z0 + n_k eps,   k = strength N,   eps ~ N(0, I)

No way to noise is followed: the noise is drawn, and what it covers is forgotten.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sage import kit
from sage.method import Step, Uninverted
from sage.settings import Guidance, Picture, Solver, Span, frozen, setting, share_of

if TYPE_CHECKING:
    from sage.job import Job

PUBLISHED = dict(steps=50, strength=0.8, guidance_scale=7.5, conventions="published", encode="sample")


@frozen
class Settings(Guidance, Solver, Picture):
    """Strength."""

    strength: float = setting(0.6, "share of the way to noise that the picture is taken: 0 leaves it as it is, 1 "
                              "leaves nothing of it", low=0, high=1,
                              search=Span(0.2, 0.9))
    conventions: str = setting("consistent", "how many steps a share of them is: consistent, or as in diffusers' "
                               "pipeline from picture to picture", "consistent", "published")

    @property
    def sampled_steps(self) -> int:
        """How many steps there are."""
        return (int(self.strength * self.steps) if self.conventions == "published" else
                share_of(self.strength, self.steps))


class SDEdit(Uninverted[Settings]):
    """SDEdit."""

    name, title, paper = "sdedit", "SDEdit", "2108.01073"
    about = "noises the picture and denoises it under the target prompt; the floor of every table of editing methods"
    good_at = "telling what noise does by itself: a baseline"
    reads = frozenset({"target", "negative"})
    presets = {"published": PUBLISHED}
    calls = "2 strength N"
    strength = "strength"

    def edit(self, job: "Job[Settings]", path: "kit.Trajectory") -> Iterator[Step]:
        s, z0 = job.settings, path.latents[0]
        edges = job.down[len(job.down) - s.sampled_steps:]
        if edges:
            tag = (0,) if s.encode == "sample" else ()  # the numbers of the seed itself are the encoder's
            z = kit.renoise(kit.Prediction(z0, job.noise(*tag)), edges[0][0])
        for i, (here, there) in enumerate(edges):
            guided = job.cfg(z, here, job.target, job.empty, s.guidance_scale)
            z = kit.renoise(guided, there)
            yield Step(i, z, here, guided=guided)
