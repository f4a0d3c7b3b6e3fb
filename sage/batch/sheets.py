"""Contact sheets: every edit of a batch beside its picture."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image, ImageOps

from sage import pictures
from sage.batch.runner import Task
from sage.errors import PictureError
from sage.prompts.tokens import Prompts

ACROSS, DOWN = 3, 6  # pairs side by side, and below each other
SIDE, GAP = 192, 4  # pixels of a picture, and between the two of a pair

Progress = Callable[[str, int, int], None]


def write_sheets(tasks: Sequence[Task], folder: Path, prompts: Prompts, progress: Progress | None = None) -> list[Path]:
    """Write contact-sheet.png, contact-sheet-2.png, ... of edits that are done, and remove what earlier ones had more.

    Returns:
        The sheets.
    """
    size, written = ACROSS * DOWN, list[Path]()
    for start in range(0, len(tasks), size):
        pairs = []
        for i, task in enumerate(tasks[start:start + size], start=start):
            pairs.append(_pair(task, prompts))
            if progress:
                progress("sheet", i + 1, len(tasks))
        rows = [pairs[i:i + ACROSS] for i in range(0, len(pairs), ACROSS)]
        written.append(pictures.save_picture(pictures.sheet(rows, 2 * SIDE + GAP), _place(folder, len(written))))
    at = len(written)
    while os.path.isfile(stale := _place(folder, at)):
        stale.unlink()
        at += 1
    return written


def _place(folder: Path, page: int) -> Path:
    return folder / ("contact-sheet.png" if page == 0 else f"contact-sheet-{page + 1}.png")


def _pair(task: Task, prompts: Prompts) -> tuple[str, Image.Image]:
    """The picture and the edit, with what was asked for."""
    small = [_small(path) for path in (task.row.picture, task.path)]
    pair = Image.new("RGB", (2 * SIDE + GAP, max(image.height for image in small)), "white")
    for i, image in enumerate(small):
        pair.paste(image, (i * (SIDE + GAP), 0))
    return f"{task.row.number}. {Path(task.row.out).stem}: {changed(task, prompts)}", pair


def _small(path: Path) -> Image.Image:
    try:
        image = pictures.open_picture(path)
    except PictureError:  # gone since it was read
        return Image.new("RGB", (SIDE, SIDE), "lightgrey")
    times = SIDE // max(image.size)
    if times > 1:
        return ImageOps.scale(image, times, Image.Resampling.NEAREST)
    return ImageOps.contain(image, (SIDE, SIDE), Image.Resampling.LANCZOS)


def changed(task: Task, prompts: Prompts) -> str:
    """The words in which the prompts differ."""
    def words(name: str) -> str:
        edited = {p for span in task.plan.edited for p in getattr(span, name)}
        return " ".join(word.strip(",.;:!?") for word, positions in prompts.words(getattr(task.plan, name))
                        if edited & {*positions})

    before, after = words("source"), words("target")
    if before and after:
        return f"{before} -> {after}"
    return f"with {after}" if after else f"without {before}" if before else "nothing changed"
