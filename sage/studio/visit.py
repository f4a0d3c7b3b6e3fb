"""What the studio remembers of one visitor."""

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from sage.studio.album import Picture
from sage.studio.clock import Cancelled

LEAST, MOST = 384, 1024  # pixels of the longer side of what is shown
SEEN = 24  # of 255: a difference that is seen


@dataclass(frozen=True)
class Entry:
    """One edit that was made, or one picture from text.

    Attributes:
        record: the settings that stand in the file too.
        path: the edited picture, alone in its folder with what is made of it for the eye.
        took, saved: seconds of this edit, and what reusing an inversion spared; None where none was reused.
        notes: for people to read.
        begins: how far from the left the first change is, as a share of the width.
        live: whether the visitor's next result takes its place.
    """

    record: dict[str, Any]
    path: Path
    took: float
    saved: float | None
    notes: tuple[str, ...]
    begins: float = 0.0
    live: bool = False

    @property
    def key(self) -> str:
        """What its visitor knows it by."""
        return self.path.parent.name

    @property
    def eyes(self) -> tuple[Path, Path]:
        """Before and after, for the eye."""
        return self.path.parent / "before.png", self.path.parent / "after.png"


@dataclass
class Visit:
    """One visitor's picture and results.

    Args:
        folder: where their files lie, under a name that nobody can guess.
        most: results remembered; the files of older ones are deleted.
    Attributes:
        picture: the one they brought last.
        results: edits and pictures from text, the oldest first.
        restored: the record of the edit whose settings they took back last.
    """

    folder: Path
    most: int
    picture: Picture | None = None
    results: list[Entry] = field(default_factory=list)
    restored: dict[str, Any] | None = None
    _ended: bool = False
    _lock: Lock = field(default_factory=Lock, repr=False)

    @contextmanager
    def lasting(self) -> Iterator[None]:
        """While something is written or kept for the visitor: the visit does not end meanwhile.

        Raises:
            Cancelled: it has ended.
        """
        with self._lock:
            if self._ended:
                raise Cancelled
            yield

    def new_file(self, name: str) -> Path:
        """The path for a file of this name, in a folder of its own."""
        folder = self.folder / secrets.token_hex(4)
        folder.mkdir(parents=True)
        return folder / name

    def remember(self, entry: Entry) -> None:
        """Keep a result in the place of a live one, and delete the oldest where there are too many."""
        gone = [old for old in self.results if old.live]
        self.results = [*(old for old in self.results if not old.live), entry]
        gone += self.results[:-self.most]
        self.results = self.results[-self.most:]
        for old in gone:
            shutil.rmtree(old.path.parent, ignore_errors=True)

    def end(self) -> None:
        """Forget everything, and keep nothing from now on."""
        with self._lock:
            self._ended = True
            shutil.rmtree(self.folder, ignore_errors=True)


def first_change(before: Image.Image, after: Image.Image) -> float:
    """How far from the left the first column lies that has changed for the eye, as a share of the width; else 0."""
    a, b = (np.asarray(image.convert("RGB").resize((64, 64)), dtype=np.int16) for image in (before, after))
    columns = np.flatnonzero((np.abs(a - b).max(-1) > SEEN).sum(0) > 1)
    return max(0.0, (int(columns[0]) - 1) / 64) if len(columns) else 0.0


def for_eyes(image: Image.Image) -> Image.Image:
    """Neither too small, whole pixels as squares, nor too large for a page."""
    longer = max(image.size)
    if longer < LEAST:
        return ImageOps.scale(image, -(-LEAST // longer), Image.Resampling.NEAREST)
    return ImageOps.contain(image, (MOST, MOST), Image.Resampling.LANCZOS) if longer > MOST else image
