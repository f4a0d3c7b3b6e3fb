"""UniEdit-Flow: an inversion that looks ahead, and guidance where two predictions differ (Jiao et al. 2504.13109).

    up     z~ = z + step(v_last),  z <- z + step(v(z~, t'))      the prediction is that of where the step ends
    down   v = m v_t + (1 - m) v_s + omega (1 + m) (v_t - v_s)   both at the same latents
           m = |v_t - v_s|, mean over channels, from 0 at its least to 1 at its greatest place

All of it in the last share alpha of the steps.  v is whatever the network gives: the velocity of a flow, or the noise
that a diffusion predicts, as in the authors' code for those.  The preset "published" is of that, "flow" of theirs for
flows.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sage import kit
from sage.inversion.uni import uni_inversion
from sage.method import Method, Step
from sage.settings import Picture, Solver, Span, frozen, setting, share_of

if TYPE_CHECKING:
    from torch import Tensor

    from sage.job import Job
    from sage.models.backbone import Backbone
    from sage.prompts.tokens import Prompt, Prompts

PUBLISHED = dict(steps=15, strength=0.6, guidance_scale=5.0, source_text="empty", mask_sign="kept",
                 conventions="published")
FLOW = dict(steps=15, strength=0.6, guidance_scale=5.0, source_text="empty", conventions="tokens",
            quantise="truncate")


@frozen
class Settings(Solver, Picture):
    """Guidance."""

    fixes = frozenset({"strength", "source_text", "conventions"})

    strength: float = setting(0.6, "alpha: share of the way to noise that the picture is taken, the more, the more may "
                              "change", low=0, high=1, search=Span(0.3, 1.0))
    guidance_scale: float = setting(5.0, "omega: how strongly the edit is led from the source prompt to the target "
                                    "prompt, beside following it", low=0, high=100, search=Span(1, 8, log=True))
    source_text: str = setting("source", "what the picture is inverted under: the source prompt, or the empty one",
                               "source", "empty")
    mask_sign: str = setting("ignored", "whether places where the prediction falls count as those where it rises do, "
                             "or less than those where it stays, as in the code for diffusions", "ignored", "kept")
    conventions: str = setting("consistent", "the level that the inversion sets out from, and how many steps are "
                               "taken: consistent, or as in the original code for diffusions, or in that for flows, "
                               "where predictions differ by tokens", "consistent", "published", "tokens")

    @property
    def taken(self) -> int:
        """How many steps are taken, each way."""
        if self.conventions == "tokens":
            return round(self.strength * self.steps)
        return int(self.strength * self.steps) if self.conventions == "published" else (
            share_of(self.strength, self.steps))


class UniEdit(Method[Settings]):
    """UniEdit-Flow."""

    name, title, paper = "uni-edit", "UniEdit-Flow", "2504.13109"
    about = "inverts with foresight and edits where predictions differ most; few calls, and little changes elsewhere"
    good_at = "small changes at few calls, on diffusions and flows"
    reads = frozenset({"source", "target", "mask"})
    presets = {"published": PUBLISHED, "flow": FLOW}
    calls = "3 strength N + 1"
    strength = "strength"

    # ---- the way to noise

    def inversion(self, settings: Settings) -> str:
        return "uni" + (", empty prompt" if settings.source_text == "empty" else "")

    def inverted_under(self, settings: Settings, source: "Prompt", prompts: "Prompts") -> "Prompt":
        return prompts.parse("") if settings.source_text == "empty" else source

    def edges(self, model: "Backbone", settings: Settings, size: tuple[int, int]) -> tuple["kit.Edges", "kit.Edges"]:
        up, down = super().edges(model, settings, size)
        if settings.conventions == "published":
            down = kit.of_timesteps(model, "ahead")(settings.steps, settings.spacing)[1]
            levels = [here for here, _ in reversed(down)]
            up = kit.upwards((kit.Level(0, 1.0, 0.0), *levels))  # the picture has no noise on the way up
        return kit.part_way((up, down), settings.taken)

    def invert(self, job: "Job[Settings]") -> "kit.Trajectory":
        text = job.empty if job.settings.source_text == "empty" else job.source
        published = job.settings.conventions == "published"
        # In the original code the first look ahead is not as far as the first step goes.
        first = job.down[-1][1] if published and job.down else None
        return uni_inversion(job, lambda z, level: job.cfg(z, level, text, job.empty, 1.0, "source"), first, published)

    # ---- the way back

    def edit(self, job: "Job[Settings]", path: "kit.Trajectory") -> Iterator[Step]:
        s, z = job.settings, path.noise
        patch = getattr(getattr(job.model.schedule, "params", None), "patch", 1) if s.conventions == "tokens" else 1
        for i, (here, there) in enumerate(job.down):
            source = job.cfg(z, here, job.source, job.empty, 1.0, "source")
            target = job.cfg(z, here, job.target, job.empty, 1.0)
            change = target - source
            m = _strength(kit.to_output(change, here, job.model.prediction_type), s, patch)
            guided = source + (m + s.guidance_scale * (1 + m)) * change
            z = job.confined(kit.renoise(guided, there), path.latents[-2 - i])
            yield Step(i, z, here, source, target, guided, mask=job.mask)


def _strength(change: "Tensor", s: Settings, patch: int = 1) -> "Tensor":
    """(B, 1, h, w) in [0, 1], of what two outputs differ by; 0 if nothing does; of patch x patch latents one number."""
    m = (change if s.mask_sign == "kept" else change.abs()).mean(dim=1, keepdim=True)
    if patch > 1:
        from torch.nn.functional import avg_pool2d
        m = avg_pool2d(m, patch).repeat_interleave(patch, 2).repeat_interleave(patch, 3)
    least, most = m.amin(dim=(2, 3), keepdim=True), m.amax(dim=(2, 3), keepdim=True)
    span = most - least + (1e-7 if s.conventions == "published" else 0.0)
    return (m - least) / span.where(span > 0, 1.0)
