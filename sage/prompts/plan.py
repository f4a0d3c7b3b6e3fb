"""What an edit does to the attention, worked out from its two prompts: `check_prompts`."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sage.config import AUTO, EditConfig
from sage.errors import PromptError
from sage.guidance.rewrites import check_counts
from sage.models.sd.model import Backbone
from sage.prompts.tokens import Prompt, Span


@dataclass(frozen=True)
class Plan:
    """What one edit does to the attention, in token positions of its two prompts.

    Attributes:
        replace: spans whose cross-attention the target takes over from the source.
        blend: tokens that mark where the picture may change, or None for everywhere.
        factors: token position in the target prompt -> factor on its cross-attention.
        edited: spans in which the prompts differ.
        notes: what was left out by itself, and why, for people to read.
    """

    source: Prompt
    target: Prompt
    replace: tuple[Span, ...] = ()
    blend: Span | None = None
    factors: tuple[tuple[int, float], ...] = ()
    edited: tuple[Span, ...] = ()
    notes: tuple[str, ...] = ()


def check_prompts(model: Backbone, source: str, target: str, config: EditConfig, truncate: bool = False) -> Plan:
    """Turn prompts and phrases into token positions.

    Raises:
        PromptError: a prompt is empty or too long, a phrase is not in its prompt, or cannot be replaced by its pair.
    """
    find = model.prompts
    a, b = find.parse(source, truncate), find.parse(target, truncate)
    for name, prompt in (("source", a), ("target", b)):
        if not prompt.text:
            raise PromptError(f"the {name} prompt is empty: describe the picture in a few words")
    spans, notes = find.differences(a, b), []
    if config.replace == AUTO:
        replaced = []
        for span in spans:
            if span.source and span.target:
                try:
                    check_counts(span)
                    replaced.append(span)
                except PromptError as error:
                    notes.append(f"cross-attention replacement is off for one phrase: {error}")
    elif config.replace:
        replaced = [Span(find.find(a, config.replace[0]), find.find(b, config.replace[1]))]
        check_counts(replaced[0])
    else:
        replaced = []

    blend = None
    if config.blend == AUTO:
        blend = Span(tuple(p for span in spans for p in span.source), tuple(p for span in spans for p in span.target))
    elif config.blend and config.blend_match == "words":
        blend = Span(find.find_word(a, config.blend[0]), find.find_word(b, config.blend[1]))
    elif config.blend:
        # An empty phrase stands for a thing that only the other prompt names.
        blend = Span(*(find.find(p, phrase, every=True) if phrase else ()
                       for p, phrase in zip((a, b), config.blend, strict=True)))
    if blend and not (blend.source or blend.target):
        if config.blend != AUTO and config.blend_match == "words":
            notes.append("neither blending word is in its prompt: while blending, nothing may change")
        else:
            if config.blend != AUTO:
                notes.append("blending is off: both phrases are empty")
            blend = None

    factors = {p: factor for phrase, factor in config.reweight.items() for p in find.find(b, phrase, every=True)}
    return Plan(a, b, tuple(replaced), blend, tuple(sorted(factors.items())), tuple(spans), tuple(notes))


def token_factors(plans: Sequence[Plan], text: Tensor) -> Tensor | None:
    """(B, M) factors on the target prompts' tokens, None if nothing is reweighted."""
    if not any(plan.factors for plan in plans):
        return None
    factors = torch.ones(len(plans), text.shape[1], device=text.device)
    for row, plan in enumerate(plans):
        for position, factor in plan.factors:
            factors[row, position] = factor
    return factors
