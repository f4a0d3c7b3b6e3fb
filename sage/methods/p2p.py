"""Prompt-to-prompt: the target looks where the source looks (Hertz et al. 2208.01626), on a real picture.

    M_target <- c a f(M_source, M_target) + (1 - a) M_target    cross-attention; f by word swap or refinement, c by word
    M_target <- M_source                                        self-attention, but for the finest
    z_target <- z_source + m (z_target - z_source)              m where both prompts' marked words are looked at

a is 1 in a window of the steps, of all tokens or of single words.  How the source branch is held to the picture is a
setting of its own (sage.inversion.anchors).
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Any

from sage import kit
from sage.errors import SettingsError
from sage.inversion import anchors
from sage.method import LOSS, Method, Step
from sage.settings import (
    AUTO,
    Blending,
    Factors,
    Phrases,
    Picture,
    Preserved,
    Reweighting,
    Solver,
    Span,
    Words,
    frozen,
    setting,
    share_of,
)

if TYPE_CHECKING:
    from sage.job import Job
    from sage.models.backbone import Backbone
    from sage.prompts.plan import Plan
    from sage.prompts.tokens import Prompt, Prompts

PUBLISHED = dict(steps=50, guidance_scale=7.5, conventions="published", cross_fraction=0.4, self_fraction=0.6,
                 reweight_steps="window", blend=None, blend_match="words", proximal_hold="none", fit="crop",
                 quantise="truncate")


@frozen
class Injection(Reweighting, Solver):
    """Attention."""

    carry: str = setting("refine", "whose cross-attention the target takes: that of the tokens that both prompts have, "
                         "or word by word of prompts with equally many", "refine", "replace")
    cross_start: float = setting(0.0, "share of the steps before cross-attention is carried over", low=0, high=1)
    cross_fraction: float = setting(0.4, "share of the steps after which it no longer is", low=0, high=1,
                                    search=Span(0.0, 1.0))
    word_starts: Factors = setting({}, "the same for single phrases of the target prompt: WORD:SHARE,...")
    word_fractions: Factors = setting({}, "the same for single phrases of the target prompt: WORD:SHARE,...")
    self_start: float = setting(0.0, "share of the steps before self-attention is carried over", low=0, high=1)
    self_fraction: float = setting(0.6, "share of the steps after which it no longer is", low=0, high=1,
                                   search=Span(0.0, 1.0))
    self_level: int = setting(1, "halvings of the latents from which on self-attention is carried over", low=0, high=8)
    reweight_steps: str = setting("all", "steps with reweighting: all, or those in which a token's attention is "
                                  "carried over", "all", "window")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("word_starts", "word_fractions"):
            if wrong := [word for word, share in getattr(self, name).items() if share > 1]:
                raise SettingsError(f"{name} is {getattr(self, name)[wrong[0]]:g} for {wrong[0]!r}: must be at most 1")

    def cross_window(self, start: float, end: float) -> range:
        """The steps with cross-attention carried over; the original code has a row too many in its table of them."""
        rows = self.steps + 1
        return range(int(start * rows), min(int(end * rows), self.steps)) if self.published else (
            self._between(start, end))

    @property
    def self_window(self) -> range:
        """The steps with self-attention carried over."""
        return self._between(self.self_start, self.self_fraction)

    @property
    def published(self) -> bool:
        """Whether steps are counted as in the original code."""
        return self.conventions == "published"  # type: ignore[attr-defined]

    @property
    def whole_words(self) -> bool:
        """Whether phrases are words split at spaces, as in the original code: in "a cat, asleep" there is no "cat"."""
        return self.published

    @property
    def sampled_steps(self) -> int:
        """How many steps of sampling there are, of which shares are meant."""
        return self.steps

    def _between(self, start: float, end: float) -> range:
        return range(self._steps(start), self._steps(end))

    def _steps(self, share: float) -> int:
        return int(share * self.steps) if self.published else share_of(share, self.sampled_steps)


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


def planned(plan: "Plan", prompts: "Prompts", s: Injection) -> "Plan":
    """A plan with what is carried over between its prompts; PromptError for phrases that are not in the target."""
    from dataclasses import replace
    source, target, notes = plan.source, plan.target, list[str]()
    changed = kit.changed_words(prompts, source, target) if s.carry == "replace" else ()
    if changed is None:
        notes.append("the prompts have not equally many words, and cannot be replaced word by word: the attention "
                     "of the tokens that both have is carried over")
    windows = {p: (s.word_starts.get(phrase, 0.0), s.word_fractions.get(phrase, s.cross_fraction))
               for phrase in {**s.word_starts, **s.word_fractions}
               for p in kit.places(prompts, target, phrase, s.whole_words)}
    return replace(plan, replace=changed or (), windows=tuple((p, *w) for p, w in windows.items()),
                   notes=(*plan.notes, *notes),
                   aligned=kit.aligned(prompts.tokens(source), prompts.tokens(target), len(target.ids)))


class Carried:
    """The attention that the target branch takes from the source branch, step by step."""

    def __init__(self, job: "Job[Any]"):
        import torch
        s, sites, length = job.settings, job.model.sites(), job.target.tokens.shape[1]
        self.s, self.device = s, job.z0.device
        self.cross = kit.Sites(site for site in sites if site.kind == "cross")
        self.selfs = kit.Sites(site for site in sites if site.kind == "self" and site.level >= s.self_level)
        maps = [kit.word_swap(plan.replace, length, shifted=not s.published) if plan.replace else
                kit.refinement(plan.aligned, length) for plan in job.plans]
        self.carry, self.keep = (torch.stack(part).to(self.device) for part in zip(*maps, strict=True))
        self.factors = torch.ones_like(self.keep) if job.factors is None else job.factors
        self.windows = [self._windows(plan, length) for plan in job.plans]

    def align(self, alignments: "Sequence[Sequence[int]]") -> None:
        """Refine by other alignments than the plans', one a picture."""
        import torch
        maps = [kit.refinement(aligned, self.keep.shape[1]) for aligned in alignments]
        self.carry, self.keep = (torch.stack(part).to(self.device) for part in zip(*maps, strict=True))

    def at(self, step: int, branches: Iterable[str]) -> AbstractContextManager[Any]:
        """Context around the pass of a step, in which the target's maps are made from the source's."""
        names = tuple(branches)
        stack = self.words_at(step, names)
        if step in self.s.self_window:
            stack.enter_context(kit.between(self.selfs, names, lambda maps, site: {"target": maps["source"]}))
        return stack

    def words_at(self, step: int, branches: Iterable[str]) -> ExitStack:
        """The same for cross-attention alone."""
        import torch
        stack, names = ExitStack(), tuple(branches)
        window = torch.tensor([[float(step in steps) for steps in row] for row in self.windows], device=self.device)
        inside = window * self.factors
        outside = (1 - window) * (self.factors if self.s.reweight_steps == "all" else 1)
        carry, keep = self.carry * inside[:, None], self.keep * inside + outside
        if window.any() or not (keep == 1).all():
            stack.enter_context(kit.between(self.cross, names, lambda maps, site: {
                "target": kit.replace_columns(maps["target"], maps["source"], carry, keep)}))
        return stack

    def _windows(self, plan: "Plan", length: int) -> list[range]:
        """For each token of the target the steps in which its attention is carried over."""
        s, of_words = self.s, {p: (start, end) for p, start, end in plan.windows}
        return [s.cross_window(*of_words.get(p, (s.cross_start, s.cross_fraction))) for p in range(length)]
