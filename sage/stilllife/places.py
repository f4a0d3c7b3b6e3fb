"""Edits of places: a thing is moved, scaled, exchanged, removed or put in, and the true result is known.

The camera is orthographic, so a thing that moves is the same pixels elsewhere, and where each of its points goes is
known exactly; its shadow moves with it, and the floor that it hid is seen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

import sage.stilllife.prompts as prompts
from sage.stilllife.camera import CENTRE, HEIGHT, Placed, place_things
from sage.stilllife.edits import Prompts, changed_pixels, dilate, prompts_of
from sage.stilllife.render import Layers, layers, render
from sage.stilllife.scenes import Scene, is_held_out
from sage.stilllife.varied import nameable, sample_accompanied, sample_varied_scene, within_frame

KINDS = ("move", "scale", "swap", "remove", "insert")
MAIN_THING, SECOND_THING = 0, 1
PIXEL = 1 / 128  # moves are whole numbers of these, so that at 128 pixels a side things keep their pixels
NEAREST, FARTHEST = 12, 56  # pixels of a move
LIFT = 10  # most pixels of it upwards or downwards
FACTORS = (0.6, 0.85), (1.18, 1.6)
LEAST_CHANGE = 0.01


def _with_place(scene: Scene, index: int, dx: float = 0.0, dy: float = 0.0, factor: float = 1.0) -> Scene:
    name = "main" if index == MAIN_THING else "second"
    thing = getattr(scene, name)
    place = replace(thing.place, dx=thing.place.dx + dx, dy=thing.place.dy + dy, scale=thing.place.scale * factor)
    return replace(scene, **{name: replace(thing, place=place)})


def _renamed(scene: Scene) -> Scene:
    """The same scene with the main thing's position and size named as they are now; a side that is the second thing's
    is no name for it."""
    placed, main = place_things(scene)[MAIN_THING], scene.main
    taken = scene.second.side if scene.second else None
    height = HEIGHT[main.size] * main.place.scale * scene.jitter.scale
    size = min(HEIGHT, key=lambda s: abs(np.log(height / HEIGHT[s])))
    position = min((p for p in CENTRE if p != taken), key=lambda p: abs(placed.x - CENTRE[p]))
    scale = main.place.scale * HEIGHT[main.size] / HEIGHT[size]
    named = replace(main, position=position, size=size, place=replace(main.place, scale=scale))
    scene = replace(scene, main=named)
    return _with_place(scene, MAIN_THING, dx=placed.x - place_things(scene)[MAIN_THING].x)


def moved(scene: Scene, index: int, dx: float, dy: float = 0.0) -> Scene:
    """The scene with thing `index` (0 main, 1 second) moved by picture widths to the right and upwards."""
    return _renamed(_with_place(scene, index, dx, dy))


def scaled(scene: Scene, index: int, factor: float) -> Scene:
    """The scene with thing `index` made larger by a factor; the middle of its lower edge stays."""
    return _renamed(_with_place(scene, index, factor=factor))


def swapped(scene: Scene) -> Scene:
    """The scene with its two things in each other's place."""
    main, second = place_things(scene)
    dx, dy = second.x - main.x, second.y - main.y
    return _renamed(_with_place(_with_place(scene, MAIN_THING, dx, dy), SECOND_THING, -dx, -dy))


@dataclass(frozen=True)
class PlaceCase:
    """An edit of places and its true result.

    thing: the one that is edited, 0 main, 1 second; of a swap both are. full, short: prompts as an `EditCase` has them;
    those of a move, a scaling or a swap are alike where no name of the place changes.
    """

    kind: int
    source: Scene
    target: Scene
    thing: int
    full: Prompts
    short: Prompts

    def pictures(self, size: int = 128) -> tuple[np.ndarray, np.ndarray]:
        """The true pictures of source and target, each float32 (size, size, 3) in [0, 1]."""
        return render(self.source, size), render(self.target, size)

    def mask(self, size: int = 128) -> np.ndarray:
        """Where the true pictures differ, grown by one pixel: bool (size, size)."""
        return dilate(changed_pixels(*self.pictures(size)))

    def layers(self, size: int = 128) -> tuple[Layers, Layers]:
        """The layers of source and target."""
        return layers(self.source, size), layers(self.target, size)

    def revealed(self, size: int = 128) -> np.ndarray:
        """Where a thing was and none is any more: bool (size, size)."""
        before, after = ((part.seen.sum(0) >= 0.5) for part in self.layers(size))
        return before & ~after

    def points(self, size: int = 128) -> np.ndarray:
        """Where points of the things go, (n, 2, 2) float: from and to, each x and y in pixels, y downwards.

        Of a scaling three, of a move one, of a swap two, else none.
        """
        pairs: list[tuple[tuple[float, float], tuple[float, float]]] = []
        for before, after in zip(place_things(self.source), place_things(self.target), strict=False):
            if before != after:
                pairs += zip(_handles(before, self.kind), _handles(after, self.kind), strict=True)
        return np.array(pairs, np.float64).reshape(-1, 2, 2) * (size, -size) + (0, size)


def _handles(thing: Placed, kind: int) -> list[tuple[float, float]]:
    """Points of a thing's silhouette that say where it is, or how large: picture widths, y upwards."""
    left, right, low, high = thing.box
    middle = (low + high) / 2
    if KINDS[kind] == "scale":
        return [(thing.x, high), (left, middle), (right, middle)]
    return [(thing.x, middle)]


def _propose(kind: int, rng: np.random.Generator) -> tuple[Scene, Scene, int]:
    """A source, a target, and the thing that is edited."""
    scene = sample_varied_scene(rng)
    if KINDS[kind] in ("swap", "remove", "insert") and scene.second is None:
        scene = sample_accompanied(rng, scene)
    thing = int(rng.integers(2)) if scene.second else MAIN_THING
    if KINDS[kind] == "move":
        dx = int(rng.integers(NEAREST, FARTHEST + 1)) * (1 if rng.random() < 0.5 else -1)
        return scene, moved(scene, thing, dx * PIXEL, int(rng.integers(-LIFT, LIFT + 1)) * PIXEL), thing
    if KINDS[kind] == "scale":
        low, high = FACTORS[int(rng.integers(2))]
        return scene, scaled(scene, thing, float(rng.uniform(low, high))), thing
    if KINDS[kind] == "swap":
        return scene, swapped(scene), MAIN_THING
    without = replace(scene, second=None)
    pair = (scene, without) if KINDS[kind] == "remove" else (without, scene)
    return *pair, SECOND_THING


def place_case(kind: int, seed: int, held_out: bool = True) -> PlaceCase:
    """The edit of a kind (index into KINDS) and a seed (an integer >= 0); the same at every call.

    Both scenes are held out, or with `held_out` False neither is; things stay in the frame. Raises ValueError for an
    unknown kind.
    """
    if kind not in range(len(KINDS)):
        raise ValueError(f"kind {kind!r} is not one of 0 to {len(KINDS) - 1}")
    rng = np.random.default_rng((8, kind, int(held_out), seed))
    wordings = prompts.draw_wording(rng), prompts.draw_wording(rng)
    while True:
        try:
            source, target, thing = _propose(kind, rng)
        except ValueError:  # farther or larger than a `Place` can be
            continue
        scenes = source, target
        if any(is_held_out(scene) != held_out for scene in scenes):
            continue
        if not all(within_frame(placed) for scene in scenes for placed in place_things(scene)):
            continue
        if changed_pixels(render(source), render(target)).mean() > LEAST_CHANGE:
            break
    a, b = source.attributes(), target.attributes()
    changed = tuple(name for name in a if a[name] != b[name])
    full = [prompts.phrases(s, wordings[0], prompts.everything(s, wordings[0])) for s in scenes]
    short = [prompts.phrases(s, wordings[1], {"form", *changed} & nameable(s)) for s in scenes]
    return PlaceCase(kind, source, target, thing, prompts_of(full[0], full[1], changed),
                     prompts_of(short[0], short[1], changed))
