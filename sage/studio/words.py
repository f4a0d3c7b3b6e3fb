"""What differs between two prompts, for people to see and to correct."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from sage.errors import PromptError, SageError
from sage.prompts.instructions import follow
from sage.prompts.tokens import Prompt, Prompts, Span
from sage.settings import AUTO, Factors, Phrases, Reweighting, Settings, annotations

MARKS = ",.;:!?\"'()"


def names_of(settings: Settings | type[Settings], wanted: Any) -> list[str]:
    """The settings of an annotation, `Phrases` or `Factors`."""
    cls = settings if isinstance(settings, type) else type(settings)
    return [name for name in cls.names() if annotations(cls)[name] == wanted]


def weights_of(cls: type[Settings]) -> str:
    """The setting of the factors on the attention to words, "" without one."""
    return "reweight" if issubclass(cls, Reweighting) else ""


def compare(find: Prompts, source: str, target: str, settings: Settings) -> dict[str, Any]:
    """The two prompts word by word, as JSON values, and what the settings say of their words.

    Returns:
        source: [word, differs] a word; target: [word, differs, factor] a word; pairs: [before, after] of each
        difference; phrases: name, title and `phrases_text` of each setting of phrases; factors: the name of the setting
        of factors, "" without one; others: its factors on phrases of several words; problem: why there is nothing to
        see, or "".
    """
    weights = weights_of(type(settings))
    factors = getattr(settings, weights) if weights else {}
    nothing: dict[str, Any] = {"source": [], "target": [], "pairs": [], "factors": weights, "others": "", "problem": "",
                               "phrases": [_phrases(settings, name) for name in names_of(settings, Phrases)]}
    try:
        a, b = find.parse(source), find.parse(target)
    except SageError as error:
        return nothing | {"problem": str(error)}
    if not a.text or not b.text:
        return nothing
    spans = find.differences(a, b)
    before: list[list[Any]] = [[word, bool(edited)] for word, edited in _words(find, a, spans, "source")]
    after: list[list[Any]] = [[word, bool(edited), factor_of(word, factors)]
                              for word, edited in _words(find, b, spans, "target")]
    pairs = [[_phrase(find, a, span.source), _phrase(find, b, span.target)] for span in spans]
    known = {bare(word) for word, _, _ in after}
    others = {phrase: factor for phrase, factor in factors.items()
              if phrase not in known and known >= {*phrase.split()}}
    return nothing | {"source": before, "target": after, "pairs": pairs,
                      "others": factors_text(others) if others else ""}


def _phrases(settings: Settings, name: str) -> dict[str, str]:
    f = next(f for f in settings.fields() if f.name == name)
    return {"name": name, "title": f.metadata["help"].partition(":")[0].capitalize(),
            "value": phrases_text(getattr(settings, name))}


def carried(settings: Settings, words: Settings) -> Settings:
    """`settings` with what `words`, of whatever method, says of the words of the prompts."""
    return settings.but(**{name: getattr(words, name) for kind in (Phrases, Factors)
                           for name in names_of(settings, kind) if name in names_of(words, kind)})


# How an instruction begins, where a description was asked for.
COMMANDS = re.compile(r"(please |can you |could you )*(make|turn|change|add|remove|delete|replace|put|move|tilt|take|"
                      r"give|set|colou?r|paint)\b", re.IGNORECASE)


def instructed(source: str, target: str) -> dict[str, str]:
    """What is to be made of a target prompt that is an instruction, such as "make it red".

    Returns:
        target: the prompt that it asks for, or problem: that it is not understood; both "" for a description.
    """
    if not COMMANDS.match(target.strip()):
        return {"target": "", "problem": ""}
    try:
        return {"target": follow(target, source), "problem": ""}
    except PromptError as error:
        return {"target": "", "problem": str(error).partition(":")[0]}


def fitting(check: Callable[[Settings], Any], settings: Settings) -> tuple[Settings, tuple[str, ...]]:
    """The settings without what they say of words that the prompts do not have, as they may have had once.

    Args:
        check: raises PromptError for phrases that do not fit.
    Returns:
        the settings, and what was left out.
    """
    plain, kept, notes = settings.wordless(), settings, list[str]()
    check(plain)

    def fits(name: str, value: Any) -> bool:
        try:
            check(plain.but(**{name: value}))
        except PromptError as error:
            notes.append(f"{name} was left out: {error}" if isinstance(value, tuple) else
                         f"the factor on {next(iter(value))!r} was left out: {error}")
            return False
        return True

    for name in names_of(settings, Phrases):
        if isinstance(value := getattr(settings, name), tuple) and not fits(name, value):
            kept = kept.but(**{name: type(settings).default(name)})
    for name in names_of(settings, Factors):
        kept = kept.but(**{name: {phrase: factor for phrase, factor in getattr(settings, name).items()
                                  if fits(name, {phrase: factor})}})
    return kept, tuple(notes)


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
