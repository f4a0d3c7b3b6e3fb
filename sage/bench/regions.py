"""Benchmarks of drags and compositions, from the folders that their authors distribute, and how they are scored.

    DragBench (2306.14435), and as RegionDrag has it (2407.18247)   CATEGORY/SAMPLE/original_image.png, meta_data.pkl,
                                                                    meta_data_region.pkl
    TF-ICON (2307.12493)                                            DOMAIN/NNNN PROMPT/bgXX.png, fgXX.jpg,
                                                                    fgXX_mask.png, mask_bg_fg.jpg

Pickles are read as plain values (`sage.bench.plain_pickle`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sage import pictures
from sage.bench.files import BenchmarkError
from sage.bench.plain_pickle import read_pickle

MOST_CASES, MOST_POINTS = 10_000, 2**22
LEAST_RADIUS = 5  # pixels, of the discs in which RegionDrag looks for a point


@dataclass(frozen=True)
class DragCase:
    """A drag of DragBench.

    Attributes:
        points: (n, 2, 2) float64, from and to, each x and y in pixels; of regions dense.
        mask: (H, W) bool, where the picture may change.
    """

    name: str
    picture: Path
    prompt: str
    points: np.ndarray
    mask: np.ndarray


@dataclass(frozen=True)
class CompositionCase:
    """A composition of TF-ICON.

    Attributes:
        box: left, top, right, bottom of where the thing shall be, in pixels of the background.
    """

    name: str
    background: Path
    reference: Path
    reference_mask: Path
    prompt: str
    box: tuple[int, int, int, int]


def read_dragbench(folder: str | Path, regions: bool = False) -> tuple[DragCase, ...]:
    """The cases of a folder, in the order of their names.

    Args:
        regions: the dense points of meta_data_region.pkl in place of those of meta_data.pkl.
    Raises:
        BenchmarkError: no such folder, or a case that is damaged, which is named.
    """
    folder, file = Path(folder), "meta_data_region.pkl" if regions else "meta_data.pkl"
    found = tuple(_drag(path, folder) for path in _some(folder, f"*/*/{file}"))
    if not found:
        raise BenchmarkError(f"{folder} is no DragBench: it has no CATEGORY/SAMPLE/{file}")
    return found


def _drag(path: Path, folder: Path) -> DragCase:
    meta, picture = read_pickle(path), path.with_name("original_image.png")
    size = _size(picture)
    try:
        points = np.asarray(meta["points"], np.float64).reshape(-1, 2, 2)
        mask, prompt = np.asarray(meta["mask"]) > 0, meta["prompt"]
        if mask.ndim == 3:
            mask = np.any(mask, axis=2)
        fine = (isinstance(prompt, str) and len(prompt) < 1000 and 0 < len(points) <= MOST_POINTS
                and np.isfinite(points).all() and mask.shape == (size[1], size[0]))
    except (KeyError, TypeError, ValueError, IndexError):
        fine = False
    if not fine:
        raise BenchmarkError(f"{path} is damaged: it has no prompt, pairs of points, and mask of the picture's size")
    return DragCase(str(path.parent.relative_to(folder)), picture, prompt, points, mask)


def read_tficon(folder: str | Path) -> tuple[CompositionCase, ...]:
    """The cases of a folder, in the order of their names.

    Raises:
        BenchmarkError: no such folder, or a case that lacks something, which is named.
    """
    folder = Path(folder)
    found = tuple(_composition(path.parent, folder) for path in _some(folder, "*/*/mask_bg_fg.jpg"))
    if not found:
        raise BenchmarkError(f"{folder} is no TF-ICON benchmark: it has no DOMAIN/NNNN PROMPT/mask_bg_fg.jpg")
    return found


def _composition(case: Path, folder: Path) -> CompositionCase:
    def one(pattern: str, but: str = "") -> Path:
        paths = sorted(path for path in case.glob(pattern) if not but or but not in path.name)
        if len(paths) != 1:
            raise BenchmarkError(f"{case} has {len(paths)} files {pattern}, and must have one")
        return paths[0]

    background = one("bg[0-9]*.*")
    where = pictures.open_picture(case / "mask_bg_fg.jpg").convert("L").point(lambda value: 255 * (value >= 128))
    box, size = where.getbbox(), _size(background)
    if box is None:
        raise BenchmarkError(f"{case / 'mask_bg_fg.jpg'} has no white place")
    scale = size[0] / where.width, size[1] / where.height
    fitted = tuple(round(side * scale[i % 2]) for i, side in enumerate(box))
    number, _, prompt = case.name.partition(" ")
    if not number.isdigit():
        raise BenchmarkError(f"{case} is no case: its name must be a number and a prompt")
    return CompositionCase(str(case.relative_to(folder)), background, one("fg[0-9]*.*", "_mask"),
                           one("fg[0-9]*_mask.png"), prompt, fitted)  # type: ignore[arg-type]


def _some(folder: Path, pattern: str) -> list[Path]:
    paths = sorted(folder.glob(pattern))
    if len(paths) > MOST_CASES:
        raise BenchmarkError(f"{folder} has more than {MOST_CASES} cases")
    return paths


def _size(picture: Path) -> tuple[int, int]:
    return pictures.open_picture(picture).size


# ---- scores


def point_distances(source: np.ndarray, edit: np.ndarray, points: np.ndarray, size: tuple[int, int],
                    discs: bool = False) -> np.ndarray:
    """How far from its target each point is found, by the features of a network.

    For each handle the pixel of the edit whose feature is most like its own, by cosine (2306.14435, sec. 4.2), after
    the features of both were brought to the picture's size.

    Args:
        source, edit: (C, h, w) features of the pictures, both of which had one size.
        points: (n, 2, 2), from and to in pixels; what is behind the point is cut off.
        size: (W, H) of the picture.
        discs: as RegionDrag does: features are those of the nearest cell, looked for only around handle and target,
            nearer than their distance by sqrt 2, and distances are in shares of the sides; else features are bilinear,
            looked for everywhere, and distances are in pixels.
    Returns:
        (n,): DragBench's mean is over the points of all pictures, RegionDrag's over the means of pictures.
    """
    import torch
    from torch.nn.functional import interpolate, normalize
    width, height = size
    handles, targets = np.asarray(points, np.float64).astype(np.int64).transpose(1, 0, 2)

    def fitted(x: torch.Tensor) -> torch.Tensor:
        """(C, h, w) -> (C, H, W)."""
        return interpolate(x[None], (height, width), mode="nearest" if discs else "bilinear")[0]

    a, b = (torch.from_numpy(np.array(features, np.float32)) for features in (source, edit))
    x, y = np.clip(handles, 0, (width - 1, height - 1)).T
    wanted = normalize(fitted(a)[:, y, x], dim=0)
    there = normalize(b if discs else fitted(b), dim=0)
    ys, xs = np.mgrid[:height, :width]
    places = np.stack([xs, ys], -1).reshape(-1, 2)
    found = np.empty((len(handles), 2))
    for i, (handle, target) in enumerate(zip(handles, targets, strict=True)):
        likeness = torch.tensordot(wanted[:, i], there, 1)
        if discs:  # of cells, so that the pixels of one are equal, and the first one counts
            likeness = fitted(likeness[None])
        likeness = likeness.ravel().numpy()
        if discs:
            radius = max(LEAST_RADIUS, np.linalg.norm(target - handle) / 2**0.5)
            near = np.minimum(*(np.linalg.norm(places - end, axis=1) for end in (handle, target))) < radius
            likeness = np.where(near, likeness, -np.inf)
        found[i] = places[likeness.argmax()] - target
    return np.linalg.norm(found / size if discs else found, axis=1)


def mean_distance(source: np.ndarray, edit: np.ndarray, points: np.ndarray, size: tuple[int, int],
                  discs: bool = False) -> float:
    """Mean of `point_distances` over the points of one picture."""
    return float(point_distances(source, edit, points, size, discs).mean())


def fidelity(lpips: float) -> float:
    """1 - LPIPS of source and edit at 224 pixels a side; it is best for who does nothing."""
    return 1 - lpips


def cases_as_json(cases: tuple[DragCase, ...]) -> Iterator[dict[str, Any]]:
    """Drags as JSON values: what the pickles hold, for tools that read none."""
    from sage.pictures.masks import mask_text
    for case in cases:
        yield {"name": case.name, "picture": str(case.picture), "prompt": case.prompt, "points": case.points.tolist(),
               "mask": mask_text(Image.fromarray(case.mask.astype(np.uint8) * 255))}
