"""The styles: what colours and light make of the empty stage, and of a surface that the rays hit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sage.stilllife.camera import AWAY, BASELINE, Placed, Surface, to_world
from sage.stilllife.forms import FORM, is_stem
from sage.stilllife.surroundings import Stage, mix, ramp

Array = np.ndarray

CREAM = (0.93, 0.86, 0.72)
PAPER = (0.97, 0.965, 0.94)
PENCIL = (0.27, 0.27, 0.29)
INK = (0.08, 0.07, 0.10)

LIGHT = np.array((-0.52, 0.70, 0.49)) / np.linalg.norm((-0.52, 0.70, 0.49))


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


def _hatch(x: Array, y: Array) -> Array:
    """Pencil strokes, (h, w) in [0, 1]."""
    phase = (x + y) * np.float32(2 * np.pi / 0.085) + np.float32(0.6) * np.sin((x - y) * np.float32(9))
    return np.float32(0.5) + np.float32(0.5) * np.sin(phase)


def shadow(t: Placed, x: Array, y: Array) -> Array:
    """Darkness that a thing casts on the floor, (h, w) in [0, 1], soft, to the lower right."""
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
    return np.clip((np.float32(1.25) - d) / np.float32(0.55), 0, 1) * (1 - 0.35 * k)


def _light(thing: Placed, s: Surface) -> tuple[Array, Array, Array]:
    """Diffuse light, white highlight, and sky reflected by a shiny thing, each (n,) in [0, 1]."""
    ndl = s.normal @ LIGHT.astype(np.float32)
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
    world = to_world(thing.form, thing.tilted).T.astype(np.float32)
    bend = np.float32(0.9 if thing.form == "cube" else 0.45)
    away = (s.point - np.array((0, 0.5, 0), np.float32)) @ world * bend + AWAY.astype(np.float32)
    away /= np.sqrt((away * away).sum(1, keepdims=True))
    facing = -(n * away).sum(1)
    r = away + 2 * facing[:, None] * n
    up, side = r[:, 1], np.arctan2(r[:, 0], r[:, 2])
    spot = np.clip(r @ LIGHT.astype(np.float32), 0, 1) ** 22 * np.float32(1.9)
    window = ramp(0.30 - np.abs(side + 0.82), 0.2) * ramp(0.55 - np.abs(up - 0.02), 0.3) * np.float32(0.92)
    highlight = np.clip(np.maximum(spot, window), 0, 1)
    sky = ramp(up - np.float32(0.2), 0.4) * (np.float32(0.20) + np.float32(0.40) * (1 - np.clip(facing, 0, 1)) ** 2)
    diffuse = diffuse * (np.float32(0.70) + np.float32(0.30) * ramp(up + np.float32(0.42), 0.3))
    return diffuse, highlight, sky


def _vivid(rgb: Array, amount: float) -> Array:
    grey = rgb.mean(-1, keepdims=True)
    return np.clip(grey + (rgb - grey) * np.float32(amount), 0, 1)


def _photo_stage(empty, dark, x, y):
    return empty.colours * (1 - np.float32(0.58) * dark * empty.is_floor)[..., None]


def _photo_shade(thing, s, x, y):
    diffuse, highlight, sky = _light(thing, s)
    colour = _albedo(thing, s) * (np.float32(0.36) + np.float32(0.74) * diffuse)[:, None]
    if thing.material == "shiny":
        colour = mix(colour, (0.72, 0.86, 1.0), sky)
    return mix(colour, (1, 1, 1), highlight)


def _cartoon_stage(empty, dark, x, y):
    stage = _vivid(empty.colours * np.float32(1.08), 1.35)
    stage = mix(stage, stage * np.float32(0.55), ramp(dark - np.float32(0.45), 0.1) * empty.is_floor)
    return mix(stage, INK, np.float32(0.75) * empty.far)


def _cartoon_shade(thing, s, x, y):
    diffuse, highlight, sky = _light(thing, s)
    lit = ramp(diffuse - np.float32(0.36), 0.06)
    colour = _vivid(_albedo(thing, s), 1.1) * (np.float32(0.66) + np.float32(0.36) * lit)[:, None]
    if thing.material == "shiny":
        colour = mix(colour, (0.85, 0.94, 1.0), np.float32(0.5) * ramp(sky - np.float32(0.17), 0.03))
    return mix(np.clip(colour, 0, 1), (1, 1, 1), ramp(highlight - np.float32(0.35), 0.1))


def _sketch_stage(empty, dark, x, y):
    tone = empty.colours.mean(-1)
    pale = mix(PAPER, _vivid(empty.colours, 1.2), np.full(x.shape, 0.42, np.float32))
    hatch = _hatch(x, y)
    stroke = hatch * (np.float32(0.10) * np.clip(1.3 - 1.6 * tone, 0, 1) + np.float32(0.42) * dark * empty.is_floor)
    return mix(pale, PENCIL, np.maximum(stroke, np.float32(0.55) * empty.far))


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


def _night_stage(empty, dark, x, y):
    grey = empty.colours.mean(-1, keepdims=True)
    stage = (np.float32(0.75) * empty.colours + np.float32(0.25) * grey) * np.array(_MOONLIT, np.float32)
    # A lamp's pool on the floor; it stays where it is when the things move.
    pool = np.clip(1 - ((x - 0.5) / 0.65) ** 2 - ((y - BASELINE - 0.05) / 0.36) ** 2, 0, 1) * empty.is_floor
    stage = stage * (1 + np.array((1.1, 0.75, 0.2), np.float32) * pool[..., None])
    return stage * (1 - np.float32(0.72) * dark * empty.is_floor)[..., None]


def _night_shade(thing, s, x, y):
    diffuse, highlight, sky = _light(thing, s)
    warm = diffuse[:, None] ** np.float32(1.2) * np.array((0.98, 0.88, 0.68), np.float32)
    colour = _albedo(thing, s) * (np.array((0.12, 0.14, 0.24), np.float32) + warm)
    if thing.material == "shiny":
        colour = mix(colour, (0.45, 0.55, 0.85), sky)
    return mix(colour, (1.0, 0.97, 0.88), highlight)


@dataclass(frozen=True)
class Style:
    """stage(empty stage, dark, x, y, each (h, w)) and shade(thing, surface, x, y, each (n,)) make colours (h, w, 3)
    and (n, 3); line is the outlines' colour, or None."""

    stage: Callable[[Stage, Array, Array, Array], Array]
    shade: Callable[[Placed, Surface, Array, Array], Array]
    line: tuple[float, float, float] | None = None


STYLE = {
    "photo": Style(_photo_stage, _photo_shade),
    "cartoon": Style(_cartoon_stage, _cartoon_shade, INK),
    "sketch": Style(_sketch_stage, _sketch_shade, PENCIL),
    "night": Style(_night_stage, _night_shade),
}
