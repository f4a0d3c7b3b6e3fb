"""What is said to people: on stderr one line each, without control characters."""

import shutil
import sys
from collections.abc import Iterable
from difflib import get_close_matches

LONGEST, WIDEST = 1000, 100


def width() -> int:
    """Columns that a text may fill: the terminal's, 80 where there is none, and no more than can be read with ease."""
    return min(shutil.get_terminal_size().columns, WIDEST)


def printable(text: str) -> str:
    """One line without control characters, whatever a file name or the settings in a stranger's picture say."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in text)


def one_line(text: str) -> str:
    """The same, cut in the middle if it is very long: a stranger's file may hold a value of megabytes."""
    return printable(text if len(text) <= LONGEST else f"{text[:LONGEST - 200]} ... {text[-195:]}")


def note(message: str) -> None:
    """Say what a user should know."""
    print(f"sage: note: {one_line(message)}", file=sys.stderr)


def begin(what: str, shown: bool) -> None:
    """Say what is begun and shows no bar of its own."""
    if shown:
        print(f"sage: {one_line(what)}", file=sys.stderr, flush=True)


def fail(message: str) -> int:
    """Say what is wrong; returns the exit status for that."""
    print(f"sage: error: {one_line(message)}", file=sys.stderr)
    return 2


def did_you_mean(word: str, known: Iterable[str], alike: float = 0.6) -> str:
    """`: did you mean X?` with the nearest of the known words, to be added to what is wrong; "" if none is near.

    Of several that begin with what was typed all are named.

    Args:
        alike: share of the letters that both have to have.
    """
    bare = {other.lstrip("-"): other for other in known}  # that both are flags makes no two of them alike
    typed = word.lstrip("-")
    near = get_close_matches(typed, bare, n=3, cutoff=alike)
    longer = [other for other in near if other.startswith(typed)]
    meant = " or ".join(bare[other] for other in (longer if len(longer) > 1 else near[:1]))
    return f": did you mean {meant}?" if meant else ""
