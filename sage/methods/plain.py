"""The target prompt from the inverted noise, and nothing else: the floor that every editing method stands on.

    invert   z0 -> z_T under the source prompt (Song et al. 2010.02502, sec. 4.3)
    sample   eps = eps_negative + w (eps_target - eps_negative)          (Ho & Salimans 2207.12598, eq. 6)
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sage import kit
from sage.method import Method, Step
from sage.settings import Guidance, Picture, Solver, frozen, setting

if TYPE_CHECKING:
    from sage.job import Job


@frozen
class Settings(Guidance, Solver, Picture):
    """Guidance."""

    negative: str = setting("source", "what guidance leads away from: the source prompt, as in negative-prompt "
                            "inversion, or the empty one", "source", "empty")


class Plain(Method[Settings]):
    """Classifier-free guidance from inverted noise."""

    name, title, paper = "plain", "Classifier-free guidance", "2207.12598"
    about = "follows the target prompt from the inverted noise; keeps of the picture what the noise holds of it"
    reads = frozenset({"source", "target", "negative"})
    calls = "3 N, 2 N at guidance_scale 1"

    def edit(self, job: "Job[Settings]", path: "kit.Trajectory") -> Iterator[Step]:
        s, w, z = job.settings, job.settings.guidance_scale, path.noise
        negative = job.source if s.negative == "source" else job.empty
        for i, (here, there) in enumerate(job.down):
            source = target = None
            if w == 1 or job.model.distilled:
                guided = target = job.cfg(z, here, job.target, negative, w)
            else:
                both = job.together(here, **{s.negative: (z, negative), "target": (z, job.target)})
                source, target = both.get("source"), both["target"]
                guided = kit.classifier_free(both[s.negative], target, w)
            z = kit.renoise(guided, there)
            yield Step(i, z, here, source, target, guided)
