"""What an edit does to the attention, worked out from its two prompts."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sage.errors import PromptError
from sage.guidance.rewrites import check_counts
from sage.prompts.tokens import Prompt, Prompts, Span
from sage.settings import AUTO, Blending, Phrases, Reweighting, Settings


@dataclass(frozen=True)
class Plan:
    """What one edit does to the attention, in token positions of its two prompts.

    Attributes:
        replace: spans whose cross-attention the target takes over from the source.
        blend: tokens that mark where the picture may change, or None for everywhere.
        factors: token position in the target prompt -> factor on its cross-attention.
        edited: spans in which the prompts differ.
        aligned: for each token of the target the position of the source token that it is, -1 where it is new.
        windows: token positions in the target prompt with the shares of the steps between which alone they are carried.
        kept: tokens that mark where the picture may not change, whatever `blend` marks.
        notes: what was left out by itself, and why, for people to read.
    """

    source: Prompt
    target: Prompt
    replace: tuple[Span, ...] = ()
    blend: Span | None = None
    factors: tuple[tuple[int, float], ...] = ()
    edited: tuple[Span, ...] = ()
    aligned: tuple[int, ...] = ()
    windows: tuple[tuple[int, float, float], ...] = ()
    kept: Span | None = None
    notes: tuple[str, ...] = ()


def parse_pair(prompts: Prompts, source: str, target: str, truncate: bool = False) -> tuple[Prompt, Prompt]:
    """Both prompts as tokens; PromptError for one that is empty or too long."""
    pair = prompts.parse(source, truncate), prompts.parse(target, truncate)
    for name, prompt in zip(("source", "target"), pair, strict=True):
        if not prompt.text:
            raise PromptError(f"the {name} prompt is empty: describe the picture in a few words")
    return pair


def make_plan(prompts: Prompts, source: Prompt, target: Prompt, settings: Settings) -> Plan:
    """What differs between the prompts, and what the settings that methods share say of their words.

    Raises:
        PromptError: a phrase that is not in its prompt.
    """
    spans, notes, blend = prompts.differences(source, target), list[str](), None
    if isinstance(settings, Blending):
        blend = _blend(prompts, source, target, settings, spans, notes)
    factors = _factors(prompts, target, settings, notes) if isinstance(settings, Reweighting) else {}
    return Plan(source, target, (), blend, tuple(sorted(factors.items())), tuple(spans), notes=tuple(notes))


def places(prompts: Prompts, prompt: Prompt, phrase: str, whole_words: bool) -> tuple[int, ...]:
    """Where a phrase stands in a prompt, all its occurrences.

    Args:
        whole_words: it is a word split at spaces, and may be absent.
    Raises:
        PromptError: it is made of tokens that are not there.
    """
    return prompts.find_word(prompt, phrase) if whole_words else prompts.find(prompt, phrase, every=True)


def replaced(prompts: Prompts, plan: Plan, phrases: Phrases) -> tuple[tuple[Span, ...], tuple[str, ...]]:
    """The spans whose attention the target takes over, and what had to be left out.

    Raises:
        PromptError: a phrase that was named and is not in its prompt, or cannot be replaced by its pair.
    """
    if phrases == AUTO:
        spans, notes = [], []
        for span in plan.edited:
            if span.source and span.target:
                try:
                    check_counts(span)
                    spans.append(span)
                except PromptError as error:
                    notes.append(f"cross-attention replacement is off for one phrase: {error}")
        return tuple(spans), tuple(notes)
    if not phrases:
        return (), ()
    span = Span(prompts.find(plan.source, phrases[0]), prompts.find(plan.target, phrases[1]))
    check_counts(span)
    return (span,), ()


def _factors(prompts: Prompts, target: Prompt, settings: Reweighting, notes: list[str]) -> dict[int, float]:
    factors: dict[int, float] = {}
    for phrase, factor in settings.reweight.items():
        found = places(prompts, target, phrase, settings.whole_words)
        factors |= dict.fromkeys(found, factor)
        if not found:
            notes.append(f"{phrase!r} is no word of the target prompt as it is split at spaces: its factor counts for "
                         "nothing")
    return factors


def _blend(prompts: Prompts, source: Prompt, target: Prompt, settings: Blending, spans: Sequence[Span],
           notes: list[str]) -> Span | None:
    phrases, words = settings.blend, settings.blend_match == "words"
    if not phrases:
        return None
    if phrases == AUTO:
        blend = Span(tuple(p for span in spans for p in span.source), tuple(p for span in spans for p in span.target))
    else:
        blend = marked(prompts, source, target, phrases, words)
    if blend.source or blend.target:
        return blend
    if phrases != AUTO and words:
        notes.append("neither blending word is in its prompt: while blending, nothing may change")
        return blend
    if phrases != AUTO:
        notes.append("blending is off: both phrases are empty")
    return None


def marked(prompts: Prompts, source: Prompt, target: Prompt, phrases: tuple[str, str], words: bool) -> Span:
    """Where a pair of phrases stands in the two prompts.

    Args:
        words: they are whole words split at spaces, each to be marked, and may be absent; else tokens that must be
            there, but an empty phrase stands for a thing that only the other prompt names.
    """
    if words:
        return Span(*(tuple(sorted({p for word in phrase.split() for p in prompts.find_word(prompt, word)}))
                      for prompt, phrase in zip((source, target), phrases, strict=True)))
    return Span(*(prompts.find(p, phrase, every=True) if phrase else ()
                  for p, phrase in zip((source, target), phrases, strict=True)))


def token_factors(plans: Sequence[Plan], length: int) -> Tensor | None:
    """(B, M) factors on the target prompts' tokens, None if nothing is reweighted."""
    if not any(plan.factors for plan in plans):
        return None
    factors = torch.ones(len(plans), length)
    for row, plan in enumerate(plans):
        for position, factor in plan.factors:
            factors[row, position] = factor
    return factors


def token_mask(positions: Sequence[Sequence[int]], length: int) -> Tensor:
    """(B, M) in {0, 1}: the tokens at these positions, a row a picture."""
    mask = torch.zeros(len(positions), length)
    for row, tokens in enumerate(positions):
        mask[row, list(tokens)] = 1.0
    return mask
