"""Classifier-free guidance and nothing else.

From inverted noise it is the floor that every editing method stands on, from fresh noise a picture of the prompt.

    invert   z0 -> z_T under the source prompt (Song et al. 2010.02502, sec. 4.3)
    sample   eps = eps_negative + w (eps_target - eps_negative)          (Ho & Salimans 2207.12598, eq. 6)
"""

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from sage import kit
from sage.method import Method, Step
from sage.settings import Guidance, Picture, Stochastic, frozen, setting

if TYPE_CHECKING:
    from torch import Tensor

    from sage.job import Job
    from sage.models.backbone import Text


@frozen
class Settings(Guidance, Stochastic, Picture):
    """Guidance."""

    negative: str = setting("source", "what guidance leads away from: the source prompt, as in negative-prompt "
                            "inversion, or the empty one", "source", "empty")


class Plain(Method[Settings]):
    """Classifier-free guidance from inverted noise, or from fresh noise."""

    name, title, paper = "plain", "Classifier-free guidance", "2207.12598"
    about = "follows the prompt from the noise that a picture was inverted to, or from fresh noise; keeps nothing else"
    good_at = "telling what guidance does by itself: a baseline"
    reads = frozenset({"source", "target", "negative"})
    calls = "3 N, 2 N at guidance_scale 1"
    of_pictures = Method.of_pictures | {"negative"}
    generates = True

    def random(self, settings: Settings) -> bool:
        return self.draws(settings) or settings.eta > 0

    def edit(self, job: "Job[Settings]", path: "kit.Trajectory") -> Iterator[Step]:
        if job.settings.negative == "source":
            return self._sampled(job, path.noise, job.source, "source")
        return self._sampled(job, path.noise, job.empty, "empty")

    def generate(self, job: "Job[Settings]") -> Iterator[Step]:
        return self._sampled(job, job.z0, job.empty, "empty")

    def _sampled(self, job: "Job[Settings]", z: "Tensor", negative: "Text", name: str) -> Iterator[Step]:
        s, w = job.settings, job.settings.guidance_scale
        for i, (here, there) in enumerate(job.down):
            source = target = None
            if w == 1 or job.model.distilled:
                guided = target = job.cfg(z, here, job.target, negative, w)
            else:
                both = job.together(here, **{name: (z, negative), "target": (z, job.target)})
                source, target = both.get("source"), both["target"]
                guided = kit.classifier_free(both[name], target, w)
            z = kit.stochastic(guided, here, there, s.eta, partial(job.noise, i))
            yield Step(i, z, here, source, target, guided)
