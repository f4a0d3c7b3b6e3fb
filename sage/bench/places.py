"""Edits of places against the rendered truth: a thing is moved, scaled, exchanged, removed or put in.

    picture + regions --way--> edit        a way: a baseline of plain pixels, or a method with some settings
    edit against truth                     what is where it should be, and what is left where it was

`sage bench stilllife --experiment places` runs it.  Every edit is a line of JSON as soon as it is made: killed, a run
goes on.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sage import pictures
from sage.bench.files import BenchmarkError, write_text
from sage.bench.metrics import Metric, mse, psnr
from sage.bench.tables import interval
from sage.files import Journal
from sage.pictures.masks import pasted
from sage.pictures.regions import Move, composite, pixels_filled, pixels_moved
from sage.stilllife.edits import THRESHOLD
from sage.stilllife.places import KINDS, PlaceCase, place_case
from sage.stilllife.render import render, thing_mask
from sage.stilllife.scenes import STYLES

PLACES, TITLE = "places", "Edits of places: drag and composition, against the rendered truth"
FIRST_SEED, QUICK, FULL = 200_000, 3, 12  # of each kind
REACH = 12  # pixels a side of 64 within which a thing is looked for
ENLARGED = 2  # a reference is rendered larger than its box
DRAGS, INSERT = ("move", "scale", "swap"), "insert"
ROWS, PAGE = "rows.jsonl", "places.md"

METRICS = (
    Metric("changed_psnr", "PSNR changed", 1, True), Metric("kept_psnr", "PSNR unchanged", 1, True),
    Metric("revealed_psnr", "PSNR revealed floor", 1, True),
    Metric("place_error", "place error, % of the side", 1e2, False),
    Metric("ghost", "ghost x 100", 1e2, False), Metric("iou", "IoU x 100", 1e2, True),
    Metric("seconds", "seconds", 1, False))

Array = np.ndarray
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Task:
    """A case as it is asked for.

    Attributes:
        kind: of `KINDS`.
        source, truth: pictures.
        prompts: of source and target.
        moves: of the things that go elsewhere.
        mask: where the true pictures differ, 0 and 255.
        naive: the edit by plain pixels.
        old, new: (things, h, w) bool, where the things that are edited were, and shall be; none where there is none.
        empty: the truth without the things that are edited.
    """

    name: str
    kind: str
    source: Image.Image
    truth: Image.Image
    prompts: tuple[str, str]
    moves: tuple[Move, ...]
    mask: Image.Image
    naive: Image.Image
    old: Array
    new: Array
    empty: Array


@dataclass(frozen=True)
class Way:
    """A row of the table.

    Attributes:
        makes: "source", "autoencoder", "pixels", or "edit".
        kinds: of cases that it is for.
        words: whether a drag is given the target prompt; else the source's is both.
    """

    name: str
    makes: str = "edit"
    method: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    kinds: tuple[str, ...] = KINDS
    words: bool = True


DENSE = {"use_cache": False, "inv_skip": 1}
WAYS = (
    Way("untouched", "source"), Way("truth, through the autoencoder", "autoencoder"), Way("plain pixels", "pixels"),
    Way("regiondrag", method="regiondrag", kinds=DRAGS, words=False),
    Way("regiondrag, target prompt", method="regiondrag", kinds=DRAGS),
    Way("regiondrag, its own attention", method="regiondrag", settings={"keys": "own"}, kinds=DRAGS, words=False),
    Way("regiondrag, free at the end", method="regiondrag", settings={"until": 0.2}, kinds=DRAGS, words=False),
    Way("pixels, then ddpm", method="ddpm", settings={"strength": 0.4}, kinds=KINDS),
    Way("pixels, then sdedit", method="sdedit", settings={"strength": 0.4}, kinds=KINDS),
    Way("eedit", method="eedit", words=False),
    Way("eedit, skipping alone", method="eedit", settings={"use_cache": False}, words=False),
    Way("eedit, holding alone", method="eedit", settings={"inv_skip": 1}, words=False),
    Way("eedit, neither", method="eedit", settings=DENSE, words=False),
    Way("eedit, eta 0", method="eedit", settings={"eta": 0.0}, words=False),
    Way("eedit, eta 0, neither", method="eedit", settings={"eta": 0.0, **DENSE}, words=False),
    Way("eedit, drawn outside", method="eedit", settings={"put_back": "drawn"}, words=False),
    Way("eedit, drawn outside, neither", method="eedit", settings={"put_back": "drawn", **DENSE}, words=False))


# ---- cases


def task(kind: int, number: int, side: int, first_seed: int = FIRST_SEED) -> Task:
    """Case `number`, from 0, of a kind."""
    case = place_case(kind, first_seed + number)
    source, truth = (pictures.from_pixels(picture) for picture in case.pictures(side))
    things = _things(case)
    before = [thing_mask(case.source, i, side) for i in things if i == 0 or case.source.second]
    after = [thing_mask(case.target, i, side) for i in things if i == 0 or case.target.second]
    moves = tuple(Move(_picture(a), _picture(b)) for a, b in zip(before, after, strict=True)) if (
        KINDS[kind] in DRAGS) else ()
    mask = _picture(case.mask(side))
    shown = [i for i in range(1 + (case.target.second is not None)) if i not in things]
    return Task(f"{KINDS[kind]}-{number:03d}", KINDS[kind], source, truth, (case.full.source, case.full.target), moves,
                mask, _naive(case, source, moves, before, side), _stacked(before, side), _stacked(after, side),
                render(case.target, side, shown=shown))


def _things(case: PlaceCase) -> tuple[int, ...]:
    return (0, 1) if KINDS[case.kind] == "swap" else (case.thing,)


def _stacked(masks: Sequence[Array], side: int) -> Array:
    return np.stack(masks) if masks else np.zeros((0, side, side), bool)


def _picture(mask: Array) -> Image.Image:
    return Image.fromarray(mask.astype(np.uint8) * 255)


def _naive(case: PlaceCase, source: Image.Image, moves: Sequence[Move], before: Sequence[Array],
           side: int) -> Image.Image:
    """By plain pixels: moved; filled with the colour around it; pasted from a picture of the thing in another style."""
    if moves:
        return pixels_moved(source, moves)
    if KINDS[case.kind] != INSERT:
        return pixels_filled(source, _picture(before[0]))
    other = replace(case.target, style=STYLES[(STYLES.index(case.target.style) + 1) % len(STYLES)])
    size = ENLARGED * side
    reference = pictures.from_pixels(render(other, size, shown=(case.thing,)))
    return composite(source, reference, _picture(thing_mask(other, case.thing, size)), box_of(case, side))


def box_of(case: PlaceCase, side: int) -> tuple[int, int, int, int]:
    """Where the thing that is put in shall be: left, top, right, bottom."""
    return _picture(thing_mask(case.target, case.thing, side)).getbbox()


# ---- figures


def figures(edit: Image.Image, case: Task) -> dict[str, float]:
    """What an edit is worth against the truth; what a case has nothing of is left out."""
    x, truth, source = (np.asarray(p.convert("RGB"), np.float64) / 255 for p in (edit, case.truth, case.source))
    changed: Array = np.asarray(case.mask) > 0
    found = {key: psnr(mse(x[where], truth[where])) for key, where in (("changed_psnr", changed),
                                                                       ("kept_psnr", ~changed))}
    revealed: Array = np.asarray(case.old.any(0) & ~case.new.any(0) if len(case.old) else np.zeros_like(changed))
    if revealed.any():
        found["revealed_psnr"] = psnr(mse(x[revealed], truth[revealed]))
    if len(case.new):
        found["place_error"] = float(np.mean([place_error(x, truth, mask) for mask in case.new]))
        there, wanted = (np.abs(p - case.empty).max(-1) > THRESHOLD for p in (x, truth))
        found["iou"] = float((there & wanted & changed).sum() / max(((there | wanted) & changed).sum(), 1))
    if len(case.old) and (gone := [mask for mask in case.old if mask.any()]):
        found["ghost"] = float(np.mean([abs(correlation(x[m], source[m]) - correlation(truth[m], source[m]))
                                        for m in gone]))
    return found


def correlation(a: Array, b: Array) -> float:
    """Pearson's, of two lots of values; 0 where one is constant."""
    a, b = a.ravel() - a.mean(), b.ravel() - b.mean()
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale > 1e-12 else 0.0


def place_error(x: Array, truth: Array, mask: Array) -> float:
    """How far from its place the true thing's crop fits best, as a share of the side; REACH at the most.

    Fit is the normalised cross-correlation of the thing's pixels.
    """
    rows, columns = np.nonzero(mask)
    wanted, side = truth[rows, columns], len(x)
    reach, best = round(REACH * side / 64), (-2.0, 0.0)
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            y, c = rows + dy, columns + dx
            inside = (y >= 0) & (y < side) & (c >= 0) & (c < side)
            if inside.sum() < 0.5 * len(rows):
                continue
            fit = correlation(x[y[inside], c[inside]], wanted[inside])
            distance = float(np.hypot(dx, dy)) / side
            best = max(best, (round(fit, 9), -distance))
    return -best[1]


# ---- the run


def edited(model: Any, way: Way, case: Task) -> Image.Image:
    """A way's edit of a case."""
    import sage
    if way.makes == "source":
        return case.source
    if way.makes == "pixels":
        return case.naive
    if way.makes == "autoencoder":
        size = pictures.working_size(*case.truth.size, model.sample_size, model.pixel_multiple)
        x = model.decode(model.encode(pictures.to_tensor(case.truth, size)))
        return pictures.to_picture(x, case.truth.size)
    method = sage.method(way.method)
    settings = method.recommended(model).but(**way.settings)
    source, target = case.prompts[0], case.prompts[1 if way.words else 0]
    if case.moves and "moves" in method.reads:
        return sage.edit(model, case.source, source, target, settings, moves=case.moves, mask=case.mask).image
    asked: dict[str, Any] = {"mask": case.mask} if "mask" in method.reads else {}
    return pasted(sage.edit(model, case.naive, target, target, settings, **asked).image, case.source, case.mask)


def run_places(model: Any, out: Path, each: int, side: int, progress: Progress, ways: Sequence[Way] = WAYS) -> Path:
    """Make what is missing, and write the page; returns its path.

    Raises:
        SageError: another process is at work there, or nothing can be written.
    """
    jobs = [(way, kind, number) for number in range(each) for kind in range(len(KINDS)) for way in ways
            if KINDS[kind] in way.kinds]
    done, fingerprint = [], model.fingerprint()
    case_of = lru_cache(1)(task)  # the ways of a case come one after another
    with closing(Journal(out / ROWS, out / f".{ROWS}.lock", BenchmarkError,
                         f"another process is at work on {out / ROWS}: let it finish")) as log:
        rows = dict(_kept(log.text))
        for i, (way, kind, number) in enumerate(jobs):
            progress("places", i, len(jobs))
            key = f"{way.name}|{dict(way.settings)}|{KINDS[kind]}-{number:03d}|{side}|{fingerprint}"
            if key not in rows:
                case = case_of(kind, number, side)
                began = time.process_time()
                picture = edited(model, way, case)
                row = {"way": way.name, "kind": KINDS[kind], "case": case.name, "key": key,
                       "seconds": round(time.process_time() - began, 3), **figures(picture, case)}
                pictures.save_picture(picture, out / "edits" / way.name.replace(", ", "-").replace(" ", "-")
                                      / f"{case.name}.png")
                log.append(row)
                rows[key] = row
            done.append(rows[key])
    progress("places", len(jobs), len(jobs))
    write_text(out / PAGE, page(done, ways))
    return out / PAGE


def _kept(text: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a journal by their keys; damaged lines are left out."""
    for line in text.split(b"\n"):
        try:
            row = json.loads(line)
            yield row["key"], row
        except (ValueError, KeyError, TypeError, RecursionError):
            continue


def page(rows: Sequence[Mapping[str, Any]], ways: Sequence[Way] = WAYS) -> str:
    """The tables, in Markdown: drags, then what is filled."""
    parts = [f"# {TITLE}\n"]
    for title, kinds in (("Drag: a thing is moved, scaled, or exchanged with another", DRAGS),
                         ("Removal", ("remove",)), ("Composition: a thing is put in", (INSERT,))):
        of = [row for row in rows if row["kind"] in kinds]
        if of:
            parts += [f"## {title}\n", f"{len({row['case'] for row in of})} cases; mean and 95 % interval.\n",
                      "".join(_table(of, ways))]
    return "\n".join(parts)


def _table(rows: Sequence[Mapping[str, Any]], ways: Sequence[Way]) -> Iterator[str]:
    shown = [m for m in METRICS if any(m.key in row for row in rows)]
    yield f"| | {' | '.join(m.title for m in shown)} |\n{'|---' * (len(shown) + 1)}|\n"
    for way in ways:
        of = [row for row in rows if row["way"] == way.name]
        means = [(m, interval([row[m.key] for row in of if m.key in row])) for m in shown]
        if of:
            yield f"| {way.name} | {' | '.join('' if mean is None else mean.text(m) for m, mean in means)} |\n"
