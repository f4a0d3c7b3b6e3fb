"""Edit cases of held-out scenes, run in batches and measured against the rendered truth."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from tqdm import tqdm

from sage.bench import metrics, tables
from sage.editing import check_prompts, edit_batch, invert_batch
from sage.models.backbone import Backbone
from sage.pictures import from_pixels
from sage.settings import Settings
from sage.stilllife import EditCase, edit_case
from sage.stilllife.edits import Prompts
from sage.trajectory.kinds import Trajectory
from training.data import SIDE

KINDS = range(10)


def psnr(a: np.ndarray, b: np.ndarray, where: np.ndarray) -> float:
    """PSNR in dB of two (H, W, 3) uint8 pictures over the pixels of a boolean mask; at most 100."""
    return metrics.psnr(metrics.mse(a[where] / 255, b[where] / 255))


@dataclass(frozen=True)
class Case:
    """An edit, the prompts that ask for it, its pictures and its mask of truly changed pixels."""

    edit: EditCase
    prompts: Prompts
    source: Image.Image
    truth: Image.Image
    mask: np.ndarray


def of(edit: EditCase, prompts: Prompts, side: int = SIDE) -> Case:
    """An edit asked for by `prompts`, which need not be its own."""
    source, truth = (from_pixels(p) for p in edit.pictures(side))
    return Case(edit, prompts, source, truth, edit.mask(side))


def draw(seeds: Sequence[int], short: bool = False, side: int = SIDE) -> list[Case]:
    """One case of each kind for every seed, asked for in short or in full."""
    edits = [edit_case(kind, seed, varied=True) for seed in seeds for kind in KINDS]
    return [of(edit, edit.short if short else edit.full, side) for edit in edits]


def run(model: Backbone, cases: Sequence[Case], config: Settings, batch: int = 20,
        trajectories: dict[int, Trajectory] | None = None, name: str = "edits") -> list[Image.Image]:
    """Edit every case by `config`.

    Args:
        trajectories: filled with each batch's inversion, and read where it has one: configurations that record the
            same maps may share it.
        name: before the progress bar.
    """
    results = []
    for start in tqdm(range(0, len(cases), batch), desc=name, unit="batch"):
        part = cases[start:start + batch]
        images = [case.source for case in part]
        plans = [check_prompts(model, c.prompts.source, c.prompts.target, config) for c in part]
        trajectory = (trajectories or {}).get(start)
        if trajectory is None:
            trajectory = invert_batch(model, images, plans, config)
            if trajectories is not None:
                trajectories[start] = trajectory
        results += [r.image for r in edit_batch(model, images, plans, config, trajectory=trajectory)]
    return results


def scores(cases: Sequence[Case], results: Sequence[Image.Image]) -> np.ndarray:
    """(cases, 2): PSNR in dB against the true edit, outside and inside the changed pixels."""
    rows = []
    for case, result in zip(cases, results, strict=True):
        a, b = np.asarray(result), np.asarray(case.truth)
        outside = psnr(a, b, ~case.mask) if (~case.mask).any() else np.nan
        rows.append((outside, psnr(a, b, case.mask)))
    return np.array(rows)


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean and bootstrap 95 % interval, ignoring NaN."""
    found = tables.interval(values[~np.isnan(values)])
    return found.mean, found.low, found.high
