"""FlowEdit: the picture moves as two predictions differ, and never becomes noise (Kulikov et al. 2412.08629, alg. 1).

    z_s = s x + n eps                               the picture under fresh noise
    z_t = z_s + (z - x)                             the edit so far under the same
    z <- z + (s' - s) d_x0 + (n' - n) d_eps         d = prediction(z_t, target) - prediction(z_s, source)

The paper has flows: there s' - s = t - t' and n' - n = t' - t, and the last line is z + (t' - t) (v_t - v_s).  For any
other path of s and n it is the DDIM step of what lies between the two, for z_t - z_s = s d_x0 + n d_eps.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sage import kit
from sage.method import LOSS, Step, Uninverted
from sage.settings import FlowGuidance, Picture, Preserved, Solver, Span, frozen, setting, share_of

if TYPE_CHECKING:
    from torch import Tensor

    from sage.job import Job
    from sage.models.backbone import Backbone

PUBLISHED = dict(steps=28, strength=24 / 28, source_guidance_scale=1.5, guidance_scale=5.5,
                 guidance_by="input")
SD3 = PUBLISHED | dict(steps=50, strength=33 / 50, source_guidance_scale=3.5, guidance_scale=13.5,
                       guidance_by="passes")


@frozen
class Settings(FlowGuidance, Preserved, Solver, Picture):
    """Strength."""

    strength: float = setting(0.66, "share of the steps that are taken, the last of them: the more, the more may "
                              "change", low=0, high=1, search=Span(0.3, 1.0))
    source_guidance_scale: float = setting(1.0, "how strongly the source prompt is followed", low=0, high=100)
    averages: int = setting(1, "noises under which the picture moves in each step, of which the mean is taken", low=1,
                            high=100)
    sampled_fraction: float = setting(0.0, "share of the steps, the last of them, in which the edit is sampled under "
                                      "the target prompt alone", low=0, high=1)


class FlowEdit(Uninverted[Settings]):
    """FlowEdit."""

    name, title, paper = "flowedit", "FlowEdit", "2412.08629"
    about = "moves the picture by what two predictions differ by, without inversion; keeps all that both agree on"
    good_at = "keeping the rest without inversion, on diffusions and flows: level with SAGE, and a little less done"
    reads = frozenset({"source", "target", "negative", "mask"})
    presets = {"published": PUBLISHED, "sd3": SD3}
    calls = "3 strength N; 4 strength N with source_guidance_scale above 1; as often for each of the averages"
    keep = "preserve_scale"
    beside = (LOSS,)
    strength = "strength"

    def defaults(self, model: "Backbone") -> Settings:
        return Settings(preserve_level=min(1, model.sites().deepest("self")))

    def edit(self, job: "Job[Settings]", path: "kit.Trajectory") -> Iterator[Step]:
        s, picture = job.settings, path.latents[0]
        edges = job.down[s.steps - share_of(s.strength, s.steps):]
        moving = len(edges) - share_of(s.sampled_fraction, s.steps)
        preservation, z = kit.Preservation(job, moving), picture
        for i, (here, there) in enumerate(edges[:max(moving, 0)]):
            moves = []
            for a in range(s.averages):
                noise = job.noise(i, a)
                source_z = kit.renoise(kit.Prediction(picture, noise), here)
                source = job.cfg(source_z, here, job.source, job.empty, s.source_guidance_scale, "source")
                target = job.cfg(source_z + (z - picture), here, job.target, job.empty, s.guidance_scale)
                moves.append(target - source)
            change = sum(moves[1:], moves[0]) * (1 / s.averages)
            pull = preservation.pull(i, here, source_z, source_z + (z - picture))
            z = job.confined(z + kit.advance(change, here, there) - pull, picture)
            yield Step(i, z, here, source, target, kit.Prediction(picture, noise) + change, mask=job.mask)
        if s.sampled_fraction:
            yield from self._sampled(job, z, picture, max(moving, 0), edges)

    def _sampled(self, job: "Job[Settings]", z: "Tensor", picture: "Tensor", done: int,
                 edges: "kit.Edges") -> Iterator[Step]:
        """The last steps: the edit is noised, and sampled under the target prompt."""
        noise = job.noise(done)
        known = kit.Prediction(picture, noise)
        for i, (here, there) in enumerate(edges[done:], start=done):
            if i == done:
                z = kit.renoise(known, here) + (z - picture)
            guided = job.cfg(z, here, job.target, job.empty, job.settings.guidance_scale)
            z = job.confined(kit.renoise(guided, there), kit.renoise(known, there))
            yield Step(i, z, here, guided=guided, mask=job.mask)
