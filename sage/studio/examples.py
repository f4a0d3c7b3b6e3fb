"""Edits to try at once: rendered still lifes, of the world that the bundled models live in."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sage.models.known import KNOWN
from sage.pictures import from_pixels, save_picture
from sage.stilllife import edit_case

WORLD = tuple(name for name, model in KNOWN.items() if model.family == "stilllife")  # the models that know it
# Kinds of edit and seeds, held out from training.
CASES = ((6, 23, "pink → yellow"), (1, 24, "cone → mug"), (8, 23, "grey wall → sunset"), (2, 24, "add an orange ball"),
         (3, 21, "take the ball away"), (9, 24, "photograph → sketch"))


@dataclass(frozen=True)
class Example:
    """One edit to try.

    Attributes:
        title: what it changes, in a few words.
    """

    title: str
    name: str
    source: str
    target: str
    path: Path


@cache
def examples(folder: Path) -> tuple[Example, ...]:
    """All of them, their pictures written to `folder`."""
    made = []
    for kind, seed, title in CASES:
        case = edit_case(kind, seed)
        name = f"still-life-{kind}-{seed}.png"
        path = save_picture(from_pixels(case.pictures(KNOWN[WORLD[0]].size)[0]), folder / name)
        made.append(Example(title, name, case.source_prompt, case.target_prompt, path))
    return tuple(made)
