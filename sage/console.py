"""What is said on stderr: one line each, without control characters."""

import sys


def printable(text: str) -> str:
    """One line without control characters, whatever a file name or the settings in a stranger's picture say."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in text)


def note(message: str) -> None:
    print(f"sage: note: {printable(message)}", file=sys.stderr)


def fail(message: str) -> int:
    """Say what is wrong; returns the exit status for that."""
    print(f"sage: error: {printable(message)}", file=sys.stderr)
    return 2
