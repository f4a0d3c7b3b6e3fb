"""Masks of where a picture may change: from files, into the record of an edit and back, and pasting around them."""

import base64
import binascii
import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from sage.errors import PictureError, SettingsError
from sage.pictures.files import MAX_SETTINGS, normalise, open_picture

FEATHER = 64  # the edge of a paste is this share of the shorter side


def black_and_white(mask: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Any picture -> one of 0 and 255 ("L") of a size (W, H): what is at least half white is white.

    Raises:
        SettingsError: nothing is white.
    """
    grey = normalise(mask).convert("L").point(lambda value: 255 * (value >= 128))
    grey = grey if grey.size == tuple(size) else grey.resize(size, Image.Resampling.NEAREST)
    if not grey.getbbox():
        raise SettingsError("the mask has no white place, and nothing may change: give one that is white where the "
                            "edit may be")
    return grey


def open_mask(path: str | Path, size: tuple[int, int]) -> Image.Image:
    """A mask file -> 0 and 255 ("L") at the picture's size (W, H).

    Raises:
        PictureError: no picture.
        SettingsError: of another aspect than the picture, or nothing in it is white.
    """
    mask = open_picture(path)
    if abs(mask.width * size[1] - mask.height * size[0]) > max(mask.width * size[1], mask.height * size[0]) * 0.02:
        raise SettingsError(f"{path} is {mask.width} x {mask.height} and the picture {size[0]} x {size[1]}: the mask "
                            "must have the picture's aspect")
    try:
        return black_and_white(mask, size)
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None


# ---- in a record


def mask_text(mask: Image.Image) -> str:
    """A mask of 0 and 255 as text: base64 of a PNG of one bit a pixel."""
    out = io.BytesIO()
    mask.convert("1", dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return base64.b64encode(out.getvalue()).decode()


def mask_of_text(text: object) -> Image.Image:
    """What `mask_text` wrote, checked as a stranger's word.

    Raises:
        PictureError: it is no such text.
    """
    if not isinstance(text, str) or len(text) > MAX_SETTINGS:
        raise PictureError("the mask in the settings is damaged")
    try:
        image = Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=("PNG",))
        if image.mode != "1":
            raise PictureError("the mask in the settings is damaged")
        return normalise(image).convert("L")
    except (binascii.Error, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise PictureError("the mask in the settings is damaged") from error


# ---- pasting


def feather(size: tuple[int, int]) -> int:
    """Pixels over which a paste goes from the original to the edit, for a picture of a size."""
    return max(1, min(size) // FEATHER)


def pasted(edit: Image.Image, original: Image.Image, mask: Image.Image) -> Image.Image:
    """The edit where the mask is white, and everywhere else the original's very pixels.

    The edge lies inside the mask: over `feather` pixels from its rim the edit comes in evenly.

    Args:
        edit, original: RGB, of one size.
        mask: 0 and 255, of that size.
    """
    edge = feather(original.size)
    weight, inner = np.zeros((original.height, original.width), np.float32), mask
    for _ in range(edge):
        weight += np.asarray(inner, np.float32) / 255
        padded = Image.new("L", (mask.width + 2, mask.height + 2), 255)  # a picture's border is no rim of the mask
        padded.paste(inner, (1, 1))
        inner = padded.filter(ImageFilter.MinFilter(3)).crop((1, 1, mask.width + 1, mask.height + 1))
    weight = weight[..., None] / np.float32(edge)
    a, b = (np.asarray(image.convert("RGB"), np.float32) for image in (original, edit))
    return Image.fromarray(np.rint(a + weight * (b - a)).astype(np.uint8))
