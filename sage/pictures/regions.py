"""Regions that are moved or filled: read from text, matched with each other, and moved or filled as plain pixels."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from sage.errors import SettingsError
from sage.pictures.masks import black_and_white, open_mask

RADIUS = 10  # of the disc around a point: this share of the shorter side
NUMBERS = re.compile(r"-?\d{1,9}(\.\d+)?(,-?\d{1,9}(\.\d+)?)+")


@dataclass(frozen=True)
class Move:
    """What is to be where: what is in `source` shall be in `target`.

    Attributes:
        source, target: 0 and 255 ("L"), of the picture's size; they need not be of one form.
    """

    source: Image.Image
    target: Image.Image


def read_move(start: Image.Image | str, end: Image.Image | str, size: tuple[int, int],
              radius: float | None = None) -> Move:
    """A move of two regions, each "x,y", "left,top,right,bottom" in pixels, a mask file, or a mask of that size.

    A point stands for a disc; beside a box or a mask, for that region moved so that its middle is there.

    Args:
        size: (width, height) of the picture.
        radius: of a disc in pixels; default: a tenth of the shorter side.
    Raises:
        SettingsError, PictureError: what is no region of the picture, said in one line.
    """
    radius = min(size) / RADIUS if radius is None else radius
    a, b = _point(start, size), _point(end, size)
    if a and b:
        source, target = (_disc(point, radius, size) for point in (a, b))
    elif a:
        target = _region(end, size)
        source = _shifted(target, a)
    else:
        source = _region(start, size)
        target = _shifted(source, b) if b else _region(end, size)
    for text, mask in ((start, source), (end, target)):
        if not mask.getbbox():
            named = text if isinstance(text, str) else "a region"
            raise SettingsError(f"{named} lies outside the picture, which has {size[0]} x {size[1]} pixels")
    return Move(source, target)


def read_box(text: str, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """"left,top,right,bottom" -> a box inside the picture; SettingsError for anything else."""
    numbers = _numbers(text, size)
    if len(numbers) != 4:
        raise SettingsError(f"{text[:40]!r} is no box: give left,top,right,bottom in pixels")
    left, top, right, bottom = (round(n) for n in numbers)
    box = max(left, 0), max(top, 0), min(right, size[0]), min(bottom, size[1])
    if box[0] >= box[2] or box[1] >= box[3]:
        raise SettingsError(f"the box {text} has nothing of the picture in it, which has {size[0]} x {size[1]} pixels")
    return box


def _numbers(text: str, size: tuple[int, int]) -> list[float]:
    """What is written with commas between, [] for other text; SettingsError for shares of the sides."""
    numbers = [float(n) for n in text.split(",")] if NUMBERS.fullmatch(text) else []
    if numbers and all(0 <= n <= 1 for n in numbers) and not all(n.is_integer() for n in numbers):
        pixels = ",".join(str(round(n * side)) for n, side in zip(numbers, 2 * size, strict=False))
        raise SettingsError(f"{text[:40]} looks like shares of the sides, and pixels are meant: of {size[0]} x "
                            f"{size[1]} that is {pixels}")
    return numbers


def _point(region: Image.Image | str, size: tuple[int, int]) -> tuple[float, float] | None:
    numbers = _numbers(region, size) if isinstance(region, str) else []
    return (numbers[0], numbers[1]) if len(numbers) == 2 else None


def _region(text: Image.Image | str, size: tuple[int, int]) -> Image.Image:
    if not isinstance(text, str):
        return text
    if NUMBERS.fullmatch(text):
        return box_mask(read_box(text, size), size)
    if not os.path.exists(text):  # which no name is too long for
        raise SettingsError(f"{text[:60]!r} is no region: give x,y or left,top,right,bottom in pixels, or a mask file")
    return open_mask(text, size)


def _disc(middle: tuple[float, float], radius: float, size: tuple[int, int]) -> Image.Image:
    mask, (x, y) = Image.new("L", size), middle
    ImageDraw.Draw(mask).ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    return mask


def _shifted(mask: Image.Image, middle: tuple[float, float]) -> Image.Image:
    left, top, right, bottom = mask.getbbox() or (0, 0, 0, 0)
    moved = Image.new("L", mask.size)
    moved.paste(mask, (round(middle[0] - (left + right) / 2), round(middle[1] - (top + bottom) / 2)))
    return moved


def box_mask(box: tuple[int, int, int, int], size: tuple[int, int]) -> Image.Image:
    """0 and 255, white in a box (left, top, right, bottom)."""
    mask = Image.new("L", size)
    mask.paste(255, box)
    return mask


def union(moves: Sequence[Move]) -> Image.Image:
    """0 and 255, white in whatever any of the moves begins or ends in."""
    masks = [np.asarray(mask) > 0 for move in moves for mask in (move.source, move.target)]
    return Image.fromarray(np.any(masks, axis=0).astype(np.uint8) * 255)


def cells(mask: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """(h, w) bool for `size` (h, w): the cells of which a mask covers at least half, or else those it covers most."""
    share = _covered(mask, size)
    return share >= min(127.5, float(share.max()))


def touched(mask: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """(h, w) bool for `size` (h, w): the cells of which a mask covers anything."""
    return _covered(mask, size) > 0


def _covered(mask: Image.Image, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(mask.convert("F").resize(size[::-1], Image.Resampling.BOX))


# ---- which place goes where


def matched(source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each place of one region comes from in another (RegionDrag, 2407.18247, sec. 3.1).

    Columns of the target are spread evenly over those of the source, and in each the places over those of that column.

    Args:
        source, target: (h, w) bool, neither empty.
    Returns:
        (n, 2) int64 rows and columns of the target's places, and of those in the source that they come from.
    """
    to = np.argwhere(target)
    columns = np.flatnonzero(source.any(0))
    share = _share(to[:, 1], np.full(len(to), to[:, 1].min()), np.full(len(to), to[:, 1].max()))
    come = columns[np.rint(share * (len(columns) - 1)).astype(int)]
    tops, ends = _ends(target)
    share = _share(to[:, 0], tops[to[:, 1]], ends[to[:, 1]])
    tops, ends = _ends(source)
    rows = np.rint(tops[come] + share * (ends[come] - tops[come])).astype(int)
    return to, np.stack([rows, come], axis=1)


def of_points(points: Sequence[Sequence[float]], side: int, size: tuple[int, int],
              patch: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Places of pairs of points, each pair of places once, in the order of their numbers.

    Args:
        points: (from x, from y, to x, to y) in pixels.
        side: of a place, in pixels.
        size: rows and columns of places; what lies beyond is the nearest by its number.
        patch: cells along each side of a place.
    Returns:
        (n, 2) int64 rows and columns of the cells that something comes to, and of those that it comes from.
    Raises:
        SettingsError: no pairs of points.
    """
    try:
        pairs = np.asarray(points, np.float64).reshape(-1, 4)
    except (TypeError, ValueError):
        pairs = np.full((1, 4), np.nan)
    if not np.isfinite(pairs).all():
        raise SettingsError("points have to be (from x, from y, to x, to y) in pixels, four numbers a pair")
    found = []
    pairs = np.unique(pairs.astype(np.int64) // side, axis=0)
    within = np.indices((patch, patch)).reshape(2, -1).T
    for x, y in (pairs[:, 2:].T, pairs[:, :2].T):
        places = np.clip(y * size[1] + x, 0, size[0] * size[1] - 1)
        corners = np.stack([places // size[1], places % size[1]], axis=1) * patch
        found.append((corners[:, None] + within).reshape(-1, 2))
    return found[0], found[1]


def _share(value: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return np.where(high > low, (value - low) / np.maximum(high - low, 1), 0.5)


def _ends(region: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first and the last row of each column; of an empty one what says nothing."""
    return region.argmax(0), len(region) - 1 - region[::-1].argmax(0)


# ---- plain pixels


def pixels_moved(image: Image.Image, moves: Sequence[Move], cut: bool = True) -> Image.Image:
    """The naive way: the pixels themselves are moved, and what they leave is filled with the colours around it.

    Args:
        cut: else what was moved stays where it was as well.
    """
    before = np.asarray(image.convert("RGB"))
    after = before.copy()
    if cut:
        for move in moves:
            after = np.asarray(pixels_filled(Image.fromarray(after), move.source)).copy()
    for move in moves:
        to, come = matched(np.asarray(move.source) > 0, np.asarray(move.target) > 0)
        after[to[:, 0], to[:, 1]] = before[come[:, 0], come[:, 1]]
    return Image.fromarray(after)


def pixels_of_points(image: Image.Image, points: np.ndarray) -> Image.Image:
    """The same of single pixels.

    Args:
        points: (n, 2, 2), from and to, each x and y in pixels; what lies beyond the picture is its nearest pixel.
    """
    before = np.asarray(image.convert("RGB"))
    (x, y), (to_x, to_y) = np.clip(points, 0, (image.width - 1, image.height - 1)).astype(np.int64).transpose(1, 2, 0)
    hole = np.zeros(before.shape[:2], np.uint8)
    hole[y, x] = 255
    after = np.array(pixels_filled(image, Image.fromarray(hole)))
    after[to_y, to_x] = before[y, x]
    return Image.fromarray(after)


def pixels_filled(image: Image.Image, hole: Image.Image) -> Image.Image:
    """A picture with a hole, white in a mask, in the mean colour of a rim around it."""
    pixels, inside = np.array(image.convert("RGB")), np.asarray(hole) > 0
    rim = (np.asarray(hole.filter(ImageFilter.MaxFilter(5))) > 0) & ~inside
    colour = pixels[rim].mean(0) if rim.any() else pixels.reshape(-1, 3).mean(0)
    pixels[inside] = np.rint(colour).astype(np.uint8)
    return Image.fromarray(pixels)


def composite(background: Image.Image, reference: Image.Image, mask: Image.Image,
              box: tuple[int, int, int, int], whole: bool = False) -> Image.Image:
    """The naive way: what the mask marks of a reference picture, scaled to fill a box, pasted there (2307.12493).

    Args:
        mask: 0 and 255, of the reference's size.
        box: left, top, right, bottom in the background.
        whole: scale the whole reference to the box, black around what the mask marks, as EEdit's released code does.
    """
    seen = reference.convert("RGB")
    if whole:
        seen = Image.composite(seen, Image.new("RGB", seen.size), mask.convert("L"))
    marks = None if whole else mask.getbbox()
    size = box[2] - box[0], box[3] - box[1]
    thing, cover = (part.crop(marks).resize(size, Image.Resampling.BILINEAR) for part in (seen, mask.convert("L")))
    out = background.convert("RGB").copy()
    out.paste(thing, box[:2], black_and_white(cover, size))
    return out
