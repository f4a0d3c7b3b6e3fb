"""The pictures that the studio's visitors bring: each visitor sees their own, by the hash of its file."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

from PIL import Image

from sage import pictures
from sage.errors import PictureError, SettingsError
from sage.pictures.masks import black_and_white, mask_of_text
from sage.pictures.originals import MAX_PASTES, Paste, composed, identity, pastes_in, scaled_as
from sage.pictures.regions import Move, box_mask, read_box, read_move
from sage.studio.cache import Cache

LONGEST_NAME = 80

Place = Sequence[float] | str  # x, y; left, top, right, bottom; or the key of a mask


@dataclass(frozen=True)
class Picture:
    """A picture to edit.

    Attributes:
        identity: as `sage.pictures.originals.identity` gives it.
        background: of a picture that was composed here, the identity of what things were put into.
        pastes: those things.
    """

    image: Image.Image
    identity: dict[str, str]
    background: dict[str, str] | None = None
    pastes: tuple[Paste, ...] = ()

    def as_record(self) -> dict[str, Any]:
        """What the record of an edit says of it."""
        composed = {"composed": [paste.as_dict() for paste in self.pastes]} if self.pastes else {}
        return {"picture": self.background or self.identity, **composed}

    def is_of(self, record: dict[str, Any]) -> bool:
        """Whether an edit with this record was made of it."""
        own = self.as_record()
        return (own["picture"]["sha256"] == record["picture"]["sha256"]
                and own.get("composed") == record.get("composed"))

    @property
    def key(self) -> str:
        """What its visitor knows it by."""
        return self.identity["sha256"]

    @property
    def size(self) -> int:
        """Bytes in memory."""
        return self.image.width * self.image.height * 3


class Album:
    """What the visitors have brought, as much as fits into memory.

    Args:
        room: bytes.
        pixels: of a picture; a larger one is scaled down.
        folder: for files on their way in.
    """

    def __init__(self, room: int, pixels: int, folder: Path):
        self.pixels, self.folder = pixels, folder
        self._pictures: Cache[Picture] = Cache(room, lambda picture: picture.size)
        self._opening = Lock()  # a large picture takes a lot while it is decoded

    def keys(self) -> list[tuple[str, str]]:
        """Whose and which pictures there are."""
        return self._pictures.keys()  # type: ignore[return-value]

    def picture(self, who: str, key: str) -> Picture:
        """One of the visitor's pictures.

        Raises:
            PictureError: it is not remembered.
        """
        if (picture := self._pictures.get((who, key))) is None:
            raise PictureError("that picture is not remembered any more: drop it again")
        return picture

    def put(self, who: str, picture: Picture) -> Picture:
        """Make a picture one of the visitor's."""
        self._pictures.put((who, picture.key), picture)
        return picture

    def forget(self, who: str) -> None:
        """Nothing of the visitor's is kept."""
        self._pictures.drop(lambda key: key[0] == who)

    def open(self, path: Path, name: str) -> Picture:
        """The picture in a file, nobody's yet, scaled down to what one visitor may have, which its identity then says.

        Raises:
            PictureError: no picture, damaged, or too large.
        """
        with self._opening:
            image, known_by = pictures.open_picture(path), identity(path, name)
            if (share := self.pixels / (image.width * image.height)) < 1:
                width, height = (max(1, int(side * share**0.5)) for side in image.size)
                known_by["scaled"] = f"{width} x {height}"
                image = scaled_as(image, known_by)
            return Picture(image, known_by)

    # ---- masks and regions

    def take_mask(self, who: str, path: Path, name: str = "mask.png") -> Picture:
        """An uploaded file as one of the visitor's pictures: of where an edit may be, or of what is put in.

        Raises:
            PictureError: no picture, damaged, or too large.
        """
        picture = self.open(path, plain(name))
        if (known := self._pictures.get((who, picture.key))) is not None:  # brought before, by its own name
            return known
        return self.put(who, picture)

    def keep_mask(self, who: str, mask: Image.Image) -> str:
        """The key of a mask, which is then one of the visitor's pictures."""
        return self.put(who, Picture(mask, {"name": "mask.png", "sha256": pictures.digest(mask)})).key

    def mask(self, who: str, key: str, size: tuple[int, int]) -> Image.Image | None:
        """Where an edit may be, at a picture's size; None for everywhere, of which the key is ""."""
        return black_and_white(self.picture(who, key).image, size) if key else None

    def mask_in(self, who: str, record: dict[str, Any]) -> str:
        """The key of the mask in a record, which is then one of the visitor's pictures; "" without one."""
        return self.keep_mask(who, mask_of_text(record["mask"])) if "mask" in record else ""

    def moves_in(self, who: str, record: dict[str, Any]) -> list[tuple[str, str]]:
        """The keys of the masks of a record's moves, which are then among the visitor's pictures."""
        return [tuple(self.keep_mask(who, mask_of_text(text)) for text in pair)  # type: ignore[misc]
                for pair in record.get("moves", ())]

    def moved(self, who: str, picture: str, moves: Sequence[tuple[Place, Place]]) -> tuple[Move, ...]:
        """What is to be put elsewhere in a picture.

        Raises:
            SettingsError: a place that is none of the picture's.
        """
        size = self.picture(who, picture).image.size

        def region(place: Place) -> str | Image.Image:  # numbers as text, or the mask of a key; never a file
            return black_and_white(self.picture(who, place).image, size) if isinstance(place, str) else _as_text(place)

        return tuple(read_move(region(start), region(end), size) for start, end in moves)

    # ---- things put in

    def compose(self, who: str, picture: str, reference: str, mask: str, box: Sequence[float]) -> tuple[Picture, str]:
        """Paste what a mask marks of one picture into a box of another.

        Returns:
            The picture that comes of it, one of the visitor's, and the key of the mask that is white in the box.
        """
        below, thing = self.picture(who, picture), self.picture(who, reference)
        if len(below.pastes) == MAX_PASTES:
            raise SettingsError(f"{MAX_PASTES} things were put into this picture: go on from a result, as picture")
        place = read_box(_as_text(box), below.image.size)
        where = black_and_white(self.picture(who, mask).image, thing.image.size)
        whole = self._composed(who, below, [Paste(thing.identity, where, place)])
        pictures.settings_text(whole.as_record())  # a result has to hold it
        return self.put(who, whole), self.keep_mask(who, box_mask(place, below.image.size))

    def edited_in(self, who: str, record: dict[str, Any]) -> Picture:
        """The visitor's picture that an edit with this record was made of.

        Raises:
            PictureError: it is not remembered, or what was put into it.
        """
        picture, pastes = self.picture(who, record["picture"]["sha256"]), pastes_in(record)
        return self._composed(who, picture, pastes) if pastes else picture

    def _composed(self, who: str, below: Picture, pastes: Sequence[Paste]) -> Picture:
        image = composed(pictures.normalise(below.image), pastes,
                         lambda known: self.picture(who, known["sha256"]).image)
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            path = Path(folder) / f"{Path((below.background or below.identity)['name']).stem}-composed.png"
            pictures.save_picture(image, path)
            return replace(self.open(path, path.name), background=below.background or below.identity,
                           pastes=(*below.pastes, *pastes))


def plain(name: str) -> str:
    """The last part of what a visitor calls a file."""
    name = "".join(c for c in name.replace("\\", "/").rpartition("/")[2] if c.isprintable())[-LONGEST_NAME:]
    return name if name.strip(". ") else "picture.png"


def _as_text(numbers: Sequence[float]) -> str:
    """Coordinates as `read_move` and `read_box` take them."""
    return ",".join(f"{number:.2f}" for number in numbers)
