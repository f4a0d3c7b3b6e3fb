"""What the studio remembers of one visitor."""

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from PIL import Image, ImageOps

from sage.pictures import save_picture
from sage.settings import Settings
from sage.studio.clock import Cancelled, Clock

LEAST, MOST = 384, 1024  # pixels of the longer side of what is shown


@dataclass(frozen=True)
class Picture:
    """A picture to edit.

    Attributes:
        identity: as `sage.pictures.metadata.identity` gives it.
    """

    image: Image.Image
    identity: dict[str, str]

    @property
    def size(self) -> int:
        """Bytes in memory."""
        return self.image.width * self.image.height * 3


@dataclass(frozen=True)
class Entry:
    """One edit that was made, or one picture from text.

    Attributes:
        record: the settings that stand in the file too.
        path: the edited picture, alone in its folder with what is made of it for the eye.
        took, saved: seconds of this edit, and what reusing an inversion spared; None where none was reused.
        notes: for people to read.
    """

    record: dict[str, Any]
    path: Path
    took: float
    saved: float | None
    notes: tuple[str, ...]

    @property
    def eyes(self) -> tuple[Path, Path]:
        """Before and after, for the eye."""
        return self.path.parent / "before.png", self.path.parent / "after.png"


@dataclass
class Visit:
    """One visitor's picture, edits and running work.

    Args:
        folder: where their files lie, under a name that nobody can guess.
        most: edits remembered; the files of older ones are deleted.
    Attributes:
        model: the one they have chosen, "" before the first choice.
        forms: settings of methods that they have left, by the task and the method's name, as they left them.
        restored: the record of the edit whose settings they took back last.
        turn: counts what puts other prompts on their page: a result of an earlier turn is not shown beside them.
        made: their latest picture from text.
    """

    folder: Path
    most: int
    picture: Picture | None = None
    entries: list[Entry] = field(default_factory=list)
    clock: Clock | None = None
    shown: Entry | None = None
    model: str = ""
    forms: dict[tuple[str, str], Settings] = field(default_factory=dict)
    restored: dict[str, Any] | None = None
    turn: int = 0
    made: Entry | None = None
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
        self.entries.append(entry)
        while len(self.entries) > self.most:
            shutil.rmtree(self.entries.pop(0).path.parent, ignore_errors=True)

    def keep_made(self, entry: Entry) -> None:
        """Keep a picture from text in the place of the last one."""
        if self.made:
            shutil.rmtree(self.made.path.parent, ignore_errors=True)
        self.made = entry

    def cancel(self) -> None:
        """End what is running for this visitor at its next step."""
        if self.clock:
            self.clock.cancel()

    def end(self) -> None:
        """Forget everything, and keep nothing from now on."""
        self.cancel()
        with self._lock:
            self._ended = True
            shutil.rmtree(self.folder, ignore_errors=True)

    def show(self, picture: Picture) -> Path:
        """A file of the picture for the page, in the place of the last one."""
        folder = self.folder / "shown"
        path = folder / secrets.token_hex(4) / f"{Path(picture.identity['name']).stem}.png"
        with self.lasting():
            shutil.rmtree(folder, ignore_errors=True)
            return save_picture(for_eyes(picture.image), path)


def for_eyes(image: Image.Image) -> Image.Image:
    """Neither too small, whole pixels as squares, nor too large for a page."""
    longer = max(image.size)
    if longer < LEAST:
        return ImageOps.scale(image, -(-LEAST // longer), Image.Resampling.NEAREST)
    return ImageOps.contain(image, (MOST, MOST), Image.Resampling.LANCZOS) if longer > MOST else image
