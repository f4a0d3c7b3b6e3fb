"""A journal on a disk that fills up."""

import errno
import json
import os
from contextlib import closing
from pathlib import Path

import pytest

from sage.errors import PictureError
from sage.files import Journal


def journal(folder: Path) -> Journal:
    return Journal(folder / "rows.jsonl", folder / "rows.lock", PictureError, "busy")


def taking(monkeypatch, *parts: int) -> None:
    """Let each write take so many bytes; once they are used up the disk is full."""
    left, write = list(parts), os.write

    def some(file: int, data: bytes) -> int:
        if not left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, data[:left.pop(0)])

    monkeypatch.setattr(os, "write", some)


def test_a_line_that_is_taken_in_parts_is_whole(tmp_path, monkeypatch):
    with closing(journal(tmp_path)) as rows:
        taking(monkeypatch, 5, 1, 100)
        rows.append({"row": 1, "text": "some words"})
    assert json.loads(rows.path.read_text()) == {"row": 1, "text": "some words"}


def test_a_full_disk_is_an_error_and_leaves_whole_lines(tmp_path, monkeypatch):
    with closing(journal(tmp_path)) as rows:
        rows.append({"row": 1})
        with monkeypatch.context() as full:
            taking(full, 5)
            with pytest.raises(PictureError, match=r"rows.jsonl cannot be written \(No space left on device\)"):
                rows.append({"row": 2})
        rows.append({"row": 3})
    assert rows.path.read_text() == '{"row": 1}\n{"row": 3}\n'
