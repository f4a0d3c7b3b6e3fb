"""The renderer: a scene's picture, the same at every call and, but for sharpness, at every size."""

from __future__ import annotations

import numpy as np

from sage.stilllife.camera import OUTLINE, creases, place_things, trace
from sage.stilllife.scenes import Scene
from sage.stilllife.styles import STYLE, shadows
from sage.stilllife.surroundings import surroundings

Array = np.ndarray


def _grid(n: int) -> tuple[Array, Array]:
    at = (np.arange(n, dtype=np.float32) + np.float32(0.5)) / np.float32(n)
    return np.broadcast_to(at, (n, n)), np.broadcast_to(at[::-1, None], (n, n))


def _box_average(picture: Array, k: int) -> Array:
    n = picture.shape[0] // k
    return picture.reshape(n, k, n, k, *picture.shape[2:]).mean((1, 3))


def render(scene: Scene, size: int = 64, supersample: int = 2) -> Array:
    """The picture of a scene: float32 (size, size, 3) in [0, 1], row 0 on top; the same at every call.

    `supersample` squared rays are averaged for each pixel. Raises ValueError unless both are at least 1.
    """
    if size < 1 or supersample < 1:
        raise ValueError(f"size and supersample must be at least 1, not {size} and {supersample}")
    x, y = _grid(size * supersample)
    things = place_things(scene)
    style = STYLE[scene.style]
    stage, is_floor = surroundings(scene.floor, scene.background, scene.jitter.horizon, x, y)
    picture = style.stage(stage, is_floor, shadows(things, x, y), x, y)
    for thing in things:
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
