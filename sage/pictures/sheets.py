"""Contact sheets: rows of titled pictures as one."""

from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont, ImageOps

from sage.pictures.files import normalise


def sheet(rows: Sequence[Sequence[tuple[str, Image.Image]]], side: int = 256) -> Image.Image:
    """Rows of (title, picture) as one labelled picture.

    Small pictures are enlarged in whole pixels until their longer side is at least `side`; large ones are reduced to
    twice that.
    """
    pad, size = side // 32, max(10, side // 18)
    font = ImageFont.load_default(size)
    line = size * 4 // 3
    cells = [[(title, _fitted(picture, side)) for title, picture in row] for row in rows]
    widths = [max(row[i][1].width for row in cells if i < len(row)) for i in range(max(map(len, cells)))]
    titles = [[_wrap(title, font, widths[i]) for i, (title, _) in enumerate(row)] for row in cells]
    heads = [max(map(len, row)) * line for row in titles]
    heights = [max(picture.height for _, picture in row) for row in cells]
    page = Image.new("RGB", (sum(widths) + pad * (len(widths) + 1), sum(heads) + sum(heights) + 2 * pad * len(rows)),
                     "white")
    draw, top = ImageDraw.Draw(page), pad
    for row, lines, head, height in zip(cells, titles, heads, heights, strict=True):
        left = pad
        for (_, picture), words, width in zip(row, lines, widths, strict=False):
            for i, text in enumerate(words):
                draw.text((left, top + head - (len(words) - i) * line), text, "black", font)
            page.paste(picture, (left, top + head))
            left += width + pad
        top += head + height + 2 * pad
    return page


def _fitted(picture: Image.Image, side: int) -> Image.Image:
    picture, longer = normalise(picture), max(picture.size)
    if longer < side:
        return ImageOps.scale(picture, -(-side // longer), Image.Resampling.NEAREST)
    if longer > 2 * side:
        width, height = (max(1, round(s * 2 * side / longer)) for s in picture.size)
        return picture.resize((width, height), Image.Resampling.LANCZOS)
    return picture


def _wrap(title: str, font: Any, width: int, limit: int = 4) -> list[str]:
    """A title in lines no wider than `width` pixels, at most `limit` of them."""
    lines = [""]
    for word in title.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    if len(lines) > limit:
        lines = [*lines[:limit - 1], f"{lines[limit - 1]} ..."]
    return lines
