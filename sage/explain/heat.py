"""Numbers as colours: heat maps alone and over a picture, and the bar that says what the colours mean."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

# Anchors of matplotlib's inferno: even steps in it look even, in grey and to colour-blind eyes too.
_ANCHORS = np.array([[int(c[i:i + 2], 16) for i in (0, 2, 4)] for c in (
    "000004 0b0724 210c4a 3d0965 57106e 71196e 8a226a a32c61 bc3754 d24644 e45a31 f1731d f98e09 fcac11 f9cb35 f2ea69 "
    "fcffa4").split()], dtype=np.float64)
CSS = ", ".join(f"rgb({r:.0f} {g:.0f} {b:.0f})" for r, g, b in _ANCHORS)


def colours(values: np.ndarray) -> np.ndarray:
    """(..., ) floats -> (..., 3) uint8; what is not from 0 to 1 has the colour of the nearer end."""
    x = np.linspace(0, 1, len(_ANCHORS))
    return np.stack([np.rint(np.interp(values, x, _ANCHORS[:, i])) for i in range(3)], axis=-1).astype(np.uint8)


def heat(values: np.ndarray, size: tuple[int, int] | None = None) -> Image.Image:
    """(h, w) floats in [0, 1] -> picture, each number a plain rectangle, at `size` (W, H) if given."""
    image = Image.fromarray(colours(values))
    return image if size is None else image.resize(size, Image.Resampling.NEAREST)


def over(picture: Image.Image, values: np.ndarray) -> Image.Image:
    """(h, w) floats in [0, 1] as light on a darkened picture: what is 0 stays dim, what is 1 glows."""
    share = Image.fromarray(np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)).resize(
        picture.size, Image.Resampling.BICUBIC)
    amount = np.asarray(share, dtype=np.float64) / 255
    ground = np.asarray(ImageOps.grayscale(picture), dtype=np.float64)[..., None] * 0.55 * np.ones(3)
    glow = 0.25 + 0.6 * amount[..., None]
    return Image.fromarray(np.rint((1 - glow) * ground + glow * colours(amount)).astype(np.uint8))


def bar(top: float, side: int) -> Image.Image:
    """The scale from 0 to `top` as an upright bar with its two ends written, in a square of `side` pixels."""
    image, width = Image.new("RGB", (side, side), "white"), side // 6
    image.paste(heat(np.linspace(1, 0, side)[:, None], (width, side)), (0, 0))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(side // 10)
    draw.text((width + 6, 0), number(top), "black", font)
    draw.text((width + 6, side - 2), "0", "black", font, anchor="lb")
    return image


def number(value: float) -> str:
    """A number for people: three digits."""
    return f"{value:.3g}"
