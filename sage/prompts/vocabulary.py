"""The words that a model was taught, where these are few enough to be listed.  Imports no torch.

A folder holds them in words.txt, one a line; a model without such a file was taught a language, and has no list.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from sage.errors import ModelError
from sage.files import read_plain

FILE, MOST = "words.txt", 2**20  # bytes
SHOWN = 5  # unknown words that a note names
# Letters of a word that may be a slip of another, by one letter; by two, from so many on; by none, beyond the longest.
SHORTEST, LONG, LONGEST = 4, 7, 40


def words_of(text: str) -> list[str]:
    """The words of a text in their order: lower case, with a hyphen or apostrophe inside, without other marks."""
    return re.findall(r"\w+(?:[-'’]\w+)*", text.lower())


def read_words(folder: Path) -> tuple[str, ...]:
    """The words in a model's folder, () if it holds no list.

    Raises:
        ModelError: a list that cannot be read.
    """
    path = folder / FILE
    if not os.path.lexists(path):
        return ()
    raw = read_plain(path, ModelError, MOST, "it must be a list of words, one a line")
    try:
        return tuple(dict.fromkeys(words_of(raw.decode("utf-8-sig"))))
    except UnicodeDecodeError as error:
        raise ModelError(f"{path} cannot be read ({error})") from error


def unknown_words(known: Iterable[str], texts: Iterable[str]) -> tuple[str, ...]:
    """The words of some texts that are not among the known ones, each once; none where nothing is known."""
    known = frozenset(known)
    return tuple(dict.fromkeys(w for text in texts for w in words_of(text) if w not in known)) if known else ()


def about_words(model: str, known: Iterable[str], texts: Iterable[str]) -> tuple[str, ...]:
    """What is to be said of the words of some texts, by the two functions below."""
    known, texts = tuple(known), tuple(texts)
    return (*about_unknown(model, known, texts), *about_second(model, known, texts))


def about_unknown(model: str, known: Iterable[str], texts: Iterable[str]) -> tuple[str, ...]:
    """What is to be said of words that a model was not taught: nothing, or one note.

    Args:
        model: its name.
    """
    known = tuple(known)
    if not (strange := unknown_words(known, texts)):
        return ()
    named = ", ".join(f"{word!r}{_nearest(word, known)}" for word in strange[:SHOWN])
    more = f" and {len(strange) - SHOWN} more" if len(strange) > SHOWN else ""
    return (f"{model} was not taught {named}{more}: such words have little effect, or a strange one "
            f"(sage info {model} lists those it knows)",)


def about_second(model: str, known: Iterable[str], texts: Iterable[str]) -> tuple[str, ...]:
    """What is to be said of a second thing that a model of the rendered world overlooks: nothing, or one note.

    What stands beside another thing is tiny there, and every caption says so; without the word it is not heard.
    """
    from sage.prompts.instructions import overlooked
    if "tiny" not in known:
        return ()
    return next(((f"{model} hears of a second thing beside the first by the word tiny, and may overlook it here: say "
                  f"\"and a tiny {noun}\"",) for text in texts if (noun := overlooked(text))), ())


def as_taught(model: str, known: Iterable[str], *prompts: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The prompts that somebody typed as a model of the rendered world was taught to say them, and notes of it.

    A second thing is called tiny, as `about_second` asks for; a drawing is a pencil drawing.

    Args:
        model: its name.
        known: its words.
    """
    from sage.prompts.instructions import as_captioned
    if "tiny" not in known:
        return prompts, ()
    said = tuple(map(as_captioned, prompts))
    changed = dict.fromkeys(text for text, was in zip(said, prompts, strict=True) if text != was)
    return said, tuple(f"{model} was taught to say it otherwise: taken as {text!r}" for text in changed)


def _nearest(word: str, known: Iterable[str]) -> str:
    """The known word of which another looks like a slip of the fingers; most words that are not known are no slips."""
    if not SHORTEST <= len(word) <= LONGEST:
        return ""
    most = 1 + (len(word) >= LONG)
    near = (other for other in known if other[:1] == word[:1] and abs(len(other) - len(word)) <= most)
    slips = [(slip, other) for other in near if (slip := _slips(word, other)) <= most]
    return f" (did you mean {min(slips)[1]!r}?)" if slips else ""


def _slips(a: str, b: str) -> int:
    """Letters dropped, added, changed, or swapped with their neighbour that make one word the other."""
    before, row = list[int](), list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        older, before, row = before, row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (x != y)))
            if i > 1 and j > 1 and (x, y) == (b[j - 2], a[i - 2]):
                row[j] = min(row[j], older[j - 2] + 1)
    return row[-1]
