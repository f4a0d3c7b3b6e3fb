"""Floors and backgrounds: smooth colours as closed functions of the picture's coordinates.

x runs from 0 at the left to 1 at the right, y from 0 at the lower edge to 1 at the upper edge. All arrays are float32
(h, w); pictures are float32 (h, w, 3) in [0, 1]. Nothing is finer than about a hundredth of the picture, so that a
small autoencoder can hold it; only edges are, by `soft`: their width as a share of what it is at 64 pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Array = np.ndarray


def ramp(d: Array, width: float) -> Array:
    """A soft step: 0 below -width/2, 1 above width/2."""
    return np.clip(d * np.float32(1 / width) + np.float32(0.5), 0, 1)


def mix(a, b, t: Array) -> Array:
    """a + (b - a) t, for colours or pictures a and b and weights t (h, w) or (n,)."""
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    return a + (b - a) * t[..., None]


def _blob(x: Array, y: Array, cx: float, cy: float, rx: float, ry: float) -> Array:
    """1 in the middle of an ellipse, falling to 0 on it."""
    return np.maximum(1 - ((x - cx) * np.float32(1 / rx)) ** 2 - ((y - cy) * np.float32(1 / ry)) ** 2, 0)


def _hash(a: Array, b: Array | float = 0.0) -> Array:
    """A number in [0, 1) for each pair of whole numbers."""
    v = np.sin(a * np.float32(12.9898) + b * np.float32(78.233)) * np.float32(43.7585)
    return v - np.floor(v)


def _blue_sky(x, y, horizon, soft):
    t = np.clip((y - horizon) / (1 - horizon), 0, 1)
    sky = mix((0.66, 0.85, 0.98), (0.20, 0.50, 0.92), t)
    clouds = np.maximum.reduce(
        [
            _blob(x, y, 0.17, 0.80, 0.16, 0.055),
            _blob(x, y, 0.22, 0.84, 0.09, 0.06),
            _blob(x, y, 0.78, 0.88, 0.17, 0.055),
            _blob(x, y, 0.73, 0.92, 0.09, 0.06),
            _blob(x, y, 0.95, 0.68, 0.15, 0.05),
        ]
    )
    return mix(sky, (1.0, 1.0, 1.0), np.clip(clouds * 2.2, 0, 1))


def _sunset(x, y, horizon, soft):
    t = np.clip((y - horizon) / (1 - horizon), 0, 1)
    low = mix((1.0, 0.74, 0.36), (0.93, 0.42, 0.36), np.clip(t * 2.2, 0, 1))
    sky = mix(low, (0.36, 0.22, 0.46), np.clip(t * 1.7 - 0.65, 0, 1))
    d = np.sqrt((x - 0.8) ** 2 + (y - horizon - 0.10) ** 2)
    sky = mix(sky, (1.0, 0.85, 0.45), np.clip(1 - d / 0.34, 0, 1) ** 2)
    return mix(sky, (1.0, 0.96, 0.72), ramp(0.095 - d, 0.025 * soft))


def _brick_wall(x, y, horizon, soft):
    v = (y - horizon) * np.float32(1 / 0.105)
    row = np.floor(v)
    u = x * np.float32(1 / 0.23) + np.where(row % 2 == 0, np.float32(0.2), np.float32(0.7))
    col = np.floor(u)
    brick = mix((0.60, 0.28, 0.21), (0.72, 0.38, 0.29), _hash(row, col))
    fu, fv = u - col, v - row
    inside = np.minimum(np.minimum(fu, 1 - fu) * np.float32(0.23), np.minimum(fv, 1 - fv) * np.float32(0.105))
    return mix((0.80, 0.74, 0.67), brick, ramp(inside - np.float32(0.010), 0.014 * soft))


def _forest(x, y, horizon, soft):
    h = y - horizon
    wall = mix((0.62, 0.76, 0.66), (0.80, 0.90, 0.88), np.clip(h / 0.5, 0, 1))

    def trees(picture, spacing, shift, height, colour, bark):
        u = x * np.float32(1 / spacing) + np.float32(shift)
        n = np.floor(u)
        f = u - n - np.float32(0.5)
        top = height * (0.85 + 0.3 * _hash(n))
        picture = mix(picture, bark, ramp(0.09 - np.abs(f), 0.06 * soft) * ramp(top * 0.5 - h, 0.02 * soft))
        # Two tiers of a fir.
        width = (top - h) / (top * 0.72) * 0.52
        width = np.where(h > top * 0.52, (top - h) / (top * 0.48) * 0.42, width)
        crown = ramp(width - np.abs(f), 0.10 * soft) * ramp(h - top * 0.2, 0.02 * soft)
        return mix(picture, mix(colour, np.multiply(colour, 0.72), ramp(f, 0.3)), crown)

    far = trees(wall, 0.17, 0.15, 0.36, (0.36, 0.56, 0.44), (0.40, 0.42, 0.34))
    return trees(far, 0.27, 0.62, 0.47, (0.12, 0.36, 0.20), (0.32, 0.23, 0.15))


def _grey_wall(x, y, horizon, soft):
    light = np.clip(1 - np.sqrt((x - 0.3) ** 2 + (y - 0.9) ** 2), 0, 1)
    return mix((0.47, 0.48, 0.50), (0.70, 0.71, 0.72), light)


def _curtain(x, y, horizon, soft):
    phase = x * np.float32(2 * np.pi * 5.5) + np.float32(0.5) * np.sin(y * np.float32(5.0))
    fold = np.float32(0.5) + np.float32(0.5) * np.sin(phase + np.float32(0.5) * np.cos(phase))
    cloth = mix((0.10, 0.29, 0.33), (0.36, 0.62, 0.64), fold)
    # The hem sways, and lets a dark gap be seen.
    hem = y - horizon - np.float32(0.022) + np.float32(0.010) * np.sin(phase)
    return mix((0.12, 0.14, 0.16), cloth, ramp(hem, 0.02 * soft))


def _ground(x, y, horizon):
    """Coordinates on the floor: across, and away from the viewer."""
    below = np.maximum(horizon - y, 0)
    depth = 1 / (below + np.float32(0.22))
    return (x - np.float32(0.5)) * depth, depth


def _wooden(x, y, horizon, soft):
    across, depth = _ground(x, y, horizon)
    u = across * np.float32(1.9) + np.float32(0.35)
    plank = np.floor(u)
    f = u - plank
    wood = mix((0.62, 0.41, 0.22), (0.75, 0.53, 0.31), _hash(plank, 3.0))
    wood = wood * (1 + 0.05 * np.sin(depth * 2.2 + plank * 2.0) * np.sin(f * np.pi))[..., None]
    edge = np.minimum(f, 1 - f) / depth * np.float32(1 / 1.9)
    return mix((0.40, 0.25, 0.13), wood, ramp(edge - np.float32(0.004), 0.012 * soft))


def _stone(x, y, horizon, soft):
    across, depth = _ground(x, y, horizon)
    v = depth * np.float32(1.15)
    row = np.floor(v)
    u = across * np.float32(1.25) + np.where(row % 2 == 0, np.float32(0.1), np.float32(0.6))
    col = np.floor(u)
    fu, fv = u - col, v - row
    tile = mix((0.50, 0.51, 0.54), (0.67, 0.67, 0.68), _hash(row, col + 5))
    edge_u = np.minimum(fu, 1 - fu) / depth * np.float32(1 / 1.25)
    edge_v = np.minimum(fv, 1 - fv) / (depth * depth) * np.float32(1 / 1.15)
    return mix((0.34, 0.34, 0.37), tile, ramp(np.minimum(edge_u, edge_v) - np.float32(0.006), 0.014 * soft))


def _grass(x, y, horizon, soft):
    t = np.clip((horizon - y) / horizon, 0, 1)
    wave = np.sin(x * 17 + 2 * np.sin(y * 21)) * np.sin(y * 40 + 3 * np.sin(x * 9))
    green = mix((0.52, 0.70, 0.28), (0.30, 0.54, 0.16), t)
    return green * (1 + 0.11 * wave)[..., None]


def _sand(x, y, horizon, soft):
    t = np.clip((horizon - y) / horizon, 0, 1)
    _, depth = _ground(x, y, horizon)
    ripple = np.sin(depth * 9 + 1.3 * np.sin(x * 7 + 1) + 0.8 * np.sin(x * 13))
    return mix((0.93, 0.82, 0.58), (0.87, 0.72, 0.46), t) * (1 + 0.055 * ripple * t)[..., None]


def _snow(x, y, horizon, soft):
    t = np.clip((horizon - y) / horizon, 0, 1)
    drift = np.sin(x * 6 + 1 + 2.5 * t) * np.sin(t * 7 + x * 4)
    return mix((0.97, 0.98, 1.0), (0.80, 0.87, 0.96), np.clip(0.35 + 0.45 * drift, 0, 1))


_BACKGROUND = {
    "blue sky": _blue_sky,
    "sunset": _sunset,
    "brick wall": _brick_wall,
    "forest": _forest,
    "grey wall": _grey_wall,
    "curtain": _curtain,
}
_FLOOR = {"wooden": _wooden, "stone": _stone, "grass": _grass, "sand": _sand, "snow": _snow}
# How far the floor's far edge rises and falls: it bulges where the floor is soft.
_BUMPS = {"wooden": 0.0, "stone": 0.0, "grass": 0.006, "sand": 0.012, "snow": 0.018}


@dataclass(frozen=True)
class Stage:
    """The empty stage. colours: (h, w, 3); is_floor, far: (h, w) in [0, 1], the second the floor's far edge, as a line
    of the same width at every size."""

    colours: Array
    is_floor: Array
    far: Array


def surroundings(floor: str, background: str, horizon: float, x: Array, y: Array, soft: float = 1.0) -> Stage:
    """The empty stage of a floor and a background that meet at `horizon` above the lower edge."""
    edge = horizon + _BUMPS[floor] * np.sin(x * 8 + 0.6)
    is_floor = ramp(edge - y, 0.012 * soft)
    far = np.clip(1 - np.abs(ramp(edge - y, 0.012) - np.float32(0.5)) * 2.1, 0, 1)
    # Rows above `floor_from` are background only, rows below `wall_until` floor only.
    floor_from = int(np.count_nonzero(y[:, 0] > horizon + 0.03))
    wall_until = int(np.count_nonzero(y[:, 0] >= horizon - 0.03))
    h = np.float32(horizon)
    stage = np.zeros((*x.shape, 3), np.float32)
    stage[:wall_until] = _BACKGROUND[background](x[:wall_until], y[:wall_until], h, soft)
    ground = _FLOOR[floor](x[floor_from:], y[floor_from:], h, soft)
    stage[floor_from:] = mix(stage[floor_from:], ground, is_floor[floor_from:])
    return Stage(stage, is_floor, far)
