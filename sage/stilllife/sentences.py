"""Sentences of the rendered world with one phrase, and the same with another: what a direction of text is made of."""

from __future__ import annotations

import re
from functools import cache

import numpy as np

from sage.stilllife.prompts import prompt
from sage.stilllife.scenes import sample_scene

POOL, MOST, SEED = 5000, 100, 7
Sentences = tuple[str, ...]
# What is left of a clause whose noun is left out.
_BEFORE = r"\b(?:with|against|in front of|on)"
NOTHING_LEFT = (re.compile(rf"(?:{_BEFORE} )?\b(?:an?|the)(?: (?:behind it|behind|in the background)\b|(?= ,|$))"),
                re.compile(rf"{_BEFORE}(?= ,|$)"))


@cache
def _pool() -> Sentences:
    """Captions in varied wording, each once, always the same."""
    rng = np.random.default_rng(SEED)
    return tuple(dict.fromkeys(prompt(sample_scene(rng), rng) for _ in range(POOL)))


@cache
def sentences(old: str, new: str) -> tuple[Sentences, Sentences]:
    """Captions with `old` and not `new`, and the same with `new` for it; the other way round if only that is known.

    Args:
        old, new: words as captions have them, "" for none: what is only added or left out.
    Returns:
        at most 100 of each; none where the world has neither phrase.
    """
    old, new = (" ".join(phrase.lower().split()) for phrase in (old, new))
    for known, other in ((old, new), (new, old)):
        if known and (found := [text for text in _pool() if _place(known).search(text)
                                and not (other and _place(other).search(text))][:MOST]):
            changed = [_mended(other.join(_place(known).split(text))) for text in found]
            return (tuple(found), tuple(changed)) if known == old else (tuple(changed), tuple(found))
    return (), ()


def _place(phrase: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(phrase)}(?!\w)")


def _mended(text: str) -> str:
    """A sentence after words were changed in it: a and an agree with what follows, nothing stands before nothing."""
    text = " ".join(text.replace(",", " , ").split())
    for rest in NOTHING_LEFT:
        text = rest.sub("", text)
    text = re.sub(r"\ban? (?=(\w))", lambda match: "an " if match[1] in "aeiou" else "a ", text)
    text = " ".join(text.replace(" ,", ",").split())
    return re.sub(r"(?:^[, ]+)|(?:[, ]+$)|,(?= *,)", "", text)
