"""Pictures <-> tensors (1, 3, H, W) in [-1, 1].  Imports no torch before a tensor is asked for."""

import math
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageChops, ImageOps

from sage.errors import NumericsError, SettingsError
from sage.pictures.files import normalise

if TYPE_CHECKING:
    from torch import Tensor

MAX_ASPECT = 4.0


def working_size(width: int, height: int, size: int, multiple: int, fit: str = "keep") -> tuple[int, int]:
    """The size at which a picture is worked at: an area of about size x size, in the picture's aspect.

    Args:
        size: side in pixels of a square of that area.
        multiple: both sides are rounded to this.
        fit: "keep" the aspect, up to 4 : 1 either way; or a square, by "squash" or "crop" (`framed`).
    Returns:
        Width and height.
    Raises:
        SettingsError: `size` is not a multiple, naming the nearest one that is.
    """
    check_side("size", size, multiple)
    if fit != "keep":
        return size, size
    stretch = math.sqrt(min(max(width / height, 1 / MAX_ASPECT), MAX_ASPECT))
    across, down = (max(1, round(side / multiple)) * multiple for side in (size * stretch, size / stretch))
    return across, down


def middle(size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The middle square of a picture of a size (W, H): left, top, right, bottom."""
    side = min(size)
    left, top = ((length - side) // 2 for length in size)
    return left, top, left + side, top + side


def framed(image: Image.Image, fit: str) -> Image.Image:
    """What of a picture is worked at: with "crop" its middle square, else all of it."""
    return image if fit != "crop" or image.width == image.height else image.crop(middle(image.size))


def check_side(name: str, side: int, multiple: int) -> None:
    """SettingsError for a side in pixels that is not a multiple, naming the nearest one that is."""
    if side < multiple or side % multiple:
        nearest = max(1, round(side / multiple)) * multiple
        raise SettingsError(f"{name} is {side}: must be a multiple of {multiple} for this model, such as {nearest}")


def to_tensor(image: Image.Image, size: tuple[int, int]) -> "Tensor":
    """An RGB picture -> (1, 3, H, W) float32 in [-1, 1], resized to `size` (W, H) if it has another."""
    import torch
    if image.size != tuple(size):
        image = image.resize(size, Image.Resampling.LANCZOS)
    x = np.asarray(image, dtype=np.float32) / np.float32(127.5) - 1
    return torch.from_numpy(x.transpose(2, 0, 1)[None].copy())


def to_mask(image: Image.Image, size: tuple[int, int], cells: str = "half") -> "Tensor":
    """A picture of where something may be done -> (1, 1, h, w) float32 in {0, 1}: the places at least half white.

    Args:
        size: (w, h) of the result.
        cells: "half"; or "nearest", those whose first pixel is; or "touched", those of which a pixel beside the middle
            is not black; or "box", those from where the least box around the white begins to before where it ends.
    Raises:
        SettingsError: no picture, or one without such a place.
    """
    import torch
    if not isinstance(image, Image.Image):
        raise SettingsError(f"the mask is {type(image).__name__}: give a PIL picture, white where the edit may be")
    grey = normalise(image).convert("L").convert("F")
    if cells == "box":
        mask = _of_box(np.asarray(grey) >= 127.5, size)
    elif cells == "half":
        mask = np.asarray(grey.resize(size, Image.Resampling.BOX), dtype=np.float32) >= 127.5
    else:
        from torch.nn.functional import interpolate
        white = torch.from_numpy(np.array(grey, dtype=np.float32)[None, None])
        mask = (interpolate(white, size[::-1]) >= 127.5 if cells == "nearest" else
                interpolate(white, size[::-1], mode="bilinear", align_corners=False) > 0)[0, 0].numpy()
    if not mask.any():
        raise SettingsError("the mask has no white place of any size, and nothing may change: give one that is white "
                            "where the edit may be")
    return torch.from_numpy(mask[None, None].astype(np.float32))


def _of_box(white: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(h, w) bool of (H, W) bool."""
    sides = []
    for axis, places in enumerate(size[::-1]):
        inside, full = np.flatnonzero(white.any(axis=1 - axis)), white.shape[axis]
        begin, end = (inside[0] * places // full, (inside[-1] + 1) * places // full) if len(inside) else (0, 0)
        sides.append((begin <= np.arange(places)) & (np.arange(places) < end))
    return np.outer(*sides)


def white(image: Image.Image) -> "Tensor":
    """A picture of where something is -> (1, 1, H, W) bool, its own size: True where it is at least half white.

    Raises:
        SettingsError: no picture.
    """
    import torch
    if not isinstance(image, Image.Image):
        raise SettingsError(f"the foreground is {type(image).__name__}: give a PIL picture, white where it is")
    return torch.from_numpy(np.asarray(normalise(image).convert("L"))[None, None] >= 128)


def from_pixels(pixels: np.ndarray) -> Image.Image:
    """(H, W, 3) floats in [0, 1] -> picture."""
    return Image.fromarray((pixels * 255 + 0.5).astype(np.uint8))


def to_picture(x: "Tensor", size: tuple[int, int] | None = None, quantise: str = "round") -> Image.Image:
    """(1, 3, H, W) in about [-1, 1] -> picture, resized to `size` (W, H) if given.

    Args:
        quantise: "round" to the nearest of 256 values, or "truncate" as the released code does.
    Raises:
        NumericsError: not finite.
    """
    values = x.detach().float().cpu().numpy()[0].transpose(1, 2, 0)
    if not np.isfinite(values).all():
        raise NumericsError("the picture has values that are not finite, and was not made")
    values = np.clip(values * np.float32(127.5) + np.float32(127.5), 0, 255)
    image = Image.fromarray((np.rint(values) if quantise == "round" else values).astype(np.uint8))
    return image if size is None or image.size == tuple(size) else image.resize(size, Image.Resampling.LANCZOS)


def show_mask(image: Image.Image, mask: "Tensor | None", within: Image.Image | None = None) -> Image.Image:
    """A picture with everything outside a mask faded.

    Args:
        mask: (..., h, w), bool or in [0, 1]; None for everywhere.
        within: a mask besides, 0 and 255 ("L"), of the picture's size.
    """
    inside = Image.new("L", image.size, 255)
    if mask is not None:
        values = np.clip(mask.detach().float().cpu().numpy().reshape(-1, *mask.shape[-2:])[0], 0, 1)
        inside = Image.fromarray(np.rint(values * 255).astype(np.uint8)).resize(image.size, Image.Resampling.NEAREST)
    if within is not None:
        inside = ImageChops.multiply(inside, within)
    faded = Image.blend(ImageOps.grayscale(image).convert("RGB"), Image.new("RGB", image.size, "white"), 0.75)
    return Image.composite(image, faded, inside)
