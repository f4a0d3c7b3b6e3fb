"""Text files and picture paths that are safe to trust after a crash, and before a stranger."""

from pathlib import Path

from sage.errors import SageError
from sage.files import written_whole


class BenchmarkError(SageError):
    """A benchmark or a run that is not there, not whole, or not what it should be."""


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
        BenchmarkError: a place that cannot be written to.
    """
    try:
        with written_whole(path) as out:
            out.write(text.encode())
    except OSError as error:
        raise BenchmarkError(f"{path} cannot be written ({error.strerror or error})") from error


def inside(folder: Path, relative: str) -> Path:
    """The path `relative` below `folder`, links followed.

    Raises:
        BenchmarkError: it is not plainly below the folder: absolute, with "..", or through a link that leads out.
    """
    parts = relative.split("/")
    if not all(p and p not in (".", "..") for p in parts) or any(
            c in "\\:" or not c.isprintable() for c in relative):
        raise BenchmarkError(f"{_shown(relative)} is no plain path below {folder}")
    try:
        base = folder.resolve()
        path = base.joinpath(*parts).resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise BenchmarkError(f"{_shown(relative)} is no usable path below {folder}") from error
    if not path.is_relative_to(base):
        raise BenchmarkError(f"{_shown(relative)} leads out of {folder}")
    return path


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:77]}...")
