"""The camera: where things stand in the picture, and what its rays hit.

The camera is orthographic and looks slightly down. A ray p(t) = o + t d advances by the distance to the surface until
it is there; the normal is the gradient of that distance. Rays that miss remember how near they came, which draws
outlines of the same width at any resolution.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from functools import cache

import numpy as np

from sage.stilllife.forms import FORM
from sage.stilllife.scenes import Place, Scene

Array = np.ndarray

PITCH = 0.30  # radians that the camera looks down
TILT = np.deg2rad(30)  # lean of a tilted thing, clockwise
HEIGHT = {"small": 0.33, "large": 0.58}  # of the picture; both sizes are narrowed to at most WIDEST times that
WIDEST = 0.95
CENTRE = {"left": 0.26, "middle": 0.5, "right": 0.74}
MARGIN = 0.02
BASELINE = 0.12  # lowest point of the main thing above the lower edge
SECOND_HEIGHT, SECOND_BASELINE, SECOND_CENTRE = 0.24, 0.045, {"left": 0.14, "right": 0.86}
OUTLINE = 1.2 / 64

RGB = {
    "red": (0.87, 0.09, 0.09),
    "orange": (0.98, 0.50, 0.04),
    "yellow": (0.98, 0.87, 0.08),
    "green": (0.10, 0.62, 0.18),
    "blue": (0.08, 0.27, 0.87),
    "purple": (0.49, 0.13, 0.70),
    "pink": (0.98, 0.47, 0.71),
    "white": (0.95, 0.95, 0.95),
}

RIGHT = np.array((1.0, 0.0, 0.0))
UP = np.array((0.0, np.cos(PITCH), -np.sin(PITCH)))
AWAY = np.array((0.0, -np.sin(PITCH), -np.cos(PITCH)))
_STEPS, _REACHED = 40, 0.0015


@dataclass(frozen=True)
class Placed:
    """A thing on the stage: its look, and where it is in the picture (all lengths in picture widths)."""

    form: str
    rgb: tuple[float, float, float]
    material: str
    tilted: bool
    scale: float  # picture widths per unit of the object frame
    x: float  # centre of its silhouette
    foot: float  # where it touches the floor, across
    y: float  # lowest point of its silhouette
    box: tuple[float, float, float, float]  # left, right, low, high of its silhouette


@cache
def to_world(form: str, tilted: bool) -> Array:
    """Rotation (3, 3) from the object frame to the world: x right, y up, z towards the viewer."""
    c, s = np.cos(FORM[form].yaw), np.sin(FORM[form].yaw)
    turn = np.array(((c, 0, s), (0, 1, 0), (-s, 0, c)))
    c, s = (np.cos(TILT), np.sin(TILT)) if tilted else (1.0, 0.0)
    return np.array(((c, s, 0), (-s, c, 0), (0, 0, 1))) @ turn


@cache
def _extent(form: str, tilted: bool) -> tuple[float, float, float, float]:
    """Left, right, low, high of the silhouette about the projected origin, in object units."""
    hull = np.array(FORM[form].hull)
    p, r = hull[:, :3] @ to_world(form, tilted).T, hull[:, 3]
    u, v = p @ RIGHT, p @ UP
    return float((u - r).min()), float((u + r).max()), float((v - r).min()), float((v + r).max())


@cache
def _foot(form: str, tilted: bool) -> float:
    """Where the form touches the floor, right of its silhouette's centre, in object units."""
    hull = np.array(FORM[form].hull)
    p = hull[:, :3] @ to_world(form, tilted).T
    low = p[:, 1] - hull[:, 3]
    left, right, _, _ = _extent(form, tilted)
    return float(p[low < low.min() + 0.02, 0].mean() - (left + right) / 2)


def _place(form, rgb, material, tilted, height, x, y, place: Place) -> Placed:
    """A thing where its names put it, which is within the frame, then moved and scaled to its place."""
    left, right, low, high = _extent(form, False)
    scale = min(height / (high - low), height * WIDEST / (right - left))
    left, right, low, high = _extent(form, tilted)
    half = scale * (right - left) / 2
    x = min(max(x, MARGIN + half), 1 - MARGIN - half) + place.dx
    y, scale = y + place.dy, scale * place.scale
    left, right, low, high = (scale * e for e in (left, right, low, high))
    half = (right - left) / 2
    foot = x + scale * _foot(form, tilted)
    return Placed(form, rgb, material, tilted, scale, x, foot, y, (x - half, x + half, y, y + high - low))


def _turn_hue(rgb, turns: float):
    h, s, v = colorsys.rgb_to_hsv(*rgb)
    return colorsys.hsv_to_rgb((h + turns) % 1.0, s, v)


def place_things(scene: Scene) -> list[Placed]:
    """The things of a scene, the main one first."""
    m, j = scene.main, scene.jitter
    height = HEIGHT[m.size] * j.scale
    rgb = _turn_hue(RGB[m.colour], j.hue)
    x = CENTRE[m.position] + j.dx
    things = [_place(m.form, rgb, m.material, m.tilt == "tilted", height, x, BASELINE, m.place)]
    if scene.second:
        s = scene.second
        x = SECOND_CENTRE[s.side]
        things.append(_place(s.form, RGB[s.colour], "matte", False, SECOND_HEIGHT, x, SECOND_BASELINE, s.place))
    return things


@dataclass(frozen=True)
class Surface:
    """What the rays of a window hit. hit, near: (h, w); the rest (n, ...) for the n rays that hit, in window order."""

    window: tuple[slice, slice]
    hit: Array  # bool
    near: Array  # smallest distance to the form, in picture widths
    point: Array  # (n, 3), object frame
    normal: Array  # (n, 3), world frame
    height: Array  # (n,), of the point above the floor, in picture widths


def trace(thing: Placed, x: Array, y: Array) -> Surface | None:
    """What the rays through the picture points x, y (each (h, w), in [0, 1]) hit; None if the window is empty."""
    left, right, low, high = thing.box
    pad = OUTLINE + 0.01
    cols = np.flatnonzero((x[0] > left - pad) & (x[0] < right + pad))
    rows = np.flatnonzero((y[:, 0] > low - pad) & (y[:, 0] < high + pad))
    if not len(cols) or not len(rows):
        return None
    window = (slice(rows[0], rows[-1] + 1), slice(cols[0], cols[-1] + 1))
    el, er, lo, _ = _extent(thing.form, thing.tilted)
    u = (x[window] - np.float32(thing.x)) / np.float32(thing.scale) + np.float32((el + er) / 2)
    v = (y[window] - np.float32(thing.y)) / np.float32(thing.scale) + np.float32(lo)

    rotation = to_world(thing.form, thing.tilted)
    right_o, up_o, away_o = ((rotation.T @ w).astype(np.float32) for w in (RIGHT, UP, AWAY))
    # The ray through (u, v), entering and leaving the slab that holds every form.
    reach = np.float32(1.35)
    t0 = np.float32(0.55 * away_o[1]) - reach
    u, v = u.ravel(), v.ravel()
    o = [u * right_o[i] + v * up_o[i] + t0 * away_o[i] for i in range(3)]
    t = np.zeros_like(u)
    near = np.full_like(u, np.inf)
    sdf = FORM[thing.form].sdf
    live = np.arange(len(u))
    ox, oy, oz, tt, best = *o, t, near
    for step in range(_STEPS):
        d = sdf(ox + tt * away_o[0], oy + tt * away_o[1], oz + tt * away_o[2])
        best = np.minimum(best, d)
        tt = tt + d
        if step % 4 == 3 or step == _STEPS - 1:
            t[live], near[live] = tt, best
            going = (d > _REACHED) & (tt < 2 * reach)
            live, tt, best = live[going], tt[going], best[going]
            if not len(live):
                break
            ox, oy, oz = ox[going], oy[going], oz[going]
    hit = (near <= 2 * _REACHED) & (t < 2 * reach)

    p = [(o[i] + t * away_o[i])[hit] for i in range(3)]
    e = np.float32(0.004)
    normal = np.zeros((len(p[0]), 3), np.float32)
    for k in ((1, -1, -1), (-1, -1, 1), (-1, 1, -1), (1, 1, 1)):  # a tetrahedron of samples
        d = sdf(p[0] + e * k[0], p[1] + e * k[1], p[2] + e * k[2])
        normal += d[:, None] * np.array(k, np.float32)
    normal /= np.sqrt((normal * normal).sum(1, keepdims=True)) + np.float32(1e-9)
    point = np.stack(p, 1)
    world = rotation.astype(np.float32)
    height = (point @ world[1]) * np.float32(thing.scale)
    height = height - (height.min() if len(height) else 0)
    shape = x[window].shape
    return Surface(window, hit.reshape(shape), near.reshape(shape) * thing.scale, point, normal @ world.T, height)


def creases(s: Surface, pixel: float) -> Array:
    """Where the surface turns sharply within an outline's width, (h, w) bool."""
    n = np.zeros((*s.hit.shape, 3), np.float32)
    n[s.hit] = s.normal
    k = max(1, round(OUTLINE * 0.4 / pixel))
    out = np.zeros(s.hit.shape, bool)
    turn = (n[:, 2 * k :] * n[:, : -2 * k]).sum(-1) < 0.6
    out[:, k:-k] |= turn & s.hit[:, 2 * k :] & s.hit[:, : -2 * k]
    turn = (n[2 * k :] * n[: -2 * k]).sum(-1) < 0.6
    out[k:-k] |= turn & s.hit[2 * k :] & s.hit[: -2 * k]
    return out
