"""Attention that a target branch takes from a source branch: prompt-to-prompt's injection (Hertz et al. 2208.01626).

    M_target <- c a f(M_source, M_target) + (1 - a) M_target    cross-attention; f by word swap or refinement, c by word
    M_target <- M_source                                        self-attention, but for the finest

a is 1 in a window of the steps, of all tokens or of single words.  `p2p` does it on a way back from an inversion,
others on noises of their own.
"""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Any

from sage import kit
from sage.settings import Factors, Reweighting, Solver, Span, frozen, setting, share_of

if TYPE_CHECKING:
    from sage.job import Job
    from sage.prompts.plan import Plan
    from sage.prompts.tokens import Prompts


@frozen
class Injection(Reweighting, Solver):
    """Attention."""

    carry: str = setting("refine", "whose cross-attention the target takes: that of the tokens that both prompts have, "
                         "or word by word of prompts with equally many", "refine", "replace")
    cross_start: float = setting(0.0, "share of the steps before cross-attention is carried over", low=0, high=1)
    cross_fraction: float = setting(0.4, "share of the steps after which it no longer is", low=0, high=1,
                                    search=Span(0.0, 1.0))
    word_starts: Factors = setting({}, "the same for single phrases of the target prompt: WORD:SHARE,...",
                                   low=0, high=1)
    word_fractions: Factors = setting({}, "the same for single phrases of the target prompt: WORD:SHARE,...",
                                      low=0, high=1)
    self_start: float = setting(0.0, "share of the steps before self-attention is carried over", low=0, high=1)
    self_fraction: float = setting(0.6, "share of the steps after which it no longer is", low=0, high=1,
                                   search=Span(0.0, 1.0))
    self_level: int = setting(1, "halvings of the latents from which on self-attention is carried over", low=0, high=8)
    reweight_steps: str = setting("all", "steps with reweighting: all, or those in which a token's attention is "
                                  "carried over", "all", "window")

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
