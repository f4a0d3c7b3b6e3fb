"""The part of pictures that is worked at, and what was asked of them seen from there."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from PIL import Image

from sage import pictures
from sage.method import Request
from sage.settings import Settings


def framed(images: Sequence[Image.Image], requests: Sequence[Request], config: Settings
           ) -> tuple[list[Image.Image], Sequence[Request]]:
    """What of pictures, upright RGB, is worked at, and what was asked of them, seen from there."""
    fit = getattr(config, "fit", "keep")
    parts = [pictures.framed(image, fit) for image in images]
    return parts, [request if part.size == image.size else _moved(request, image.size, fit)
                   for request, image, part in zip(requests, images, parts, strict=bool(requests))]


def _moved(asked: Request, size: tuple[int, int], fit: str) -> Request:
    """What was asked of a picture of a size (W, H) as of the part of it that is worked at."""
    def part(given: Any) -> Any:
        if not isinstance(given, Image.Image):
            return given  # which is refused where it is used
        whole = pictures.normalise(given).convert("L")
        return pictures.framed(whole if whole.size == size else whole.resize(size, Image.Resampling.NEAREST), fit)

    left, top, *_ = pictures.middle(size)
    try:
        points = tuple((x - left, y - top, to_x - left, to_y - top) for x, y, to_x, to_y in asked.points)
    except (TypeError, ValueError):
        points = asked.points
    return replace(asked, mask=part(asked.mask), points=points, foregrounds=tuple(map(part, asked.foregrounds)),
                   moves=tuple(replace(move, source=part(move.source), target=part(move.target))
                               for move in asked.moves))
