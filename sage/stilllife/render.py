"""The renderer: a scene's picture and its layers, the same at every call and, but for sharpness, at every size."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from sage.stilllife.camera import OUTLINE, creases, place_things, trace
from sage.stilllife.scenes import Scene
from sage.stilllife.styles import STYLE, shadow
from sage.stilllife.surroundings import surroundings

Array = np.ndarray

SOFTEST = 64  # pixels a side up to which edges are as soft as they get


def _grid(n: int) -> tuple[Array, Array]:
    at = (np.arange(n, dtype=np.float32) + np.float32(0.5)) / np.float32(n)
    return np.broadcast_to(at, (n, n)), np.broadcast_to(at[::-1, None], (n, n))


def _box_average(picture: Array, k: int) -> Array:
    n = picture.shape[0] // k
    return picture.reshape(n, k, n, k, *picture.shape[2:]).mean((1, 3))


def _depth_order(things: list, shown: Collection[int] | None) -> list[int]:
    """Indices of the things that are shown, back to front: the lower one stands, the nearer it is."""
    return sorted((i for i in range(len(things)) if shown is None or i in shown), key=lambda i: -things[i].y)


def render(scene: Scene, size: int = 64, supersample: int = 2, shown: Collection[int] | None = None) -> Array:
    """The picture of a scene: float32 (size, size, 3) in [0, 1], row 0 on top; the same at every call.

    Args:
        supersample: its square is the number of rays averaged for each pixel.
        shown: the things to draw, with their shadows (0 main, 1 second); all by default. () is the empty stage.

    Raises:
        ValueError: size or supersample is less than 1.
    """
    if size < 1 or supersample < 1:
        raise ValueError(f"size and supersample must be at least 1, not {size} and {supersample}")
    x, y = _grid(size * supersample)
    things = place_things(scene)
    order = _depth_order(things, shown)
    style = STYLE[scene.style]
    soft = min(1.0, SOFTEST / size)
    empty = surroundings(scene.floor, scene.background, scene.jitter.horizon, x, y, soft)
    dark = np.zeros(x.shape, np.float32)
    for i in order:
        dark = np.maximum(dark, shadow(things[i], x, y))
    picture = style.stage(empty, dark, x, y)
    for thing in (things[i] for i in order):
        s = trace(thing, x, y)
        if s is None:
            continue
        view = picture[s.window]
        if style.line is not None:
            view[(s.near < OUTLINE * 0.75) & ~s.hit] = style.line
        view[s.hit] = style.shade(thing, s, x[s.window][s.hit], y[s.window][s.hit])
        if style.line is not None:
            view[creases(s, 1 / (size * supersample))] = style.line
    return np.clip(_box_average(picture, supersample), 0, 1).astype(np.float32)


@dataclass(frozen=True)
class Layers:
    """What covers each pixel of a scene, for its things in the order main, second: all float32 (things, size, size).

    whole: the share of the pixel that a thing covers if nothing hides it; seen: the share where nothing nearer hides
    it; shadow: the darkness that it casts on the floor, in [0, 1], whether a thing hides that or not.
    """

    whole: Array
    seen: Array
    shadow: Array


def layers(scene: Scene, size: int = 64, supersample: int = 2) -> Layers:
    """The layers of a scene's picture; outlines belong to no layer."""
    x, y = _grid(size * supersample)
    things = place_things(scene)
    whole = np.zeros((len(things), *x.shape), np.float32)
    for cover, thing in zip(whole, things, strict=True):
        s = trace(thing, x, y)
        if s is not None:
            cover[s.window] = s.hit
    seen = whole.copy()
    order = _depth_order(things, None)
    for back, i in enumerate(order):
        for j in order[back + 1 :]:
            seen[i] *= 1 - whole[j]
    floor = surroundings(scene.floor, scene.background, scene.jitter.horizon, x, y, min(1.0, SOFTEST / size)).is_floor
    cast = np.stack([shadow(thing, x, y) * floor for thing in things])
    return Layers(*(np.stack([_box_average(a, supersample) for a in part]) for part in (whole, seen, cast)))


def thing_mask(scene: Scene, index: int = 0, size: int = 64, supersample: int = 2) -> Array:
    """Where thing `index` (0 main, 1 second) covers at least half a pixel if nothing hid it: bool (size, size).

    Raises IndexError when the scene has no such thing.
    """
    x, y = _grid(size * supersample)
    covered = np.zeros(x.shape, np.float32)
    s = trace(place_things(scene)[index], x, y)
    if s is not None:
        covered[s.window] = s.hit
    return _box_average(covered, supersample) >= 0.5
