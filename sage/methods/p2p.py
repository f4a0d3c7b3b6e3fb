"""Prompt-to-prompt: the target looks where the source looks (Hertz et al. 2208.01626), on a real picture.

    M_target <- c a f(M_source, M_target) + (1 - a) M_target    cross-attention; f by word swap or refinement, c by word
    M_target <- M_source                                        self-attention, but for the finest
    z_target <- z_source + m (z_target - z_source)              m where both prompts' marked words are looked at

a is 1 in a window of the steps, of all tokens or of single words (sage.guidance.injection).  How the source branch is
held to the picture is a setting of its own (sage.inversion.anchors).
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sage import kit
from sage.errors import SettingsError
from sage.guidance.injection import Carried, Injection, planned
from sage.inversion import anchors
from sage.method import LOSS, Method, Step
from sage.settings import AUTO, Blending, Phrases, Picture, Preserved, Words, frozen, setting

if TYPE_CHECKING:
    from sage.job import Job
    from sage.models.backbone import Backbone
    from sage.prompts.plan import Plan
    from sage.prompts.tokens import Prompt, Prompts

PUBLISHED = dict(steps=50, guidance_scale=7.5, conventions="published", cross_fraction=0.4, self_fraction=0.6,
                 reweight_steps="window", blend=None, blend_match="words", proximal_hold="none", fit="crop",
                 quantise="truncate")


@frozen
class Settings(Injection, Words, anchors.Anchored, Blending, Preserved, Picture):
    """Blending."""

    cross_level: int = setting(2, "halvings of the latents at which cross-attention is read for the blending mask",
                               low=0, high=8)
    blend_start: float = setting(0.2, "share of the steps before blending", low=0, high=1)
    blend_fraction: float = setting(1.0, "share of the steps after which there is no blending", low=0, high=1)
    blend_except: Phrases = setting(None, "phrases that mark where the picture may not change: none, or SOURCE,TARGET")
    except_threshold: float = setting(0.3, "attention to them, relative to its maximum, above which a place is spared",
                                      low=0, high=1)

    def blends_at(self, step: int) -> bool:
        return self._steps(self.blend_start) <= step < self._steps(self.blend_fraction)


class PromptToPrompt(Method[Settings]):
    """Prompt-to-prompt."""

    name, title, paper = "p2p", "Prompt-to-prompt", "2208.01626"
    about = "keeps the source's composition by its attention maps, as long as both prompts say alike"
    good_at = "swapping, adding and weighting words in the same composition"
    reads = frozenset({"source", "target", "negative"})
    presets = {"published": PUBLISHED}
    keep = "self_fraction"
    calls = ("5 N; 4 N with negative, proximal or direct inversion; N rounds + 3 N + 1, some 7 N, with fixed-point; 17 "
             "N at most and 10 N ways back with null-text")
    beside = (*(name for name in anchors.INVERSIONS if name != "ddim"), LOSS)

    def defaults(self, model: "Backbone") -> Settings:
        sites = model.sites()
        return Settings(cross_level=min(2, sites.deepest("cross")), preserve_level=min(1, sites.deepest("self")))

    def fits(self, model: "Backbone") -> str:
        return "" if any(site.kind == "cross" for site in model.sites()) else "it has no cross-attention"

    def worded(self, settings: Settings) -> bool:
        return True

    def plan(self, prompts: "Prompts", source: "Prompt", target: "Prompt", settings: Settings) -> "Plan":
        from dataclasses import replace
        plan, s = planned(super().plan(prompts, source, target, settings), prompts, settings), settings
        if s.blend_except == AUTO:
            raise SettingsError("blend_except is auto: give the phrases that mark what may not change, or none")
        kept = s.blend_except and kit.marked(prompts, source, target, s.blend_except, s.blend_match == "words")
        return replace(plan, kept=kept or None)

    # ---- the way to noise

    def inversion(self, settings: Settings) -> str:
        return settings.way

    def edges(self, model: "Backbone", settings: Settings, size: tuple[int, int]) -> tuple["kit.Edges", "kit.Edges"]:
        return anchors.edges(model, settings) or super().edges(model, settings, size)

    def invert(self, job: "Job[Settings]") -> "kit.Trajectory":
        return anchors.invert(job)

    # ---- the way back

    def edit(self, job: "Job[Settings]", path: "kit.Trajectory") -> Iterator[Step]:
        s, held, carried = job.settings, anchors.anchor(job, path), Carried(job)
        blend = kit.BlendingMask.of_job(job, path.noise, kept=s.except_threshold)
        preservation = kit.Preservation(job, len(job.down))
        source = target = path.noise
        for i, (here, there) in enumerate(job.down):
            branches = held.branches(i, source, target)
            with carried.at(i, branches), blend.listen() as tap:
                found = job.together(here, **branches)
            blend.add(tap, *branches)
            blend.add_difference(found["target"].eps - found["source"].eps)
            left, guided = held.guided(found, here)
            pull = preservation.pull(i, here, source, target)
            source, target = held.hold(i, here, kit.renoise(left, there), kit.renoise(guided, there) - pull)
            m = blend.at(target) if blend.used and s.blends_at(i) else None
            if m is not None:
                target = m * target + (1 - m) * source
            yield Step(i, target, here, found["source"], found["target"], guided, mask=m)
