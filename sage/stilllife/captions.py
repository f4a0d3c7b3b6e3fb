"""Captions: plain English for a scene, with a wording that is drawn apart from what it says.

A wording is drawn before the scene is looked at, so that two scenes captioned with the same wording differ only in
the words of the attributes that differ.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from sage.stilllife.scenes import ATTRIBUTES, Scene

# Synonyms; a value that is absent here is its own word. No word serves two attributes.
WORDS = {
    "large": ("large", "big"),
    "small": ("small", "little"),
    "tilted": ("tilted", "leaning"),
    "left": ("on the left", "at the left"),
    "middle": ("in the middle", "in the centre"),
    "right": ("on the right", "at the right"),
    "wooden": ("wooden planks", "wooden boards"),
    "stone": ("stone tiles", "stone slabs"),
    "photo": ("photo", "photograph"),
    "sketch": ("pencil sketch", "sketch"),
    "night": ("night scene", "night view"),
}

ADJECTIVES = (
    ("size", "tilt", "colour", "material"),
    ("size", "colour", "material", "tilt"),
    ("size", "tilt", "material", "colour"),
    ("size", "material", "colour", "tilt"),
)
# The position comes before the second thing, lest it be read as the second thing's.
CLAUSES = (
    ("position", "floor", "second", "background"),
    ("position", "second", "floor", "background"),
    ("floor", "position", "second", "background"),
    ("position", "floor", "background", "second"),
    ("background", "position", "floor", "second"),
    ("position", "background", "floor", "second"),
)
_SECOND = (
    ("with a tiny", "next to it"),
    ("next to it a tiny", ""),
    ("with a tiny", "beside it"),
    ("beside it a tiny", ""),
)
_BACKGROUND = (("a", "behind"), ("in front of a", ""), ("against a", ""), ("a", "in the background"))


@dataclass(frozen=True)
class Wording:
    """How a caption is worded: indices into the templates, and one index of synonyms for each attribute."""

    adjectives: int = 0
    clauses: int = 0
    second: int = 0
    background: int = 0
    style_last: bool = False
    say_upright: bool = False
    synonyms: tuple[int, ...] = (0,) * len(ATTRIBUTES)


CANONICAL = Wording()


def draw_wording(rng: np.random.Generator) -> Wording:
    """A random wording; always takes the same number of draws."""
    return Wording(
        adjectives=int(rng.integers(len(ADJECTIVES))),
        clauses=int(rng.integers(len(CLAUSES))),
        second=int(rng.integers(len(_SECOND))),
        background=int(rng.integers(len(_BACKGROUND))),
        style_last=bool(rng.random() < 0.3),
        say_upright=bool(rng.random() < 0.25),
        synonyms=tuple(int(rng.random() < 0.35) for _ in ATTRIBUTES),
    )


def draw_keep(rng: np.random.Generator) -> frozenset[str]:
    """The attributes that a training caption names: all with probability 0.6, else each with probability 0.8."""
    everything = rng.random() < 0.6
    dropped = rng.random(len(ATTRIBUTES)) < 0.2
    return frozenset(a for a, d in zip(ATTRIBUTES, dropped, strict=True) if everything or not d or a == "form")


def phrases(scene: Scene, wording: Wording = CANONICAL, keep: Collection[str] = ATTRIBUTES) -> list[tuple[str, str]]:
    """The caption in pieces: (attribute, words). Joined by spaces and punctuated, they are the caption.

    Words that belong to no attribute have the attribute "", those around the second thing "second"; a comma is a piece
    of its own. Raises ValueError when `keep` holds an unknown attribute name.
    """
    unknown = set(keep) - set(ATTRIBUTES)
    if unknown:
        raise ValueError(f"attribute {sorted(unknown)[0]!r} is not one of {', '.join(ATTRIBUTES)}")
    values = scene.attributes()
    named = {}
    for name, synonym in zip(ATTRIBUTES, wording.synonyms, strict=True):
        if name in keep and values[name] != "none":
            words = WORDS.get(values[name], (values[name],))
            if name in ("second_form", "second_colour"):
                words = (values[name],)
            named[name] = words[synonym % len(words)]
    named["form"] = values["form"]
    if values["tilt"] == "upright" and (not wording.say_upright or values["form"] == "ball"):
        named.pop("tilt", None)

    subject = [(a, named[a]) for a in ADJECTIVES[wording.adjectives] if a in named] + [("form", named["form"])]
    subject.insert(0, ("", "an" if subject[0][1][0] in "aeiou" else "a"))

    clauses = {}
    if "position" in named:
        clauses["position"] = [("position", named["position"])]
    if "floor" in named:
        clauses["floor"] = [("", "on"), ("floor", named["floor"])]
    if "background" in named:
        before, after = _BACKGROUND[wording.background]
        clauses["background"] = [("", before), ("background", named["background"]), ("", after)]
    if "second_form" in named:
        before, after = _SECOND[wording.second]
        noun = [(a, named[a]) for a in ("second_colour", "second_form") if a in named]
        clauses["second"] = [("second", before), *noun, ("second", after)]

    pieces = list(subject)
    if "style" in named and not wording.style_last:
        pieces = [("", "a"), ("style", named["style"]), ("", "of"), *pieces]
    for place, name in enumerate(n for n in CLAUSES[wording.clauses] if n in clauses):
        if place or name in ("second", "background"):
            pieces.append(("second" if name == "second" else "", ","))
        pieces += clauses[name]
    if "style" in named and wording.style_last:
        pieces += [("", ","), ("", "a"), ("style", named["style"])]
    return [(a, words) for a, words in pieces if words]


def join(pieces: list[tuple[str, str]]) -> str:
    """The text of pieces made by `phrases`."""
    return " ".join(words for _, words in pieces).replace(" ,", ",")


def caption(scene: Scene, rng: np.random.Generator | None = None, keep: Collection[str] | None = None) -> str:
    """A caption in lowercase words, at most 35 of them counting commas.

    Without `rng` the canonical wording, with it a random one. `keep` names the attributes to mention (the form always
    is); by default all of them without `rng`, and a random part of them with it. Raises ValueError for unknown names.
    """
    if rng is None:
        return join(phrases(scene, CANONICAL, ATTRIBUTES if keep is None else keep))
    wording, drawn = draw_wording(rng), draw_keep(rng)
    return join(phrases(scene, wording, drawn if keep is None else keep))
