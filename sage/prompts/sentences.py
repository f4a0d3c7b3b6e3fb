"""Sentences of a user's own, from a file that may hold anything."""

from pathlib import Path

from sage.errors import SettingsError
from sage.files import read_plain
from sage.prompts.tokens import check_text

MOST_BYTES, MOST = 2**20, 2000


def read_sentences(path: str | Path) -> tuple[str, ...]:
    """The lines of a text file, a sentence each; blank ones and repetitions count for nothing.

    Raises:
        SageError: no such file, not UTF-8, too large, without a sentence, or with a line that no prompt can be.
    """
    raw = read_plain(path, SettingsError, MOST_BYTES, "give a file of sentences, one a line")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise SettingsError(f"{path} is not UTF-8 text: save it as such, one sentence a line") from None
    if "\0" in text:
        raise SettingsError(f"{path} is no text: it holds zero bytes")
    return check_sentences([line for line in text.splitlines() if line.strip()], str(path))


def check_sentences(sentences: object, name: str) -> tuple[str, ...]:
    """Sentences with single blanks, each once.

    Raises:
        SageError: none, too many, or one that no prompt can be.
    """
    if not isinstance(sentences, (list, tuple)) or not all(isinstance(text, str) for text in sentences):
        raise SettingsError(f"{name} must be texts, a sentence each")
    found = dict.fromkeys(" ".join(check_text(text, f"sentence {text.strip()[:20]!r} of {name}").split())
                          for text in sentences)
    found.pop("", None)
    if not 1 <= len(found) <= MOST:
        raise SettingsError(f"{name} has {len(found)} sentences: give from 1 to {MOST}, one a line")
    return tuple(found)
