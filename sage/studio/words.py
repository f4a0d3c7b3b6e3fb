"""What differs between two prompts, for people to see and to correct."""

from collections.abc import Mapping
from typing import Any

from sage.config import AUTO, EditConfig, Phrases
from sage.errors import SageError
from sage.prompts.tokens import Prompt, Prompts, Span

MARKS = ",.;:!?\"'()"


def compare(find: Prompts, source: str, target: str, config: EditConfig) -> dict[str, Any]:
    """The two prompts word by word, as JSON values.

    Returns:
        source: [word, differs] a word; target: [word, differs, factor] a word; pairs: [before, after] of each
        difference; replace, blend: as `phrases_text`; problem: why there is nothing to see, or "".
    """
    nothing = {"source": [], "target": [], "pairs": [], "replace": phrases_text(config.replace),
               "blend": phrases_text(config.blend), "problem": ""}
    try:
        a, b = find.parse(source), find.parse(target)
    except SageError as error:
        return nothing | {"problem": str(error)}
    if not a.text or not b.text:
        return nothing
    spans = find.differences(a, b)
    before = [[word, bool(edited)] for word, edited in _words(find, a, spans, "source")]
    after = [[word, bool(edited), factor_of(word, config.reweight)]
             for word, edited in _words(find, b, spans, "target")]
    pairs = [[_phrase(find, a, span.source), _phrase(find, b, span.target)] for span in spans]
    return nothing | {"source": before, "target": after, "pairs": pairs}


def _words(find: Prompts, prompt: Prompt, spans: list[Span], side: str) -> list[tuple[str, set[int]]]:
    changed = {position for span in spans for position in getattr(span, side)}
    return [(word, changed & {*positions}) for word, positions in find.words(prompt)]


def _phrase(find: Prompts, prompt: Prompt, positions: tuple[int, ...]) -> str:
    wanted = {*positions}
    return " ".join(bare(word) for word, at in find.words(prompt) if wanted & {*at})


def bare(word: str) -> str:
    """A word without the marks around it, as it can be found in a prompt."""
    return word.strip(MARKS) or word


def factor_of(word: str, reweight: Mapping[str, float]) -> float:
    """The factor of a single word; those of longer phrases are not shown at their words."""
    return reweight.get(bare(word), 1.0)


def phrases_text(value: Phrases) -> str:
    """As `sage.prompts.phrases.read_phrases` takes it back."""
    return "none" if value is None else AUTO if value == AUTO else ", ".join(value)


def factors_text(reweight: Mapping[str, float]) -> str:
    """As `sage.prompts.phrases.read_factors` takes it back."""
    return ", ".join(f"{phrase}:{factor!r}" for phrase, factor in reweight.items()) or "none"
