"""Files that are written whole or not at all, and JSON that strangers wrote."""

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

DEEPEST = 50


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write bytes to, that takes the place of `path` once the context is left without an error.

    Raises:
        OSError: a place that cannot be written to, or a full disk; `path` is then as it was.
    """
    part = path.with_name(f".sage-{secrets.token_hex(6)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not tempfile, whose files only their owner may read.
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def unwritable(path: Path) -> str:
    """Why no file can be written there, in one line; "" if nothing is known against it."""
    try:
        if path.is_dir():
            return f"{path} is a folder"
        folder = next(p for p in path.absolute().parents if p.exists())
    except OSError as error:
        return f"{path} cannot be written ({error.strerror})"
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        return f"{path} cannot be written: {folder} is not a folder that may be written to"
    return ""


def numbered(path: Path) -> Iterator[Path]:
    """The path itself, then NAME-2, NAME-3, ..."""
    yield path
    for i in count(2):
        yield path.with_name(f"{path.stem}-{i}{path.suffix}")


def parse_json(text: str) -> Any:
    """The value of a JSON text, nested no deeper than anything that is meant to be read here.

    Raises:
        ValueError: no JSON, or nested too deeply: printing such a value can exhaust the stack that parsing it did not.
    """
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    level = [value]
    for _ in range(DEEPEST):
        level = [inner for outer in level if isinstance(outer, (dict, list))
                 for inner in (outer.values() if isinstance(outer, dict) else outer)]
        if not level:
            return value
    raise ValueError("nested too deeply")
