"""What became of each row, a JSON object a line: `manifest.jsonl` in the folder of a batch."""

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sage.batch.table import Row
from sage.errors import PictureError
from sage.files import Journal

MANIFEST = "manifest.jsonl"
DONE, FAILED = "done", "failed"


@dataclass(frozen=True)
class Line:
    """What became of a row.

    Attributes:
        row, line: where it stands in the table.
        out: the edit, below the folder; "" for a row that is too wrong to have one.
        digest: of all that the edit depends on.
        sha256: of the edit's file.
        time: when it was done, UTC.
        seconds: what it took; of rows that share an inversion, the first bears it.
    """

    row: int
    line: int
    status: str
    out: str = ""
    picture: str = ""
    source: str = ""
    target: str = ""
    reason: str = ""
    notes: tuple[str, ...] = ()
    digest: str = ""
    sha256: str = ""
    time: str = ""
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def failed(row: Row, reason: str) -> Line:
    """The line of a row that cannot be made."""
    return Line(row.number, row.line, FAILED, row.out, row.picture.name, row.source, row.target, reason, time=now())


def now() -> str:
    """The time, in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class Manifest:
    """The manifest of a folder, open for one process at a time.

    Each line is on the disk before the next row is begun; what a killed run left of one is cut off.

    Attributes:
        done: the last line of each edit by its name, of those that say it was made.
    Raises:
        PictureError: another process is at work there, or the folder cannot be written to.
    """

    def __init__(self, folder: Path):
        self._journal = Journal(folder / MANIFEST, folder / f".{MANIFEST}.lock", PictureError,
                                f"another sage batch is at work in {folder}: let it finish")
        self.done: dict[str, Line] = {}
        for words in self._journal.text.split(b"\n"):
            if (line := _parse(words)) and line.out:
                self._count(line)

    def append(self, line: Line) -> None:
        """Write a line, for good."""
        self._journal.append(line.as_dict())
        self._count(line)

    def _count(self, line: Line) -> None:
        if line.status == DONE:
            self.done[line.out] = line
        else:
            self.done.pop(line.out, None)

    def __enter__(self) -> "Manifest":
        return self

    def __exit__(self, *_: Any) -> None:
        self._journal.close()


def _parse(words: bytes) -> Line | None:
    """A line, or None for what is not one that we wrote."""
    try:
        line = Line(**json.loads(words))
    except (ValueError, TypeError, RecursionError):
        return None
    texts = (line.status, line.out, line.digest, line.sha256)
    return line if all(isinstance(text, str) for text in texts) else None
