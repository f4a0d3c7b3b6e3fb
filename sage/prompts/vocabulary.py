"""The words that a model was taught, where these are few enough to be listed.  Imports no torch.

A folder holds them in words.txt, one a line; a model without such a file was taught a language, and has no list.
"""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

from sage.errors import ModelError

FILE, MOST = "words.txt", 2**20  # bytes
SHOWN = 5  # unknown words that a note names
SHORTEST = 3  # letters of a word that somebody may have meant


def words_of(text: str) -> list[str]:
    """The words of a text in their order: lower case, with a hyphen or apostrophe inside, without other marks."""
    return re.findall(r"\w+(?:[-'’]\w+)*", text.lower())


def read_words(folder: Path) -> tuple[str, ...]:
    """The words in a model's folder, () if it holds no list.

    Raises:
        ModelError: a list that cannot be read.
    """
    path = folder / FILE
    if not path.exists():
        return ()
    try:
        if not path.is_file() or path.stat().st_size > MOST:
            raise ModelError(f"{path} is no list of words: give it one a line, in at most {MOST // 2**20} MB")
        return tuple(dict.fromkeys(words_of(path.read_bytes().decode("utf-8-sig"))))
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error})") from error


def unknown_words(known: Iterable[str], texts: Iterable[str]) -> tuple[str, ...]:
    """The words of some texts that are not among the known ones, each once; none where nothing is known."""
    known = frozenset(known)
    return tuple(dict.fromkeys(w for text in texts for w in words_of(text) if w not in known)) if known else ()


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


def _nearest(word: str, known: Iterable[str]) -> str:
    near = get_close_matches(word, [other for other in known if len(other) >= SHORTEST], n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
