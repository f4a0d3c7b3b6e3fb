"""What the studio remembers of one visitor."""

import secrets
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from sage.studio.clock import Clock


@dataclass(frozen=True)
class Picture:
    """A picture to edit.

    Attributes:
        identity: as `sage.record.identity` gives it.
    """

    image: Image.Image
    identity: dict[str, str]

    @property
    def size(self) -> int:
        """Bytes in memory."""
        return self.image.width * self.image.height * 3


@dataclass(frozen=True)
class Entry:
    """One edit that was made.

    Attributes:
        record: the settings that stand in the file too.
        path: the edited picture.
        took, saved: seconds of this edit, and what reusing an inversion spared; None where none was reused.
        notes: for people to read.
    """

    record: dict[str, Any]
    path: Path
    took: float
    saved: float | None
    notes: tuple[str, ...]


@dataclass
class Visit:
    """One visitor's picture, edits and running work.

    Args:
        folder: where their files lie, under a name that nobody can guess.
        most: edits remembered; the files of older ones are deleted.
    """

    folder: Path
    most: int
    picture: Picture | None = None
    entries: list[Entry] = field(default_factory=list)
    clock: Clock | None = None

    def new_file(self, name: str) -> Path:
        """The path for a file of this name, in a folder of its own."""
        folder = self.folder / secrets.token_hex(4)
        folder.mkdir(parents=True)
        return folder / name

    def remember(self, entry: Entry) -> None:
        self.entries.append(entry)
        while len(self.entries) > self.most:
            shutil.rmtree(self.entries.pop(0).path.parent, ignore_errors=True)

    def cancel(self) -> None:
        """End what is running for this visitor at its next step."""
        if self.clock:
            self.clock.cancel()

    def end(self) -> None:
        """Forget everything."""
        self.cancel()
        shutil.rmtree(self.folder, ignore_errors=True)
