"""Scenes of the rendered world: frozen values that say everything a picture shows.

A scene has named attributes, which captions may mention, and a little unnamed jitter, which they cannot.
One sixteenth of the combinations of named attributes is held out: no training scene ever shows one of them.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field, fields

import numpy as np

FORMS = ("ball", "cube", "cylinder", "cone", "ring", "mug", "bottle", "mushroom")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
MATERIALS = ("matte", "shiny", "striped", "checkered")
SIZES = ("small", "large")
POSITIONS = ("left", "middle", "right")
TILTS = ("upright", "tilted")
SECOND_FORMS = ("ball", "cube", "cone", "cylinder")
SIDES = ("left", "right")
FLOORS = ("wooden", "stone", "grass", "sand", "snow")
BACKGROUNDS = ("blue sky", "sunset", "brick wall", "forest", "grey wall", "curtain")
STYLES = ("photo", "cartoon", "sketch", "night")

# Every named attribute and its values; a second thing may also be absent.
MAIN = {"form": FORMS, "colour": COLOURS, "material": MATERIALS, "size": SIZES, "position": POSITIONS, "tilt": TILTS}
SECOND = {"second_form": SECOND_FORMS, "second_colour": COLOURS}
AROUND = {"floor": FLOORS, "background": BACKGROUNDS, "style": STYLES}

STYLE_WEIGHTS = (0.4, 0.2, 0.2, 0.2)
TILTED_SHARE = 1 / 3
SECOND_SHARE = 0.3
HELD_OUT_ONE_IN = 16


def _check(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} {value!r} is not one of {', '.join(choices)}")


def _check_ranges(name: str, values: Place | Jitter) -> None:
    for f in fields(values):
        low, high = values.RANGES[f.name]
        if not low <= getattr(values, f.name) <= high:
            raise ValueError(f"{name} {f.name} {getattr(values, f.name)!r} is outside {low} to {high}")


@dataclass(frozen=True)
class Place:
    """How far a thing is from where its names put it, and how much larger.

    dx, dy: shift in picture widths, to the right and upwards, within 1; scale: factor on its size about the middle of
    its foot, 0.25 to 3. Raises ValueError when a number leaves its range.
    """

    dx: float = 0.0
    dy: float = 0.0
    scale: float = 1.0

    RANGES = {"dx": (-1.0, 1.0), "dy": (-1.0, 1.0), "scale": (0.25, 3.0)}

    def __post_init__(self) -> None:
        _check_ranges("place", self)


HERE = Place()


@dataclass(frozen=True)
class Thing:
    """The main thing of a scene. Raises ValueError for an unknown value, and for a tilted ball."""

    form: str
    colour: str
    material: str = "matte"
    size: str = "large"
    position: str = "middle"
    tilt: str = "upright"
    place: Place = HERE

    def __post_init__(self) -> None:
        _check("form", self.form, FORMS)
        _check("colour", self.colour, COLOURS)
        _check("material", self.material, MATERIALS)
        _check("size", self.size, SIZES)
        _check("position", self.position, POSITIONS)
        _check("tilt", self.tilt, TILTS)
        if self.form == "ball" and self.tilt != "upright":
            raise ValueError("tilt 'tilted' does not show on a ball; choose upright")


@dataclass(frozen=True)
class Companion:
    """The second thing: matte, upright, tiny and in front, near one side of the picture, unless its place says else."""

    form: str
    colour: str
    side: str = "right"
    place: Place = HERE

    def __post_init__(self) -> None:
        _check("second form", self.form, SECOND_FORMS)
        _check("second colour", self.colour, COLOURS)
        _check("side", self.side, SIDES)


@dataclass(frozen=True)
class Jitter:
    """Unnamed variation. Raises ValueError when a number leaves its range.

    dx: shift of the main thing, in picture widths, within 0.03; scale: factor on its size, 0.93 to 1.07;
    hue: rotation of its hue in turns, within 0.012; horizon: height of the horizon above the lower edge, 0.42 to 0.50.
    """

    dx: float = 0.0
    scale: float = 1.0
    hue: float = 0.0
    horizon: float = 0.46

    RANGES = {"dx": (-0.03, 0.03), "scale": (0.93, 1.07), "hue": (-0.012, 0.012), "horizon": (0.42, 0.50)}

    def __post_init__(self) -> None:
        _check_ranges("jitter", self)


@dataclass(frozen=True)
class Scene:
    """One still life. Raises ValueError for an unknown value, and for a second thing on the main thing's side."""

    main: Thing
    second: Companion | None = None
    floor: str = "wooden"
    background: str = "blue sky"
    style: str = "photo"
    jitter: Jitter = field(default_factory=Jitter)

    def __post_init__(self) -> None:
        _check("floor", self.floor, FLOORS)
        _check("background", self.background, BACKGROUNDS)
        _check("style", self.style, STYLES)
        if self.second is not None:
            if self.second.side == self.main.position:
                raise ValueError(f"side {self.second.side!r} is taken by the main thing; choose the other side")
            if self.second.colour == self.main.colour:
                raise ValueError(f"second colour {self.second.colour!r} is the main thing's; choose another")

    def attributes(self) -> dict[str, str]:
        """The named attributes; second_form and second_colour are "none" without a second thing."""
        main, second = self.main, self.second
        return {
            "form": main.form,
            "colour": main.colour,
            "material": main.material,
            "size": main.size,
            "position": main.position,
            "tilt": main.tilt,
            "second_form": second.form if second else "none",
            "second_colour": second.colour if second else "none",
            "floor": self.floor,
            "background": self.background,
            "style": self.style,
        }


ATTRIBUTES = tuple(Scene(Thing("ball", "red")).attributes())
VALUES = {**MAIN, **{name: ("none", *values) for name, values in SECOND.items()}, **AROUND}


def _pick(rng: np.random.Generator, choices: tuple[str, ...]) -> str:
    return choices[int(rng.integers(len(choices)))]


def sample_companion(rng: np.random.Generator, main: Thing) -> Companion:
    """A second thing that goes with `main`: another colour, a free side."""
    return Companion(
        form=_pick(rng, SECOND_FORMS),
        colour=_pick(rng, tuple(c for c in COLOURS if c != main.colour)),
        side=_pick(rng, tuple(s for s in SIDES if s != main.position)),
    )


def sample_scene(rng: np.random.Generator) -> Scene:
    """A scene with equal weights for all values but tilt, second thing and style. Held-out scenes are among them."""
    form = _pick(rng, FORMS)
    tilted = rng.random() < TILTED_SHARE and form != "ball"
    main = Thing(
        form=form,
        colour=_pick(rng, COLOURS),
        material=_pick(rng, MATERIALS),
        size=_pick(rng, SIZES),
        position=_pick(rng, POSITIONS),
        tilt="tilted" if tilted else "upright",
    )
    second = sample_companion(rng, main) if rng.random() < SECOND_SHARE else None
    return Scene(
        main=main,
        second=second,
        floor=_pick(rng, FLOORS),
        background=_pick(rng, BACKGROUNDS),
        style=STYLES[int(rng.choice(len(STYLES), p=STYLE_WEIGHTS))],
        jitter=Jitter(**{name: float(rng.uniform(low, high)) for name, (low, high) in Jitter.RANGES.items()}),
    )


def is_held_out(scene: Scene) -> bool:
    """Whether the scene's combination of main thing, floor, background and style is reserved for evaluation."""
    m = scene.main
    key = (m.form, m.colour, m.material, m.size, m.position, m.tilt, scene.floor, scene.background, scene.style)
    return zlib.crc32("|".join(key).encode()) % HELD_OUT_ONE_IN == 0


def _first(seed: int, stream: int, held_out: bool) -> Scene:
    rng = np.random.default_rng((stream, seed))
    while True:
        scene = sample_scene(rng)
        if is_held_out(scene) == held_out:
            return scene


def training_scene(seed: int) -> Scene:
    """The training scene of a seed (an integer >= 0); never held out."""
    return _first(seed, 0, held_out=False)


def held_out_scene(seed: int) -> Scene:
    """The evaluation scene of a seed (an integer >= 0); always held out."""
    return _first(seed, 1, held_out=True)
