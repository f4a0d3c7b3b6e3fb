"""The figures of one result, and of a folder of results that anybody made."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sage import pictures
from sage.bench.cases import PICTURES, Benchmark, Case, decode_mask
from sage.bench.files import BenchmarkError, inside
from sage.bench.magicbrush import Turn
from sage.bench.metrics import (
    Extractors,
    against_scenes,
    against_truth,
    last_square,
    magic_brush,
    melting,
    pie_bench,
)
from sage.bench.places import PlaceEdit
from sage.bench.region_metrics import drag_bench, place_figures, tf_icon
from sage.bench.regions import CompositionCase, DragCase, RegionCase
from sage.errors import SageError

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
DONE, FAILED = "done", "failed"


@dataclass(frozen=True)
class Line:
    """What came of one case under one configuration: a line of the manifest.

    Attributes:
        picture: the result, relative to the folder of the run, or of the results that were scored.
        reason: why it failed.
        scores: by the keys of METRICS; None where a figure has no value.
        judges: which networks they are from, "" for none.
        anew: how often other networks than the first have judged it since.
        seconds: what it took alone, its part of a batch and of an inversion that is shared.
        calls: how often the network was asked for it, forward: latents, not batches.
        gradients: how many of these calls were differentiated.
    """

    configuration: str
    case: str
    kind: int
    status: str
    picture: str = ""
    reason: str = ""
    scores: dict[str, float | None] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    judges: str = ""
    anew: int = 0
    calls: float = 0
    gradients: float = 0

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "notes": list(self.notes)}


def score(case: Case, source: Image.Image, truth: Image.Image | None, result: Image.Image,
          extractors: Extractors) -> dict[str, float | None]:
    """Every figure of a result for which there is a network and a truth.

    Raises:
        BenchmarkError: pictures or mask of different sizes.
    """
    if isinstance(case, Turn):
        return magic_brush(np.asarray(result), np.asarray(truth), case.caption, extractors)
    a = np.asarray(source)
    b = last_square(np.asarray(result), source.width, source.height)
    mask = case.where(source.size) if isinstance(case, RegionCase) else decode_mask(case.runs, *source.size)
    if isinstance(case, DragCase):
        return drag_bench(a, np.asarray(result), mask, case.source, case.points, extractors)
    if isinstance(case, CompositionCase):
        reference, where = case.opened
        thing = np.asarray(reference.convert("RGB").crop(where.getbbox()))
        return tf_icon(a, np.asarray(result), thing, case.box, mask, case.target, extractors)
    if isinstance(case, PlaceEdit):
        shown = case.rendered
        scores = place_figures(b, a, np.asarray(truth), shown.empty, shown.old, shown.new, mask)
    else:
        framed = decode_mask(case.runs, *source.size, border=True)
        scores = pie_bench(a, b, framed, case.source, case.target, extractors)
    if truth is not None:
        scores |= against_truth(b, np.asarray(truth), mask, extractors)
    if case.attributes and extractors.attributes:
        scores |= against_scenes(extractors.attributes(b), *case.attributes)
    if case.attributes:
        scores |= melting(b, *case.attributes, extractors)
    return scores


def score_folder(benchmark: Benchmark, folder: str | Path, name: str, extractors: Extractors,
                 progress=None) -> list[Line]:
    """Score the pictures of a folder, which lie in it, or in annotation_images/ in it, as the benchmark's own do.

    A missing or damaged picture is a failed line.

    Raises:
        BenchmarkError: no folder, or not one result in it.
    """
    root = results_root(folder)
    report, lines = progress or (lambda phase, done, total: None), []
    for done, case in enumerate(benchmark.cases, start=1):
        path = _result(root, case)
        try:
            if path is None:
                raise BenchmarkError(f"there is no {case.stem}{ENDINGS[0]}")
            scores = score(benchmark.ready(case), benchmark.source(case), benchmark.truth(case),
                           pictures.open_picture(path), extractors)
            lines.append(Line(name, case.name, case.kind, DONE, str(path.relative_to(root.resolve())), scores=scores))
        except SageError as error:
            lines.append(Line(name, case.name, case.kind, FAILED, reason=str(error)))
        report("score", done, len(benchmark.cases))
    if not any(line.status == DONE for line in lines):
        raise BenchmarkError(f"{root} holds no result of this benchmark: {lines[0].reason}")
    return lines


def results_root(folder: str | Path) -> Path:
    """What the results in a folder are relative to; BenchmarkError if it is no folder."""
    folder = Path(folder)
    if not os.path.isdir(folder):
        raise BenchmarkError(f"{folder} is no folder")
    return folder / PICTURES if os.path.isdir(folder / PICTURES) else folder


def has_result(folder: str | Path, case: Case) -> bool:
    """Whether a folder holds a result of a case."""
    return _result(results_root(folder), case) is not None


def _result(root: Path, case: Case) -> Path | None:
    for name in (case.stem + ending for ending in (Path(case.picture).suffix, *ENDINGS)):
        path = inside(root, name)
        if os.path.isfile(path):
            return path
    return None
