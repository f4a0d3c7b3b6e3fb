"""A small benchmark, and an engine without a network."""

from pathlib import Path

import numpy as np
from PIL import Image

from sage.bench.cases import PICTURES, TRUE_EDITS, Benchmark, Case, encode_mask, read_benchmark, write_mapping
from sage.bench.runner import Outcome

SIDE = 32


def picture(seed: int, side: int = SIDE) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


def make_benchmark(folder: Path, count: int = 5, truths: bool = True) -> Benchmark:
    """Case i is of kind i: a cat becomes a cab in the middle of the picture."""
    mask = np.zeros((SIDE, SIDE), bool)
    mask[10:20, 12:25] = True
    cases = []
    for i in range(count):
        case = Case(f"{i:012d}", i % 10, f"{i}_kind/{i:012d}.png", "a [cat]", "a [cab]", encode_mask(mask), "edit",
                    "cat cab", f"{i}_kind/{i:012d}.png" if truths else None)
        source, other = picture(i), picture(100 + i)
        truth = Image.composite(other, source, Image.fromarray(mask))
        for root, image in ((PICTURES, source), (TRUE_EDITS, truth)):
            (folder / root / f"{i}_kind").mkdir(parents=True, exist_ok=True)
            image.save(folder / root / case.picture)
        cases.append(case)
    write_mapping(folder, cases)
    return read_benchmark(folder)


class StubEngine:
    """Shades each source by a number that depends on its batch, as the last bits of a network's results may.

    Args:
        fails: names of cases that fail.
        before: called with the cases of each batch.
    """

    def __init__(self, fails=(), before=lambda cases: None, version: int = 1):
        self.fails, self.before, self.version = set(fails), before, version

    def describe(self):
        return {"stub": self.version}

    def configure(self, configuration):
        return {"name": configuration.name, "overrides": dict(configuration.overrides)}

    def make(self, configuration, cases, sources, truths):
        self.before(cases)
        shade = len(configuration.name) + len(cases)
        outcomes = []
        for case, source in zip(cases, sources, strict=True):
            if case.name in self.fails:
                outcomes.append(Outcome(reason="it is too hard"))
            else:
                outcomes.append(Outcome(source.point(lambda v: min(v + shade, 255)), {"case": case.name}, ("a note",)))
        return outcomes
