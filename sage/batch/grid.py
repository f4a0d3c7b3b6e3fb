"""A grid of edits: one picture under every combination of some settings, on a contact sheet and a page.

What is there already is kept: a run that was ended goes on where it was.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from sage import pictures
from sage.editing import EditResult, check_prompts, edit_batch, settings_for
from sage.errors import PictureError
from sage.files import parse_json, written_whole
from sage.job import Progress
from sage.method import Request, method, method_of
from sage.models.backbone import Backbone
from sage.pictures.metadata import make_record
from sage.settings import Settings
from sage.trajectory.fitting import sharing_key
from sage.trajectory.kinds import Trajectory

SHEET, PAGE = "sheet.png", "index.html"


@dataclass(frozen=True)
class Axis:
    """What one axis of a grid goes through.

    Attributes:
        name: "method", "target", or a setting.
        values: as the command line reads them.
    """

    name: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Cell:
    """One edit of a grid.

    Attributes:
        place: which value of x, y and z.
    """

    place: tuple[int, int, int]
    target: str
    config: Settings
    path: Path


@dataclass(frozen=True)
class Grid:
    """A picture and what is tried on it.

    Attributes:
        axes: x, y and z; an axis of no name has one value.
        changes: settings of all cells whose methods have them; those of an axis win.
        picture: the identity of the picture.
        prediction_type: where the user overrode the checkpoint's own word.
        preset: of each cell's method, to start from; "": what the model recommends for the method.
    """

    image: Image.Image
    picture: dict[str, str]
    source: str
    target: str
    method: str
    changes: Mapping[str, Any]
    axes: tuple[Axis, Axis, Axis]
    folder: Path
    truncate: bool = False
    prediction_type: str | None = None
    preset: str = ""

    def cells(self, model: Backbone) -> list[Cell]:
        """Every edit, those that share an inversion one after the other where the axes allow it.

        Raises:
            SettingsError: a setting that a method of the grid has not, or a value out of its range.
        """
        found = []
        for place in itertools.product(*(range(len(axis.values)) for axis in reversed(self.axes))):
            z, y, x = place
            given = {axis.name: axis.values[i] for axis, i in zip(self.axes, (x, y, z), strict=True)}
            name, target = given.pop("method", self.method), given.pop("target", self.target)
            given.pop("", None)
            base = settings_for(model, method(name).preset(self.preset) if self.preset else None, name)
            config = base.but(**{name: v for name, v in self.changes.items() if name in base.names()} | given)
            found.append(Cell((x, y, z), target, config, self.folder / f"{x + 1}-{y + 1}-{z + 1}.png"))
        return found


def make_grid(grid: Grid, model: Backbone, progress: Progress | None = None,
              each: Callable[[Cell, EditResult | None], None] | None = None) -> tuple[Path, Path]:
    """Make every edit that is not there yet, then the sheet and the page.

    Args:
        each: told of every cell, and what was made of it, None where it was there.
    Returns:
        the paths of the sheet and of the page.
    """
    cells = grid.cells(model)
    plans = {cell.place: check_prompts(model, grid.source, cell.target, cell.config, grid.truncate) for cell in cells}
    trajectory: Trajectory | None = None
    shared: Any = None
    for cell in cells:
        record = make_record(model, grid.source, cell.target, cell.config, grid.picture, grid.truncate,
                             grid.prediction_type)
        result = None
        if not _is_there(cell.path, record):
            key = sharing_key(cell.config, [plans[cell.place]])
            result = edit_batch(model, [grid.image], [plans[cell.place]], cell.config, progress,
                                trajectory if key == shared else None,
                                requests=[Request(grid.source, cell.target)])[0]
            trajectory, shared = result.trajectory, key
            record["savings"] = result.savings.as_dict()
            pictures.save_picture(result.image, cell.path, record)
        if each:
            each(cell, result)
    sheet, page = grid.folder / SHEET, grid.folder / PAGE
    pictures.save_picture(_sheet(grid, cells), sheet)
    with written_whole(page) as file:
        file.write(_page(grid, cells, model.name).encode())
    return sheet, page


def _is_there(path: Path, record: dict[str, Any]) -> bool:
    """Whether a file holds just this edit."""
    try:
        old = pictures.read_settings(path)
    except PictureError:
        return False
    wanted = {name: value for name, value in record.items() if name not in ("made", "savings")}
    return {name: old.get(name) for name in wanted} == parse_json(pictures.settings_text(wanted))


def label(axis: Axis, i: int) -> str:
    """A value of an axis, for people."""
    value = axis.values[i]
    if isinstance(value, tuple):
        value = " / ".join(value)
    return f"{axis.name.replace('_', ' ')} {value:g}" if isinstance(value, float) else (
        str(value) if axis.name in ("method", "target") else f"{axis.name.replace('_', ' ')} {value}".strip())


def _rows(cells: Sequence[Cell]) -> Iterator[tuple[tuple[int, int], list[Cell]]]:
    """The rows of the grid by (z, y)."""
    for where, row in itertools.groupby(cells, key=lambda cell: (cell.place[2], cell.place[1])):
        yield where, list(row)


def _sheet(grid: Grid, cells: Sequence[Cell]) -> Image.Image:
    x, y, z = grid.axes
    rows = []
    for (k, j), row in _rows(cells):
        beside = ", ".join(filter(None, (label(z, k), label(y, j)))) or "input"
        rows.append([(beside, grid.image), *((label(x, cell.place[0]), pictures.open_picture(cell.path))
                                             for cell in row)])
    return pictures.sheet(rows, 128 if len(cells) > 36 else 256)


def _page(grid: Grid, cells: Sequence[Cell], model: str) -> str:
    x, y, z = grid.axes
    body = []
    for k, rows in itertools.groupby(_rows(cells), key=lambda item: item[0][0]):
        heads = "".join(f'<th scope="col">{escape(label(x, i))}</th>' for i in range(len(x.values)))
        lines = "".join(f'<tr><th scope="row">{escape(label(y, j))}</th>' + "".join(
            f'<td><a href="{cell.path.name}"><img src="{cell.path.name}" loading="lazy" alt="'
            f'{escape(cell.target)}, {escape(method_of(cell.config).name)}"></a></td>' for cell in row) + "</tr>"
            for (_, j), row in rows)
        body.append(f"<h2>{escape(label(z, k))}</h2>" * bool(z.name)
                    + f'<table><thead><tr><td></td>{heads}</tr></thead><tbody>{lines}</tbody></table>')
    return (f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
            f"<title>{escape(grid.picture['name'])}: a grid of edits</title><style>{STYLE}</style>"
            f"<h1>{escape(grid.picture['name'])}</h1><p>{escape(grid.source)}<br><b>{escape(grid.target)}</b><br>"
            f"{escape(model)}; every picture holds its settings: <code>sage info FILE</code></p>{''.join(body)}</html>")


STYLE = ("body{font:15px/1.5 system-ui,sans-serif;margin:24px;color:#1c1917}table{border-spacing:8px}"
         "th{font-weight:600;text-align:left;max-width:16em}img{width:max(160px,12vw);image-rendering:pixelated;display:block}"
         "h1{font-size:1.3rem}h2{font-size:1.05rem}")
