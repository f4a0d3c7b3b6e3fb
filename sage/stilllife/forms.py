"""The forms: signed distance functions in an object frame, y up, standing on y = 0, about one unit high.

Each function takes and returns float32 arrays of one common shape. A distance may be a lower bound, never more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Array = np.ndarray


def _radius(x: Array, z: Array) -> Array:
    return np.sqrt(x * x + z * z)


def _box(a: Array, b: Array, half_a: float, half_b: float, rounding: float) -> Array:
    """Distance to a rounded rectangle |a| <= half_a, |b| <= half_b in the plane."""
    qa, qb = np.abs(a) - (half_a - rounding), np.abs(b) - (half_b - rounding)
    outside = np.sqrt(np.maximum(qa, 0) ** 2 + np.maximum(qb, 0) ** 2)
    return outside + np.minimum(np.maximum(qa, qb), 0) - rounding


def _smooth_min(a: Array, b: Array, k: float) -> Array:
    h = np.maximum(k - np.abs(a - b), 0)
    return np.minimum(a, b) - h * h / (4 * k)


def _ball(x, y, z):
    return np.sqrt(x * x + (y - 0.5) ** 2 + z * z) - 0.5


def _cube(x, y, z):
    r = 0.03
    qx, qy, qz = np.abs(x) - (0.5 - r), np.abs(y - 0.5) - (0.5 - r), np.abs(z) - (0.5 - r)
    outside = np.sqrt(np.maximum(qx, 0) ** 2 + np.maximum(qy, 0) ** 2 + np.maximum(qz, 0) ** 2)
    return outside + np.minimum(np.maximum(np.maximum(qx, qy), qz), 0) - r


def _cylinder(x, y, z):
    return _box(_radius(x, z), y - 0.6, 0.42, 0.6, 0.02)


def _cone(x, y, z):
    # Slant plane of a cone of radius 0.53 and height 1.2, both planes drawn in by the rounding.
    slant = (1.2 * _radius(x, z) + 0.53 * (y - 1.2)) * np.float32(1 / np.hypot(1.2, 0.53))
    return -_smooth_min(-slant, y, 0.06)


def _ring(x, y, z):
    q = np.sqrt(x * x + (y - 0.5) ** 2) - 0.36
    return np.sqrt(q * q + z * z) - 0.14


def _mug(x, y, z):
    r = _radius(x, z)
    body = _box(r, y - 0.5, 0.5, 0.5, 0.05)
    body = np.maximum(body, np.minimum(0.41 - r, y - 0.12))
    q = np.sqrt((x - 0.53) ** 2 + (y - 0.5) ** 2) - 0.29
    handle = np.maximum(np.sqrt(q * q + z * z) - 0.1, 0.45 - r)
    return np.minimum(body, handle)


def _bottle(x, y, z):
    r = _radius(x, z)
    body = _box(r, y - 0.47, 0.42, 0.47, 0.12)
    neck = _box(r, y - 1.0, 0.14, 0.5, 0.03)
    lip = _box(r, y - 1.44, 0.19, 0.07, 0.03)
    return np.minimum(_smooth_min(body, neck, 0.3), lip)


def _cap(x, y, z):
    a, b = 0.66, 0.52
    h = y - 0.66
    rr = x * x + z * z
    k0 = np.sqrt(rr * (1 / a**2) + h * h * (1 / b**2))
    k1 = np.sqrt(rr * (1 / a**4) + h * h * (1 / b**4))
    return -_smooth_min(-(k0 * (k0 - 1) / (k1 + 1e-4)), h, 0.1)


def _stem(x, y, z):
    r = _radius(x, z)
    flare = 0.06 * np.clip(1 - y / 0.4, 0, 1) ** 2
    return _box(r - flare, y - 0.4, 0.2, 0.4, 0.04) * 0.9


def _mushroom(x, y, z):
    return np.minimum(_cap(x, y, z), _stem(x, y, z))


def _disc(radius: float, y: float, n: int = 24) -> list[tuple[float, float, float, float]]:
    angles = np.arange(n) * (2 * np.pi / n)
    return [(radius * np.cos(a), y, radius * np.sin(a), 0.0) for a in angles]


@dataclass(frozen=True)
class Form:
    """A form: its distance function, its turn about the vertical, and spheres (x, y, z, r) that span its hull.

    `stripes` maps a point to a number whose whole part counts stripes; `checks` to one whose whole part counts checks.
    """

    sdf: Callable[[Array, Array, Array], Array]
    yaw: float
    hull: tuple[tuple[float, float, float, float], ...]
    stripes: Callable[[Array, Array, Array], Array]
    checks: Callable[[Array, Array, Array], Array]


def _sectors(a: Array, b: Array, n: int) -> Array:
    """The sector, of n, in which the direction (a, b) lies, counted from a positive number."""
    return np.floor(np.arctan2(a, b) * np.float32(n / (2 * np.pi)) + np.float32(n + 0.5))


def _lathe(height: float):
    """Patterns of a form turned on the vertical axis: five stripes; four rows of six checks."""

    def stripes(x, y, z):
        return y * np.float32(5 / height)

    def checks(x, y, z):
        return np.floor(y * np.float32(4 / height)) + _sectors(x, z, 6)

    return stripes, checks


def _cube_checks(x, y, z):
    # Three cells a side; the small shrink keeps the faces themselves off a cell boundary.
    return sum(np.floor(c * np.float32(2.98) + np.float32(1.5)) for c in (x, y - 0.5, z)) + 9


def _ring_stripes(x, y, z):
    return _sectors(y - 0.5, x, 10)


def _ring_checks(x, y, z):
    return _sectors(y - 0.5, x, 10) + (x * x + (y - 0.5) ** 2 > 0.36**2)


def _cap_stripes(x, y, z):
    return _sectors(x, z, 10)


def _cap_checks(x, y, z):
    return _sectors(x, z, 8) + (y > 0.93)


_HANDLE = [(0.53 + 0.29 * np.cos(a), 0.5 + 0.29 * np.sin(a), 0.0, 0.1) for a in np.linspace(-1.5, 1.5, 9)]
_TUBE = [(0.36 * np.cos(a), 0.5 + 0.36 * np.sin(a), 0.0, 0.14) for a in np.linspace(0, 2 * np.pi, 33)]
_CORNERS = [(x, y, z, 0.0) for x in (-0.5, 0.5) for y in (0.0, 1.0) for z in (-0.5, 0.5)]

FORM = {
    "ball": Form(_ball, 0.0, ((0.0, 0.5, 0.0, 0.5),), *_lathe(1.0)),
    "cube": Form(_cube, -0.55, tuple(_CORNERS), _lathe(1.01)[0], _cube_checks),
    "cylinder": Form(_cylinder, 0.0, tuple(_disc(0.42, 0.0) + _disc(0.42, 1.2)), *_lathe(1.21)),
    "cone": Form(_cone, 0.0, tuple(_disc(0.53, 0.0) + _disc(0.0, 1.2, 1)), *_lathe(1.21)),
    "ring": Form(_ring, 0.75, tuple(_TUBE), _ring_stripes, _ring_checks),
    "mug": Form(_mug, -0.35, tuple(_disc(0.5, 0.0) + _disc(0.5, 1.0) + _HANDLE), *_lathe(1.01)),
    "bottle": Form(_bottle, 0.0, tuple(_disc(0.42, 0.0) + _disc(0.42, 0.9) + _disc(0.19, 1.51)), *_lathe(1.52)),
    "mushroom": Form(
        _mushroom,
        0.0,
        tuple(_disc(0.25, 0.0) + _disc(0.66, 0.7) + _disc(0.4, 1.07)),
        _cap_stripes,
        _cap_checks,
    ),
}


def is_stem(form: str, x: Array, y: Array, z: Array) -> Array | None:
    """Where a point of a mushroom's surface belongs to its stem, as a boolean array; None for other forms."""
    return _stem(x, y, z) < _cap(x, y, z) if form == "mushroom" else None
