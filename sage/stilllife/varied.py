"""Scenes with free places: things stand anywhere on the floor, in sizes between the named ones, sometimes in pairs.

A place is drawn beside the names, which stay those of the thing; `nameable` says which names still fit it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sage.stilllife.camera import HEIGHT, SECOND_BASELINE, SECOND_CENTRE, SECOND_HEIGHT, Placed, place_things
from sage.stilllife.scenes import ATTRIBUTES, Place, Scene, is_held_out, sample_companion, sample_scene

FREE_SHARE = 0.25  # of scenes whose main thing's place and size are no longer those of their names
PAIR_SHARE = 0.25  # of the scenes with a second thing: it is of like size, partly before or behind the main one
NAMED = {"dx": (-0.04, 0.04), "dy": (-0.03, 0.04), "scale": (0.93, 1.07)}
FREE = {"dx": (-0.12, 0.12), "dy": (-0.06, 0.09), "scale": (0.75, 1.25)}
TINY = {"dx": (-0.04, 0.04), "dy": (-0.02, 0.04), "scale": (0.9, 1.15)}
TRIES = 40
AMBIGUOUS = {"dx": 0.075, "scale": 1.16}  # from here on a position's or a size's name is no longer said


def _uniform(rng: np.random.Generator, ranges: dict[str, tuple[float, float]]) -> Place:
    return Place(**{name: float(rng.uniform(low, high)) for name, (low, high) in ranges.items()})


def sample_accompanied(rng: np.random.Generator, scene: Scene) -> Scene:
    """The scene with a second thing that is tiny, near its side."""
    second = sample_companion(rng, scene.main)
    return replace(scene, second=replace(second, place=_uniform(rng, TINY)))


def within_frame(thing: Placed) -> bool:
    """Whether the thing's silhouette lies in the picture."""
    left, right, low, high = thing.box
    return left >= 0 and right <= 1 and low >= 0 and high <= 1


def _beside_main(rng: np.random.Generator, scene: Scene) -> Place:
    """A place of the second thing at which it is of like size as the main one, and partly before or behind it."""
    main = place_things(replace(scene, second=None))[0]
    scale = HEIGHT[scene.main.size] * scene.main.place.scale / SECOND_HEIGHT * float(rng.uniform(0.75, 1.0))
    trial = replace(scene, second=replace(scene.second, place=Place(scale=min(scale, Place.RANGES["scale"][1]))))
    second = place_things(trial)[1]
    halves = (main.box[1] - main.box[0] + second.box[1] - second.box[0]) / 2
    apart = halves * float(rng.uniform(0.5, 0.85)) * (1 if scene.second.side == "right" else -1)
    depth = float(rng.uniform(0.035, 0.07)) * (1 if rng.random() < 0.5 else -1)
    dx, dy = main.x + apart - SECOND_CENTRE[scene.second.side], main.y + depth - SECOND_BASELINE
    return Place(dx, dy, trial.second.place.scale)


def sample_varied_scene(rng: np.random.Generator) -> Scene:
    """A scene as `sample_scene` draws it, then given places; everything is within the frame."""
    scene = sample_scene(rng)
    free, pair = rng.random() < FREE_SHARE, rng.random() < PAIR_SHARE
    for _ in range(TRIES):
        placed = replace(scene, main=replace(scene.main, place=_uniform(rng, FREE if free else NAMED)))
        if scene.second:
            place = _beside_main(rng, placed) if pair else _uniform(rng, TINY)
            placed = replace(placed, second=replace(scene.second, place=place))
        if all(within_frame(thing) for thing in place_things(placed)):
            return placed
    return scene


def varied_scene(seed: int, held_out: bool = False) -> Scene:
    """The training scene of a seed (an integer >= 0), or the evaluation scene; no combination is among both."""
    rng = np.random.default_rng((4 + int(held_out), seed))
    while is_held_out(scene := sample_varied_scene(rng)) != held_out:
        pass
    return scene


def nameable(scene: Scene) -> frozenset[str]:
    """The attributes whose names fit what is seen: a thing between two positions or sizes has no name for it."""
    place, unsaid = scene.main.place, set()
    if abs(place.dx + scene.jitter.dx) > AMBIGUOUS["dx"]:
        unsaid.add("position")
    if not 1 / AMBIGUOUS["scale"] < place.scale * scene.jitter.scale < AMBIGUOUS["scale"]:
        unsaid.add("size")
    absent = {name for name, value in scene.attributes().items() if value == "none"}
    return frozenset(ATTRIBUTES) - unsaid - absent


def relation(scene: Scene) -> str:
    """How the second thing stands to the main one: "beside" when it is tiny, else "behind" or "before".

    Raises ValueError when there is none.
    """
    if scene.second is None:
        raise ValueError("a scene with one thing has no relation of things")
    if scene.second.place.scale <= TINY["scale"][1]:
        return "beside"
    main, second = place_things(scene)
    return "behind" if second.y > main.y else "before"
