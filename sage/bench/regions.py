"""Cases that put something elsewhere, and two benchmarks of them, from the folders that their authors distribute.

    DragBench (2306.14435), and as RegionDrag has it (2407.18247)   CATEGORY/SAMPLE/original_image.png, meta_data.pkl,
                                                                    meta_data_region.pkl
    TF-ICON (2307.12493)                                            DOMAIN/NNNN PROMPT/bgXX.png, fgXX.jpg,
                                                                    fgXX_mask.png, mask_bg_fg.jpg

A method that reads regions is asked with them.  Any other edits what plain pixels give, inside the mask, and outside it
the picture's own pixels stay.  Pickles are read as plain values (`sage.bench.plain_pickle`).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from sage import pictures
from sage.bench.cases import MAX_TEXT, Asked, Benchmark, Case, decode_mask, encode_mask
from sage.bench.files import BenchmarkError, inside
from sage.bench.plain_pickle import read_pickle
from sage.method import Request
from sage.pictures.masks import open_mask
from sage.pictures.regions import Move, box_mask, composite, pixels_moved, pixels_of_points, read_move

MOST_CASES, MOST_POINTS, MOST_DENSE = 10_000, 1_000, 2**20
FARTHEST = 2**20  # pixels that a point may lie from the picture's corner
POINTS, REGIONS, ORIGINAL = "meta_data.pkl", "meta_data_region.pkl", "original_image.png"
WHERE = "mask_bg_fg.jpg"  # of TF-ICON: white where the thing shall be
NO_POINTS = np.zeros((0, 2, 2))


@dataclass(frozen=True)
class RegionCase(Case):
    """An edit that puts something elsewhere; `runs` is where the picture may change, everywhere if there are none."""

    def where(self, size: tuple[int, int]) -> np.ndarray:
        """(H, W) bool: where a picture of a size (W, H) may change."""
        return decode_mask(self.runs, *size) if self.runs else np.ones(size[::-1], bool)

    def asked(self, source: Image.Image, reads: Collection[str], worded: bool = True) -> Asked:
        """With regions for a method that reads them, else to edit what plain pixels give."""
        mask = picture_of(self.where(source.size)) if self.runs else None
        given: dict[str, Any] = {"mask": mask} if mask and "mask" in reads else {}
        if regions := self.regions(source.size, reads):
            return Asked(source, Request(self.source, self.target if worded else self.source, **given, **regions))
        # What plain pixels give already shows the target, and is to show it.
        return Asked(self.by_pixels(source), Request(self.target, self.target, **given), source, mask)

    def regions(self, size: tuple[int, int], reads: Collection[str]) -> dict[str, Any]:
        """What a `sage.Request` has of regions, for a picture of a size; nothing if the method reads none of it."""
        return {}

    def unchanged(self) -> Case:
        """Refused: what is put elsewhere is no part of the prompts.

        Raises:
            BenchmarkError: always.
        """
        raise BenchmarkError("a case that puts something elsewhere cannot be asked to change nothing: leave out the "
                             "configurations that reconstruct")


@dataclass(frozen=True)
class DragCase(RegionCase):
    """A drag of DragBench.

    Attributes:
        points: (n, 2, 2) float64, from and to, each x and y in pixels: by these it is measured.
        dense: the same of all pixels of regions, by which it is asked for; of none a disc around each point is moved.
    """

    points: np.ndarray = field(default_factory=lambda: NO_POINTS, compare=False)
    dense: np.ndarray = field(default_factory=lambda: NO_POINTS, compare=False)

    @property
    def stem(self) -> str:
        """Where the authors' evaluation looks for it."""
        return str(PurePosixPath(self.picture).with_name("dragged_image"))

    def regions(self, size: tuple[int, int], reads: Collection[str]) -> dict[str, Any]:
        """The dense points, or else discs."""
        if len(self.dense):
            return {"points": tuple(map(tuple, self.dense.reshape(-1, 4).tolist()))} if "points" in reads else {}
        return {"moves": self.discs(size)} if "moves" in reads else {}

    def discs(self, size: tuple[int, int]) -> tuple[Move, ...]:
        """A disc around each point, as `sage drag` moves it; SettingsError for a point outside the picture."""
        def said(point: np.ndarray) -> str:
            return f"{point[0]:.1f},{point[1]:.1f}"

        return tuple(read_move(said(start), said(end), size) for start, end in self.points)

    def by_pixels(self, source: Image.Image) -> Image.Image:
        """The pixels moved, and the hole filled with the colour around it."""
        return pixels_of_points(source, self.dense) if len(self.dense) else pixels_moved(
            source, self.discs(source.size))


@dataclass(frozen=True)
class CompositionCase(RegionCase):
    """A composition of TF-ICON.

    Attributes:
        reference, reference_mask: paths in the benchmark: a picture with the thing, and where it is in it.
        box: left, top, right, bottom of where the thing shall be, in pixels of the background.
        thing: both pictures, once the case is ready.
    """

    reference: str = ""
    reference_mask: str = ""
    box: tuple[int, int, int, int] = (0, 0, 0, 0)
    thing: tuple[Image.Image, Image.Image] | None = field(default=None, compare=False)

    def by_pixels(self, source: Image.Image) -> Image.Image:
        """The thing pasted into its box."""
        return composite(source, *self.opened, self.box)

    @property
    def opened(self) -> tuple[Image.Image, Image.Image]:
        """The reference and its mask; BenchmarkError before the case is ready."""
        if self.thing is None:
            raise BenchmarkError(f"{self.name}: its reference has not been opened")
        return self.thing


@dataclass(frozen=True)
class Compositions(Benchmark):
    """TF-ICON's cases, whose references are opened when they are needed."""

    def ready(self, case: Case) -> Case:
        """With the reference and its mask; PictureError or SettingsError where they cannot be had."""
        assert isinstance(case, CompositionCase)
        reference = pictures.open_picture(inside(self.folder, case.reference))
        return replace(case, thing=(reference, open_mask(inside(self.folder, case.reference_mask), reference.size)))


def picture_of(mask: np.ndarray) -> Image.Image:
    """A bool mask (H, W) as a picture of 0 and 255."""
    return Image.fromarray(mask.astype(np.uint8) * 255)


# ---- DragBench


def read_dragbench(folder: str | Path, regions: bool = True) -> Benchmark:
    """The drags of a folder, in the order of their names; their kinds are its categories.

    Args:
        regions: ask for them by the dense points of meta_data_region.pkl, where there are any.
    Raises:
        BenchmarkError: no such folder, or a case that is damaged, which is named.
    """
    folder = Path(folder)
    samples = [path.parent for path in _some(folder, f"*/*/{POINTS}")]
    if not samples:
        raise BenchmarkError(f"{folder} is no DragBench: it has no CATEGORY/SAMPLE/{POINTS}")
    kinds = sorted({sample.parent.name for sample in samples})
    cases = tuple(_drag(sample, folder, kinds, regions) for sample in samples)
    mapping = [f"{case.name}/{POINTS}" for case in cases]
    mapping += [f"{case.name}/{REGIONS}" for case in cases if len(case.dense)]
    return Benchmark(folder, cases, kinds, tuple(mapping), "", "", "dragbench")


def _drag(sample: Path, folder: Path, kinds: Sequence[str], regions: bool) -> DragCase:
    name = sample.relative_to(folder).as_posix()
    size = pictures.open_picture(inside(folder, f"{name}/{ORIGINAL}")).size
    prompt, points, mask = _meta(inside(folder, f"{name}/{POINTS}"), size, MOST_POINTS)
    dense = NO_POINTS
    if regions and (sample / REGIONS).exists():
        prompt, dense, mask = _meta(inside(folder, f"{name}/{REGIONS}"), size, MOST_DENSE)
    return DragCase(name, kinds.index(sample.parent.name), f"{name}/{ORIGINAL}", prompt, prompt, encode_mask(mask),
                    points=points, dense=dense)


def _meta(path: Path, size: tuple[int, int], most: int) -> tuple[str, np.ndarray, np.ndarray]:
    """Prompt, points (n, 2, 2) and mask (H, W) of a pickle."""
    meta = read_pickle(path)
    try:
        points = np.asarray(meta["points"], np.float64).reshape(-1, 2, 2)
        mask, prompt = np.asarray(meta["mask"]) > 0, meta["prompt"]
        if mask.ndim == 3:
            mask = np.any(mask, axis=2)
        fine = (_is_prompt(prompt) and 0 < len(points) <= most and (np.abs(points) < FARTHEST).all()
                and mask.shape == (size[1], size[0]))
    except (KeyError, TypeError, ValueError, IndexError):
        fine = False
    if not fine:
        raise BenchmarkError(f"{path} is damaged: it has no prompt, pairs of points, and mask of the picture's size")
    return prompt, points, mask


def _is_prompt(text: Any) -> bool:
    return isinstance(text, str) and len(text) <= MAX_TEXT and not any("\ud800" <= c <= "\udfff" for c in text)


# ---- TF-ICON


def read_tficon(folder: str | Path) -> Benchmark:
    """The compositions of a folder, in the order of their names; their kinds are its domains.

    Raises:
        BenchmarkError: no such folder, or a case that lacks something, which is named.
    """
    folder = Path(folder)
    places = [path.parent for path in _some(folder, f"*/*/{WHERE}")]
    if not places:
        raise BenchmarkError(f"{folder} is no TF-ICON benchmark: it has no DOMAIN/NNNN PROMPT/{WHERE}")
    kinds = sorted({place.parent.name for place in places})
    cases = tuple(_composition(place, folder, kinds) for place in places)
    mapping = [path for case in cases for path in (f"{case.name}/{WHERE}", case.reference, case.reference_mask)]
    return Compositions(folder, cases, kinds, tuple(mapping), "", "", "tficon")


def _composition(place: Path, folder: Path, kinds: Sequence[str]) -> CompositionCase:
    name = place.relative_to(folder).as_posix()

    def one(pattern: str, but: str = "") -> str:
        paths = sorted(path for path in place.glob(pattern) if not but or but not in path.name)
        if len(paths) != 1:
            raise BenchmarkError(f"{place} has {len(paths)} files {pattern}, and must have one")
        return f"{name}/{paths[0].name}"

    background = one("bg[0-9]*.*")
    where = pictures.open_picture(inside(folder, f"{name}/{WHERE}")).convert("L")
    box = where.point(lambda value: 255 * (value >= 128)).getbbox()
    size = pictures.open_picture(inside(folder, background)).size
    if box is None:
        raise BenchmarkError(f"{place / WHERE} has no white place")
    scale = size[0] / where.width, size[1] / where.height
    left, top, right, bottom = (round(side * scale[i % 2]) for i, side in enumerate(box))
    fitted = left, top, max(right, left + 1), max(bottom, top + 1)
    number, _, prompt = place.name.partition(" ")
    if not number.isdigit() or not prompt.strip():
        raise BenchmarkError(f"{place} is no case: its name must be a number and a prompt")
    runs = encode_mask(np.asarray(box_mask(fitted, size)) > 0)
    return CompositionCase(name, kinds.index(place.parent.name), background, prompt, prompt, runs,
                           reference=one("fg[0-9]*.*", "_mask"), reference_mask=one("fg[0-9]*_mask.png"), box=fitted)


def _some(folder: Path, pattern: str) -> list[Path]:
    paths = sorted(folder.glob(pattern))
    if len(paths) > MOST_CASES:
        raise BenchmarkError(f"{folder} has more than {MOST_CASES} cases")
    return paths
