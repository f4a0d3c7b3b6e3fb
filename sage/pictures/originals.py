"""What an edit was made of, so recorded that it is found again: a picture file, and what was put into it from others.

    "picture": {"name": ..., "sha256": ..., "scaled": "4899 x 3266"}       scaled: only where it was scaled down
    "composed": [{"reference": {"name": ..., "sha256": ...}, "mask": ..., "box": [left, top, right, bottom],
                  "whole": true}, ...]

Imports no torch.
"""

import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from sage.errors import PictureError
from sage.files import open_plain
from sage.pictures.files import open_picture
from sage.pictures.masks import mask_of_text, mask_text
from sage.pictures.regions import composite

MAX_PASTES = 16
SCALED = re.compile(r"(\d{1,5}) x (\d{1,5})")


def identity(path: Path, name: str | None = None) -> dict[str, str]:
    """What a picture file is known by: its name, or `name` instead, and the hash of its bytes.

    Raises:
        PictureError: it cannot be read, though it may have been a moment ago.
    """
    with open_plain(path, PictureError, advice="give the path of a picture") as file:
        try:
            return {"name": name or path.name, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
        except OSError as error:
            raise PictureError(f"{path} cannot be read ({error.strerror or error})") from error


def is_identity(value: Any) -> bool:
    """Whether a stranger's word can be the identity of a picture."""
    return (isinstance(value, dict) and all(isinstance(value.get(name), str) for name in ("name", "sha256"))
            and ("scaled" not in value or bool(isinstance(value["scaled"], str) and SCALED.fullmatch(value["scaled"]))))


def scaled_as(image: Image.Image, known: Mapping[str, str]) -> Image.Image:
    """A picture as it was worked with: scaled down, where its identity says to what size.

    Raises:
        PictureError: to a larger one, or to nothing.
    """
    if "scaled" not in known:
        return image
    width, height = map(int, known["scaled"].split(" x "))
    if not (0 < width <= image.width and 0 < height <= image.height):
        raise PictureError(f"the settings say that the picture was scaled down to {known['scaled']}, and it has "
                           f"{image.width} x {image.height} pixels")
    return image.resize((width, height), Image.Resampling.LANCZOS)


# ---- pictures composed of others


@dataclass(frozen=True)
class Paste:
    """A thing of one picture that was put into another.

    Attributes:
        reference: the identity of the picture that has the thing.
        mask: where it is in that picture: 0 and 255 ("L"), of its size.
        box: left, top, right, bottom of what it fills, in pixels of the other.
        whole: whether it is the whole picture that fills the box.
    """

    reference: dict[str, str]
    mask: Image.Image
    box: tuple[int, int, int, int]
    whole: bool = False

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {"reference": self.reference, "mask": mask_text(self.mask), "box": list(self.box),
                **({"whole": True} if self.whole else {})}


def pastes_in(record: Mapping[str, Any]) -> tuple[Paste, ...]:
    """What was put into the picture of a record; nothing for one that was not composed.

    Raises:
        PictureError: the record is damaged.
    """
    given = record.get("composed", [])
    if not isinstance(given, list) or len(given) > MAX_PASTES or not all(isinstance(value, dict) for value in given):
        raise PictureError("what the picture was composed of is damaged")
    return tuple(map(_paste, given))


def _paste(value: dict[str, Any]) -> Paste:
    reference: Any = value.get("reference")
    box: Any = value.get("box")
    four = isinstance(box, list) and len(box) == 4 and all(type(side) is int for side in box)
    if not four or not is_identity(reference) or not 0 <= box[0] < box[2] or not 0 <= box[1] < box[3]:
        raise PictureError("what the picture was composed of is damaged")
    mask = mask_of_text(value.get("mask"))
    if not mask.getbbox() or type(whole := value.get("whole", False)) is not bool:
        raise PictureError("what the picture was composed of is damaged")
    return Paste(reference, mask, (box[0], box[1], box[2], box[3]), whole)


def composed(background: Image.Image, pastes: Sequence[Paste],
             reference_of: Callable[[dict[str, str]], Image.Image]) -> Image.Image:
    """The background with every thing put into it, one after the other.

    Args:
        reference_of: the picture that an identity stands for.
    Raises:
        PictureError: a picture of another size than it was then.
    """
    for paste in pastes:
        reference = reference_of(paste.reference)
        if reference.size != paste.mask.size or paste.box[2] > background.width or paste.box[3] > background.height:
            raise PictureError(f"{paste.reference['name']} cannot be put in again: it or the background has another "
                               "size than when that was done")
        background = composite(background, reference, paste.mask, paste.box, paste.whole)
    return background


# ---- found again


def original(record: Mapping[str, Any], path: str | Path) -> Image.Image:
    """The picture that an edit was made of: scaled down if it was, and with the things in it that were put there.

    Args:
        record: the settings of the edit.
        path: the picture's file; those that things were taken from lie beside it, or in the present folder.
    Raises:
        PictureError: one of the pictures is not there, or is another.
    """
    image = open_picture(path)
    if identity(Path(path))["sha256"] != record["picture"]["sha256"]:
        raise PictureError(f"{path} is not the picture that the edit was made of ({record['picture']['name']})")
    return composed_again(scaled_as(image, record["picture"]), record, Path(path).parent)


def composed_again(image: Image.Image, record: Mapping[str, Any], *folders: Path) -> Image.Image:
    """A picture with the things put into it that a record says, of files that it names.

    Args:
        folders: where these lie, the present one besides.
    Raises:
        PictureError: one of them is not there, or is another.
    """
    return composed(image, pastes_in(record), lambda known: scaled_as(open_picture(_found(known, folders)), known))


def _found(known: Mapping[str, str], folders: Sequence[Path]) -> Path:
    """The file of a picture by its name and hash: only of that name, for no picture shall say which path is opened."""
    name = os.path.basename(known["name"])
    there = [path for folder in dict.fromkeys([*folders, Path()]) if os.path.isfile(path := folder / name)]
    for path in there:
        if identity(path)["sha256"] == known["sha256"]:
            return path
    raise PictureError(f"the picture was composed with {name[:80]}, and " + (
        f"{there[0]} is not the file that it was" if there else "there is no such file beside it, beside the edit or "
        "in this folder") + ": put it there")
