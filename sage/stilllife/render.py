"""The renderer: an orthographic camera that looks slightly down, sphere-traced forms, and four styles of shading.

A ray p(t) = o + t d advances by the distance to the surface until it is there; the normal is the gradient of that
distance. Rays that miss remember how near they came, which draws outlines of the same width at any resolution.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from functools import cache

import numpy as np

from sage.stilllife.forms import FORM, is_stem
from sage.stilllife.scenes import Scene
from sage.stilllife.surroundings import mix, ramp, surroundings

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
CREAM = (0.93, 0.86, 0.72)
PAPER = (0.97, 0.965, 0.94)
PENCIL = (0.27, 0.27, 0.29)
INK = (0.08, 0.07, 0.10)

_RIGHT = np.array((1.0, 0.0, 0.0))
_UP = np.array((0.0, np.cos(PITCH), -np.sin(PITCH)))
_AWAY = np.array((0.0, -np.sin(PITCH), -np.cos(PITCH)))
_LIGHT = np.array((-0.52, 0.70, 0.49)) / np.linalg.norm((-0.52, 0.70, 0.49))
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
def _to_world(form: str, tilted: bool) -> Array:
    """Rotation from the object frame to the world."""
    c, s = np.cos(FORM[form].yaw), np.sin(FORM[form].yaw)
    turn = np.array(((c, 0, s), (0, 1, 0), (-s, 0, c)))
    c, s = (np.cos(TILT), np.sin(TILT)) if tilted else (1.0, 0.0)
    return np.array(((c, s, 0), (-s, c, 0), (0, 0, 1))) @ turn


@cache
def _extent(form: str, tilted: bool) -> tuple[float, float, float, float]:
    """Left, right, low, high of the silhouette about the projected origin, in object units."""
    hull = np.array(FORM[form].hull)
    p, r = hull[:, :3] @ _to_world(form, tilted).T, hull[:, 3]
    u, v = p @ _RIGHT, p @ _UP
    return float((u - r).min()), float((u + r).max()), float((v - r).min()), float((v + r).max())


@cache
def _foot(form: str, tilted: bool) -> float:
    """Where the form touches the floor, right of its silhouette's centre, in object units."""
    hull = np.array(FORM[form].hull)
    p = hull[:, :3] @ _to_world(form, tilted).T
    low = p[:, 1] - hull[:, 3]
    left, right, _, _ = _extent(form, tilted)
    return float(p[low < low.min() + 0.02, 0].mean() - (left + right) / 2)


def _place(form, rgb, material, tilted, height, x, y) -> Placed:
    left, right, low, high = _extent(form, False)
    scale = min(height / (high - low), height * WIDEST / (right - left))
    left, right, low, high = (scale * e for e in _extent(form, tilted))
    half = (right - left) / 2
    x = min(max(x, MARGIN + half), 1 - MARGIN - half)
    foot = x + scale * _foot(form, tilted)
    return Placed(form, rgb, material, tilted, scale, x, foot, y, (x - half, x + half, y, y + high - low))


def _turn_hue(rgb, turns: float):
    h, s, v = colorsys.rgb_to_hsv(*rgb)
    return colorsys.hsv_to_rgb((h + turns) % 1.0, s, v)


def place_things(scene: Scene) -> list[Placed]:
    """The things of a scene, back to front."""
    m, j = scene.main, scene.jitter
    height = HEIGHT[m.size] * j.scale
    rgb = _turn_hue(RGB[m.colour], j.hue)
    x = CENTRE[m.position] + j.dx
    things = [_place(m.form, rgb, m.material, m.tilt == "tilted", height, x, BASELINE)]
    if scene.second:
        s = scene.second
        things.append(
            _place(s.form, RGB[s.colour], "matte", False, SECOND_HEIGHT, SECOND_CENTRE[s.side], SECOND_BASELINE)
        )
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


def _trace(thing: Placed, x: Array, y: Array) -> Surface | None:
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

    rotation = _to_world(thing.form, thing.tilted)
    right_o, up_o, away_o = ((rotation.T @ w).astype(np.float32) for w in (_RIGHT, _UP, _AWAY))
    # The ray through (u, v), entering and leaving the slab that holds every form.
    reach = np.float32(1.35)
    centre = rotation.T @ np.array((0, 0.55, 0)) if not thing.tilted else np.array((0, 0.55, 0))
    t0 = np.float32(centre @ away_o) - reach
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


def _albedo(thing: Placed, s: Surface) -> Array:
    """Colours (n, 3) before light."""
    px, py, pz = s.point.T
    base = np.array(thing.rgb, np.float32)
    out = np.broadcast_to(base, s.point.shape).copy()
    if thing.material in ("striped", "checkered"):
        form = FORM[thing.form]
        pattern = form.stripes if thing.material == "striped" else form.checks
        odd = np.floor(pattern(px, py, pz)) % 2 == 1
        if thing.material == "striped":
            white = min(thing.rgb) > 0.8
            out[odd] = (0.30, 0.30, 0.32) if white else (0.97, 0.97, 0.97)
        else:
            out[odd] = 0.06 + 0.14 * base
    if thing.material == "shiny" and min(thing.rgb) > 0.8:  # leaves room for highlights on white
        out *= np.float32(0.93)
    stem = is_stem(thing.form, px, py, pz)
    if stem is not None:
        out[stem] = CREAM
    return out


def _creases(s: Surface, pixel: float) -> Array:
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


def _hatch(x: Array, y: Array) -> Array:
    """Pencil strokes, (h, w) in [0, 1]."""
    phase = (x + y) * np.float32(2 * np.pi / 0.085) + np.float32(0.6) * np.sin((x - y) * np.float32(9))
    return np.float32(0.5) + np.float32(0.5) * np.sin(phase)


def _shadows(things: list[Placed], x: Array, y: Array) -> Array:
    """Darkness that the things cast on the floor, (h, w) in [0, 1], soft, to the lower right."""
    dark = np.zeros(x.shape, np.float32)
    for t in things:
        left, right, low, high = t.box
        half = (right - left) / 2
        foot = half * (0.62 if t.tilted or t.form == "mushroom" else 0.85)
        depth = max(foot * 0.42, 0.03)
        length = 0.30 * (high - low)
        u = (x - np.float32(0.6 * t.foot + 0.4 * t.x if t.tilted else t.x)) * np.float32(1 / foot)
        v = (y - np.float32(low + depth * 0.55)) * np.float32(1 / depth)
        # Distance to the segment from the foot to the tip of the shadow.
        tip_u, tip_v = length / foot, -0.12 * length / depth
        k = np.clip((u * tip_u + v * tip_v) / np.float32(tip_u**2 + tip_v**2), 0, 1)
        d = np.sqrt((u - k * tip_u) ** 2 + (v - k * tip_v) ** 2)
        dark = np.maximum(dark, np.clip((np.float32(1.25) - d) / np.float32(0.55), 0, 1) * (1 - 0.35 * k))
    return dark


def _light(thing: Placed, s: Surface) -> tuple[Array, Array, Array]:
    """Diffuse light, white highlight, and sky reflected by a shiny thing, each (n,) in [0, 1]."""
    ndl = s.normal @ _LIGHT.astype(np.float32)
    diffuse = np.clip(ndl * np.float32(0.62) + np.float32(0.38), 0, 1)
    diffuse = diffuse * (np.float32(0.72) + np.float32(0.28) * np.clip(s.height / np.float32(0.10), 0, 1))
    if thing.form == "mug":  # the hollow is dark towards its bottom
        px, py, pz = s.point.T
        inside = (px * px + pz * pz < 0.43**2) & (py < 0.97)
        diffuse = np.where(inside, diffuse * (0.25 + 0.5 * py), diffuse)
    if thing.material != "shiny":
        return diffuse, np.zeros_like(diffuse), np.zeros_like(diffuse)
    # A little perspective, so that flat faces reflect different parts of the sky too.
    n = s.normal
    world = _to_world(thing.form, thing.tilted).T.astype(np.float32)
    bend = np.float32(0.9 if thing.form == "cube" else 0.45)
    away = (s.point - np.float32((0, 0.5, 0))) @ world * bend + _AWAY.astype(np.float32)
    away /= np.sqrt((away * away).sum(1, keepdims=True))
    facing = -(n * away).sum(1)
    r = away + 2 * facing[:, None] * n
    up, side = r[:, 1], np.arctan2(r[:, 0], r[:, 2])
    spot = np.clip(r @ _LIGHT.astype(np.float32), 0, 1) ** 22 * np.float32(1.9)
    window = ramp(0.30 - np.abs(side + 0.82), 0.2) * ramp(0.55 - np.abs(up - 0.02), 0.3) * np.float32(0.92)
    highlight = np.clip(np.maximum(spot, window), 0, 1)
    sky = ramp(up - np.float32(0.2), 0.4) * (np.float32(0.20) + np.float32(0.40) * (1 - np.clip(facing, 0, 1)) ** 2)
    diffuse = diffuse * (np.float32(0.70) + np.float32(0.30) * ramp(up + np.float32(0.42), 0.3))
    return diffuse, highlight, sky


def _vivid(rgb: Array, amount: float) -> Array:
    grey = rgb.mean(-1, keepdims=True)
    return np.clip(grey + (rgb - grey) * np.float32(amount), 0, 1)


def _far_edge(is_floor: Array) -> Array:
    """The line in which the floor meets the background."""
    return np.clip(1 - np.abs(is_floor - np.float32(0.5)) * 2.1, 0, 1)


# Styles. Each repaints the empty stage (h, w, 3), and shades the n hits of a surface, (n, 3).


def _photo_stage(stage, is_floor, dark, x, y):
    return stage * (1 - np.float32(0.58) * dark * is_floor)[..., None]


def _photo_shade(thing, s, x, y):
    diffuse, highlight, sky = _light(thing, s)
    colour = _albedo(thing, s) * (np.float32(0.36) + np.float32(0.74) * diffuse)[:, None]
    if thing.material == "shiny":
        colour = mix(colour, (0.72, 0.86, 1.0), sky)
    return mix(colour, (1, 1, 1), highlight)


def _cartoon_stage(stage, is_floor, dark, x, y):
    stage = _vivid(stage * np.float32(1.08), 1.35)
    stage = mix(stage, stage * np.float32(0.55), ramp(dark - np.float32(0.45), 0.1) * is_floor)
    return mix(stage, INK, np.float32(0.75) * _far_edge(is_floor))


def _cartoon_shade(thing, s, x, y):
    diffuse, highlight, sky = _light(thing, s)
    lit = ramp(diffuse - np.float32(0.36), 0.06)
    colour = _vivid(_albedo(thing, s), 1.1) * (np.float32(0.66) + np.float32(0.36) * lit)[:, None]
    if thing.material == "shiny":
        colour = mix(colour, (0.85, 0.94, 1.0), np.float32(0.5) * ramp(sky - np.float32(0.17), 0.03))
    return mix(np.clip(colour, 0, 1), (1, 1, 1), ramp(highlight - np.float32(0.35), 0.1))


def _sketch_stage(stage, is_floor, dark, x, y):
    tone = stage.mean(-1)
    pale = mix(PAPER, _vivid(stage, 1.2), np.full(x.shape, 0.42, np.float32))
    hatch = _hatch(x, y)
    stroke = hatch * (np.float32(0.10) * np.clip(1.3 - 1.6 * tone, 0, 1) + np.float32(0.42) * dark * is_floor)
    return mix(pale, PENCIL, np.maximum(stroke, np.float32(0.55) * _far_edge(is_floor)))


def _sketch_shade(thing, s, x, y):
    diffuse, highlight, sky = _light(thing, s)
    albedo = _albedo(thing, s)
    fill = mix(PAPER, albedo, np.float32(0.70) + np.float32(0.12) * (1 - diffuse))
    shade = np.clip(np.float32(0.62) - diffuse, 0, 1)
    stroke = _hatch(x, y) * np.clip(shade * np.float32(1.4), 0, np.float32(0.5))
    colour = mix(fill, albedo * np.float32(0.45), stroke)
    if thing.material == "shiny":
        colour = mix(colour, PAPER, np.clip(sky * 1.6, 0, 0.8))
    return mix(colour, (1, 1, 1), np.clip(highlight * 1.4, 0, 1))


_MOONLIT = (0.34, 0.42, 0.72)


def _night_stage(stage, is_floor, dark, x, y):
    grey = stage.mean(-1, keepdims=True)
    stage = (np.float32(0.75) * stage + np.float32(0.25) * grey) * np.array(_MOONLIT, np.float32)
    # A lamp's pool on the floor; it stays where it is when the things move.
    pool = np.clip(1 - ((x - 0.5) / 0.65) ** 2 - ((y - BASELINE - 0.05) / 0.36) ** 2, 0, 1) * is_floor
    stage = stage * (1 + np.array((1.1, 0.75, 0.2), np.float32) * pool[..., None])
    return stage * (1 - np.float32(0.72) * dark * is_floor)[..., None]


def _night_shade(thing, s, x, y):
    diffuse, highlight, sky = _light(thing, s)
    warm = diffuse[:, None] ** np.float32(1.2) * np.array((0.98, 0.88, 0.68), np.float32)
    colour = _albedo(thing, s) * (np.array((0.12, 0.14, 0.24), np.float32) + warm)
    if thing.material == "shiny":
        colour = mix(colour, (0.45, 0.55, 0.85), sky)
    return mix(colour, (1.0, 0.97, 0.88), highlight)


_STYLE = {
    "photo": (_photo_stage, _photo_shade, None),
    "cartoon": (_cartoon_stage, _cartoon_shade, INK),
    "sketch": (_sketch_stage, _sketch_shade, PENCIL),
    "night": (_night_stage, _night_shade, None),
}


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
    stage_of, shade, line = _STYLE[scene.style]
    stage, is_floor = surroundings(scene.floor, scene.background, scene.jitter.horizon, x, y)
    picture = stage_of(stage, is_floor, _shadows(things, x, y), x, y)
    for thing in things:
        s = _trace(thing, x, y)
        if s is None:
            continue
        view = picture[s.window]
        if line is not None:
            view[(s.near < OUTLINE * 0.75) & ~s.hit] = line
        view[s.hit] = shade(thing, s, x[s.window][s.hit], y[s.window][s.hit])
        if line is not None:
            view[_creases(s, 1 / (size * supersample))] = line
    return np.clip(_box_average(picture, supersample), 0, 1).astype(np.float32)


def thing_mask(scene: Scene, index: int = 0, size: int = 64, supersample: int = 2) -> Array:
    """Where thing `index` (0 main, 1 second) covers at least half a pixel if nothing hid it: bool (size, size).

    Raises IndexError when the scene has no such thing.
    """
    x, y = _grid(size * supersample)
    covered = np.zeros(x.shape, np.float32)
    s = _trace(place_things(scene)[index], x, y)
    if s is not None:
        covered[s.window] = s.hit
    return _box_average(covered, supersample) >= 0.5
