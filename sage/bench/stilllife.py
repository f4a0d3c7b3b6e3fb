"""The still-life benchmark: edits whose right result is rendered, in PIE-Bench's layout plus true_edits/.

Ten kinds with equally many edits each, since every kind shall be known equally well: 28 make the 280 of the full set,
4 the 40 of the quick one, which is the beginning of the full one.  (PIE-Bench itself has 20 % of kind 0, 11 % each of
1, 2, 3, 8 and 9, and 6 % each of 4 to 7; its means over everything weight the kinds so.)

Each edit is asked for in full, in short, or in both ways, as a case of its own each.

Scenes are held out from training, and their seeds are far from those on which settings were chosen.
"""

import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from sage import pictures
from sage.bench.cases import (
    MAPPING,
    PICTURES,
    TRUE_EDITS,
    WORDINGS,
    Benchmark,
    Case,
    encode_mask,
    mark,
    read_benchmark,
)
from sage.bench.cases import write_mapping as _write_mapping
from sage.bench.files import BenchmarkError, write_text
from sage.files import read_plain
from sage.machine.workers import end_with_parent
from sage.models.known import KNOWN
from sage.stilllife.edits import KINDS, EditCase, Prompts, changed_pixels, dilate, edit_case

FIRST_SEED, TUNING_SEED = 100_000, 0  # of the edits that are reported, and of those on which settings are chosen
FULL, QUICK = 28, 4  # edits of each kind
SIDE = KNOWN["stilllife"].size  # the bundled model's own
MAKE = "stilllife.json"  # what the folder was made with
MAX_MAKE = 2**20  # bytes of it
VERSION = 3
FULLY = WORDINGS[:1]

FOLDERS = ("0_random", "1_change_object", "2_add_object", "3_delete_object", "4_change_attribute_content",
           "5_change_attribute_pose", "6_change_attribute_color", "7_change_attribute_material", "8_change_background",
           "9_change_style")

Progress = Callable[[str, int, int], None]


def draw(kind: int, number: int, first_seed: int = FIRST_SEED) -> EditCase:
    """Edit `number`, from 0, of a kind."""
    return edit_case(kind, first_seed + number, varied=True)


def write_stilllife(folder: str | Path, per_kind: int = FULL, side: int = SIDE, workers: int = 1,
                    progress: Progress | None = None, first_seed: int = FIRST_SEED,
                    wordings: Sequence[str] = FULLY) -> Benchmark:
    """Make the benchmark, unless the folder already holds it; the same bytes at every call.

    Args:
        side: of the pictures in pixels; 512 is what other tools for PIE-Bench insist on.
        workers: processes that render.
        progress: called with ("render", edits done, edits in all).
        first_seed: of the edits of each kind; TUNING_SEED gives edits apart from those that are reported.
        wordings: of WORDINGS: in which ways each edit is asked for.
    Raises:
        BenchmarkError: the folder holds another benchmark, or cannot be written to.
    """
    folder = Path(folder)
    made = {"version": VERSION, "edits of each kind": per_kind, "side": side, "first seed": first_seed,
            **({"wordings": list(wordings)} if tuple(wordings) != FULLY else {})}
    if os.path.lexists(folder / MAPPING):
        if _made(folder) != made:
            raise BenchmarkError(f"{folder} holds another benchmark than the one wanted: give another folder")
        return read_benchmark(folder)

    jobs = [(folder, kind, number, side, first_seed, wording)
            for number in range(per_kind) for kind in range(len(KINDS)) for wording in wordings]
    report = progress or (lambda phase, done, total: None)
    cases = []
    report("render", 0, len(jobs))
    for case in _each(jobs, workers):
        cases.append(case)
        report("render", len(cases), len(jobs))
    write_text(folder / MAKE, json.dumps(made) + "\n")
    _write_mapping(folder, cases)
    return read_benchmark(folder)


def _made(folder: Path) -> object:
    try:
        return json.loads(read_plain(folder / MAKE, BenchmarkError, MAX_MAKE))
    except (BenchmarkError, ValueError, RecursionError):
        return None


def _each(jobs, workers: int):
    if workers <= 1:
        yield from map(_write, jobs)
        return
    with ProcessPoolExecutor(min(workers, len(jobs), os.cpu_count() or 1), get_context("spawn"),
                             end_with_parent) as pool:
        yield from pool.map(_write, jobs)


def _write(job: tuple[Path, int, int, int, int, str]) -> Case:
    folder, kind, number, side, first_seed, wording = job
    edit = draw(kind, number, first_seed)
    asked = edit.short if wording == "short" else edit.full
    name = f"{kind}{number:011d}{'s' if wording == 'short' else ''}"
    place = f"{FOLDERS[kind]}/{name}.png"
    a, b = edit.pictures(side)
    pictures.save_picture(pictures.from_pixels(a), folder / PICTURES / place)
    pictures.save_picture(pictures.from_pixels(b), folder / TRUE_EDITS / place)
    source, target = mark(asked.source, asked.target, asked.source_words, asked.target_words)
    # PIE-Bench names a thing by one word in each prompt, so a thing that is added or deleted has no such pair.
    words = asked.blend_words or ("", "")
    return Case(name, kind, place, source, target, encode_mask(dilate(changed_pixels(a, b))), _instruction(kind, asked),
                " ".join(phrase.split()[-1] for phrase in words) if all(words) else "", place, asked.blend_words,
                (edit.source.attributes(), edit.target.attributes()), wording)


def _instruction(kind: int, asked: Prompts) -> str:
    if kind in (2, 3):
        [words] = asked.target_words or asked.source_words
        return f"{'add' if kind == 2 else 'remove'} what is described by {words!r}"
    return ", and ".join(f"change {a!r} to {b!r}" for a, b in zip(asked.source_words, asked.target_words, strict=True))
