"""Text files and picture paths that are safe to trust after a crash, and before a stranger."""

import json
import os
from pathlib import Path
from typing import Any

from sage.errors import SageError
from sage.files import read_plain, written_whole


class BenchmarkError(SageError):
    """A benchmark or a run that is not there, not whole, or not what it should be."""


MAX_JSON = 256 * 2**20  # bytes


def read_table(path: Path, of: str) -> dict[str, Any]:
    """A JSON file that holds a table with at least one row, `of` which it should be.

    Raises:
        BenchmarkError: not there, too large, damaged, or something else.
    """
    if not os.path.lexists(path):
        raise BenchmarkError(f"{path.parent} is no benchmark: it has no {path.name}")
    try:
        rows = json.loads(read_plain(path, BenchmarkError, MAX_JSON))
    except (ValueError, RecursionError) as error:
        raise BenchmarkError(f"{path} is damaged: it is not JSON") from error
    if not isinstance(rows, dict) or not rows:
        raise BenchmarkError(f"{path} is damaged: it is not a table of {of} by name")
    return rows


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
