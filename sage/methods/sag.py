"""SAG: pictures from noise, led away from what the network makes of them blurred (Hong et al. 2210.00939).

Blurred are the places that it attends to.

    m  = [sum over queries of the mean over heads of A > 1]      A: the middle self-attention of the base branch
    x~ = m blur(x0_base) + (1 - m) x0_base,   z~ = s x~ + n eps_base
    o  = o_negative + w (o_target - o_negative) + scale (o_base - o(z~))                       (eq. 16 and 25)

o is what the network gives, noise or v.  The base is the negative branch, or the only one where w = 1.  All of it as in
diffusers' StableDiffusionSAGPipeline; no gradient is taken.
"""

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from sage import kit
from sage.errors import SettingsError
from sage.method import Method, Step
from sage.settings import Guidance, Output, Stochastic, frozen, setting

if TYPE_CHECKING:
    from torch import Tensor

    from sage.job import Job
    from sage.models.backbone import Backbone

TAPS, DEVIATION = 9, 1.0  # of the blur


@frozen
class Settings(Guidance, Stochastic, Output):
    """Guidance."""

    sag_scale: float = setting(0.75, "how strongly the picture is led away from itself blurred where the network "
                               "attends; 0 for not at all, up to 1 is advised", low=0, high=10)


class SAG(Method[Settings]):
    """Self-Attention Guidance."""

    name, title, paper = "sag", "Self-Attention Guidance (SAG)", "2210.00939"
    about = "makes pictures from noise, led away from themselves blurred where the network attends; edits none"
    good_at = "things that are better defined in pictures from nothing, without a prompt for it"
    reads = frozenset({"target", "negative"})
    presets = {"published": {"steps": 50, "guidance_scale": 7.5, "sag_scale": 0.75, "eta": 0.0}}
    calls = "3 N, 2 N at guidance_scale 1"
    edits, generates = False, True

    def fits(self, model: "Backbone") -> str:
        return "" if _middle(model) else "it has no self-attention in the middle"

    def random(self, settings: Settings) -> bool:
        return True

    def generate(self, job: "Job[Settings]") -> Iterator[Step]:
        s, z = job.settings, job.z0
        if s.sag_scale and min(z.shape[-2:]) <= TAPS // 2:
            raise SettingsError(f"latents of {z.shape[-1]} x {z.shape[-2]} are too small to be blurred: make a larger "
                                f"picture, of at least {TAPS // 2 + 1} latents a side")
        for i, (here, there) in enumerate(job.down):
            guided = _guided(job, z, here)
            z = kit.stochastic(guided, here, there, s.eta, partial(job.noise, i))
            yield Step(i, z, here, guided=guided)


def _guided(job: "Job[Settings]", z: "Tensor", level: "kit.Level") -> "kit.Prediction":
    model, s = job.model, job.settings
    w = s.guidance_scale if model.distilled else max(s.guidance_scale, 1.0)  # below 1 the prompt is followed plainly
    alone, middle = w == 1 or model.distilled, _middle(model) if s.sag_scale else ()
    with kit.listen(middle) as tap:
        if alone:
            base = mixed = job.cfg(z, level, job.target, job.empty, w)
        else:
            both = job.together(level, negative=(z, job.empty), target=(z, job.target))
            base, mixed = both["negative"], kit.classifier_free(both["negative"], both["target"], w)
    if not middle:
        return mixed
    queries, keys = tap.pop()[0]
    seen = kit.attended(kit.QueriesKeys(queries[:len(z)], keys[:len(z)]).map())
    mask = kit.resize(seen.unflatten(1, middle[0].grid(*z.shape[-2:]))[:, None], *z.shape[-2:])
    blurred = mask * kit.gaussian_blur(base.x0, TAPS, DEVIATION) + (1 - mask) * base.x0
    hidden = kit.renoise(kit.Prediction(blurred, base.eps), level)
    degraded = job.cfg(hidden, level, job.target, job.empty, w) if alone else job.predict(hidden, level, job.empty)

    def output(p: "kit.Prediction") -> "Tensor":
        return kit.to_output(p, level, model.prediction_type)

    return kit.from_output(z, output(mixed) + s.sag_scale * (output(base) - output(degraded)), level,
                           model.prediction_type)


def _middle(model: "Backbone") -> "tuple[kit.Site, ...]":
    """The first self-attention between the network's way down and its way up."""
    return tuple(site for site in model.sites() if site.kind == "self" and site.place == "mid")[:1]
