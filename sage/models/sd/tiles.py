"""The autoencoder a tile at a time, for pictures that do not fit as a whole.

A tile sees nothing beyond its edges, and its group norms know nothing of the rest: the result differs a little from
that of the whole picture.  Where tiles overlap they fade into each other.
"""

from collections.abc import Callable, Iterator
from fractions import Fraction

import torch
from torch import Tensor

SIDE = 512  # pixels of a tile, as large as the pictures that the autoencoders were trained on
OVERLAP = 128


def spans(length: int, tile: int, overlap: int) -> list[tuple[int, int]]:
    """Begin and end of equal tiles that cover `length`, each overlapping the next by at least `overlap`."""
    if length <= tile:
        return [(0, length)]
    number = -(-(length - overlap) // (tile - overlap))
    return [(begin, begin + tile) for begin in (round(i * (length - tile) / (number - 1)) for i in range(number))]


def by_tiles(function: Callable[[Tensor], Tensor], x: Tensor, tile: int, overlap: int, scale: Fraction) -> Tensor:
    """`function` of each tile of `x` (B, C, h, w), put together to (B, C', h * scale, w * scale).

    Args:
        tile, overlap: in places of `x`; both and every side times `scale` are whole numbers.
    """
    out: Tensor | None = None
    for top, bottom in _aligned(spans(x.shape[2], tile, overlap), scale):
        for left, right in _aligned(spans(x.shape[3], tile, overlap), scale):
            y = function(x[:, :, top:bottom, left:right])
            if out is None:
                shape = [int(s * scale) for s in x.shape[2:]]
                out, total = y.new_zeros(*y.shape[:2], *shape), y.new_zeros(1, 1, *shape)
            weight = (_fade(y.shape[2], int(overlap * scale), y)[:, None] * _fade(y.shape[3], int(overlap * scale), y))
            place = (..., slice(int(top * scale), int(bottom * scale)), slice(int(left * scale), int(right * scale)))
            out[place] += y * weight
            total[place] += weight
    assert out is not None  # there is a tile
    return out / total


def _aligned(pieces: list[tuple[int, int]], scale: Fraction) -> Iterator[tuple[int, int]]:
    """Tiles whose edges fall between places of what comes out."""
    grid = scale.denominator
    return ((begin // grid * grid, end if end % grid == 0 else end // grid * grid) for begin, end in pieces)


def _fade(length: int, overlap: int, like: Tensor) -> Tensor:
    """Weights that rise over the first and fall over the last `overlap` places, above 0 everywhere."""
    ramp = torch.arange(1, length + 1, device=like.device, dtype=like.dtype) / max(overlap, 1)
    return torch.minimum(ramp, ramp.flip(0)).clamp(max=1)
