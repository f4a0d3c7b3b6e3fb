"""Edits of places against the rendered truth: a thing is moved, scaled, exchanged, removed or put in.

The cases are rendered when they are needed, so that there is no folder of them: `sage bench places` runs them.  Scenes
are held out from training, and their seeds are far from those on which settings were chosen.
"""

import hashlib
import io
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sage import pictures
from sage.bench.cases import Benchmark, Case, encode_mask
from sage.bench.files import BenchmarkError
from sage.bench.regions import RegionCase, picture_of
from sage.pictures.regions import Move, composite, pixels_filled, pixels_moved
from sage.stilllife.places import KINDS, PlaceCase, place_case
from sage.stilllife.render import render, thing_mask
from sage.stilllife.scenes import STYLES

FIRST_SEED, TUNING_SEED, QUICK, FULL = 200_000, 0, 3, 12  # of each kind
ENLARGED = 2  # a reference is rendered larger than its box
DRAGS, INSERT = ("move", "scale", "swap"), "insert"

Array = np.ndarray


@dataclass(frozen=True)
class Shown:
    """What is rendered of a case, beside its pictures.

    Attributes:
        moves: of the things that go elsewhere.
        naive: the edit by plain pixels.
        old, new: (things, h, w) bool, where the things that are edited were, and shall be; none where there is none.
        empty: (h, w, 3) in [0, 1], the truth without them.
    """

    moves: tuple[Move, ...]
    naive: Image.Image
    old: Array
    new: Array
    empty: Array


@dataclass(frozen=True)
class PlaceEdit(RegionCase):
    """An edit of a place.

    Attributes:
        seed: of its scenes.
        shown: what is rendered of it, once it is ready.
    """

    seed: int = 0
    shown: Shown | None = field(default=None, compare=False)

    @property
    def rendered(self) -> Shown:
        """What is rendered of it; BenchmarkError before it is."""
        if self.shown is None:
            raise BenchmarkError(f"{self.name}: it has not been rendered")
        return self.shown

    def regions(self, size: tuple[int, int], reads: Collection[str]) -> dict[str, Any]:
        """The moves; nothing where a thing is removed or put in."""
        moves = self.rendered.moves
        return {"moves": moves} if moves and "moves" in reads else {}

    def by_pixels(self, source: Image.Image) -> Image.Image:
        """Moved; filled with the colour around it; pasted from a picture of the thing in another style."""
        return self.rendered.naive


@dataclass(frozen=True)
class Places(Benchmark):
    """The benchmark; its cases are rendered at `side` pixels a side."""

    side: int = 128

    def ready(self, case: Case) -> Case:
        """With its masks, moves and plain pixels."""
        assert isinstance(case, PlaceEdit)
        return replace(case, shown=_shown(case.kind, case.seed, self.side))

    def source(self, case: Case) -> Image.Image:
        """The picture to edit."""
        assert isinstance(case, PlaceEdit)
        return _pictures(case.kind, case.seed, self.side)[0]

    def truth(self, case: Case) -> Image.Image:
        """The right result."""
        assert isinstance(case, PlaceEdit)
        return _pictures(case.kind, case.seed, self.side)[1]

    def source_hash(self, case: Case) -> str:
        """SHA-256 of the picture to edit, as a PNG file."""
        out = io.BytesIO()
        self.source(case).save(out, "PNG")
        return hashlib.sha256(out.getvalue()).hexdigest()

    def mapping_hash(self) -> str:
        """SHA-256 of what the cases are, and of how the first of them is rendered."""
        cases = json.dumps([self.side, [(case.name, case.source, case.target, case.runs) for case in self.cases]])
        return hashlib.sha256(cases.encode() + self.source(self.cases[0]).tobytes()).hexdigest()


def places(each: int = FULL, side: int = 128, first_seed: int = FIRST_SEED) -> Places:
    """The benchmark of `each` cases of every kind.

    Args:
        first_seed: FIRST_SEED for the cases that are reported, TUNING_SEED for choosing settings on.
    """
    cases = tuple(_case(kind, number, side, first_seed) for number in range(each) for kind in range(len(KINDS)))
    return Places(Path(), cases, KINDS, (), protocol="", side=side)


def _case(kind: int, number: int, side: int, first_seed: int) -> PlaceEdit:
    case = place_case(kind, first_seed + number)
    name = f"{KINDS[kind]}-{number:03d}"
    return PlaceEdit(name, kind, f"{name}.png", case.full.source, case.full.target, encode_mask(case.mask(side)),
                     truth=f"{name}.png", attributes=(case.source.attributes(), case.target.attributes()),
                     seed=first_seed + number)


@lru_cache(maxsize=2)
def _pictures(kind: int, seed: int, side: int) -> tuple[Image.Image, Image.Image]:
    """Source and truth."""
    source, truth = place_case(kind, seed).pictures(side)
    return pictures.from_pixels(source), pictures.from_pixels(truth)


def _shown(kind: int, seed: int, side: int) -> Shown:
    case, source = place_case(kind, seed), _pictures(kind, seed, side)[0]
    things = (0, 1) if KINDS[kind] == "swap" else (case.thing,)
    before = [thing_mask(case.source, i, side) for i in things if i == 0 or case.source.second]
    after = [thing_mask(case.target, i, side) for i in things if i == 0 or case.target.second]
    moves = tuple(Move(picture_of(a), picture_of(b)) for a, b in zip(before, after, strict=True)) if (
        KINDS[kind] in DRAGS) else ()
    others = [i for i in range(1 + (case.target.second is not None)) if i not in things]
    return Shown(moves, _naive(case, source, moves, before, side), _stacked(before, side), _stacked(after, side),
                 render(case.target, side, shown=others))


def _stacked(masks: Sequence[Array], side: int) -> Array:
    return np.stack(masks) if masks else np.zeros((0, side, side), bool)


def _naive(case: PlaceCase, source: Image.Image, moves: Sequence[Move], before: Sequence[Array],
           side: int) -> Image.Image:
    if moves:
        return pixels_moved(source, moves)
    if KINDS[case.kind] != INSERT:
        return pixels_filled(source, picture_of(before[0]))
    other = replace(case.target, style=STYLES[(STYLES.index(case.target.style) + 1) % len(STYLES)])
    size = ENLARGED * side
    reference = pictures.from_pixels(render(other, size, shown=(case.thing,)))
    box = picture_of(thing_mask(case.target, case.thing, side)).getbbox()
    return composite(source, reference, picture_of(thing_mask(other, case.thing, size)), box)
