"""`sage grid`: arguments -> one picture under every combination of some settings.  Imports no torch by itself."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from PIL import Image

from sage import pictures
from sage.commands.checks import check_model
from sage.commands.flags import (
    DEFAULT_MODEL,
    add_method,
    add_model,
    add_ways,
    given_for_all,
    published,
    reader,
    typed,
)
from sage.commands.running import carry_out
from sage.display import console
from sage.display.progress import Progress
from sage.errors import SettingsError
from sage.method import Method, check_task, method
from sage.pictures.metadata import check_prompt
from sage.pictures.originals import identity

MOST = 1000  # cells
EXAMPLES = """
examples:
  sage grid mug.png --source "a blue mug" --target "a red mug" --x guidance_scale=1,2,4 --y seed=0,1,2
  sage grid mug.png --source "a blue mug" --target "a red mug" --x "target=a red mug|a green mug" --y method=sage,p2p

An axis is NAME=VALUE,VALUE,...: a setting, method or target; values that hold commas are divided by |.  A grid that
was ended goes on where it was.
"""


def add_command(command: Callable[..., argparse.ArgumentParser], chosen: Method) -> None:
    """Add the command to those of `sage`.

    Args:
        command: (name, run, help, **options) -> the parser of a new command.
        chosen: whose settings are its flags.
    """
    parser = command("grid", run, "edit a picture in every combination of some settings",
                     usage="%(prog)s IMG --source PROMPT --target PROMPT --x NAME=VALUES [FLAGS]", epilog=EXAMPLES)
    add = parser.add_argument
    add("picture", metavar="IMG", help="the picture to edit")
    add("--source", metavar="PROMPT", type=typed, required=True, help="what the picture shows")
    add("--target", metavar="PROMPT", type=typed, required=True, help="what it shall show")
    for name, text in (("x", "from left to right"), ("y", "from top to bottom"), ("z", "one table after the other")):
        add(f"--{name}", metavar="NAME=VALUES", type=typed, required=name == "x", help=f"what differs {text}")
    add("--out", metavar="DIR", default="grid", help="where the pictures, sheet.png and index.html go [%(default)s]")
    add_ways(parser, "paths, how many edits were there already, notes, seconds, versions")
    add_model(parser)
    add_method(parser, chosen)


def read_axis(text: str | None, chosen: Method) -> tuple[str, tuple[Any, ...]]:
    """What an axis goes through: its name, and values of its setting.

    Raises:
        SettingsError: no NAME=VALUES, a name of nothing, or a value that is none of it.
    """
    if text is None:
        return "", ("",)
    name, equals, rest = text.partition("=")
    name = name.strip().replace("-", "_")
    given = [value.strip() for value in rest.split("|" if "|" in rest else ",")]
    if not equals or not all(given):
        raise SettingsError(f"{text[:60]!r} is no axis: give NAME=VALUE,VALUE,...")
    if name == "target":
        return name, tuple(check_prompt("target", value) for value in given)
    if name == "method":
        for value in given:
            check_task(method(value), "edit")
        return name, tuple(given)
    if name not in chosen.Settings.names():
        near = console.did_you_mean(name, ["method", "target", *chosen.Settings.names()])
        raise SettingsError(f"{chosen.name} has no setting {name[:40]!r}{near}")
    read = reader(chosen.Settings, name)
    try:
        values = tuple(read(value) for value in given)
    except ValueError:
        raise SettingsError(f"{text[:60]!r}: a value of {name} is no number") from None
    for value in values:
        chosen.Settings().but(**{name: value})
    return name, values


@dataclass(frozen=True)
class Job:
    """What one `sage grid` shall do, checked as far as it can be without the model; as that of `sage edit`.

    Attributes:
        method: by its name, of which all cells are whose axes name no other.
        axes: x, y and z; one that was not given has no name and one value.
        preset: of each cell's method, "" for what the model recommends.
    """

    image: Image.Image
    picture: dict[str, str]
    source: str
    target: str
    model: str
    prediction_type: str | None
    method: str
    preset: str
    changes: dict[str, Any]
    axes: tuple[tuple[str, tuple[Any, ...]], ...]
    truncate: bool
    fetch: bool
    folder: Path
    notes: tuple[str, ...] = ()


def plan(args: argparse.Namespace) -> Job:
    """Check everything that was given.

    Raises:
        SageError: whatever is wrong with it.
    """
    chosen = method(args.method)
    check_task(chosen, "edit")
    axes = tuple(read_axis(getattr(args, name), chosen) for name in ("x", "y", "z"))
    named = [name for name, _ in axes if name]
    if len(named) != len({*named}):
        raise SettingsError("two axes go through the same: give each another")
    if (cells := prod(len(values) for _, values in axes)) > MOST:
        raise SettingsError(f"the grid has {cells} cells: at most {MOST}")
    changes, _ = given_for_all(args), published(args)
    path, folder = Path(args.picture), Path(args.out)
    image, picture = pictures.open_picture(path), identity(path)
    source, target = (check_prompt(name, getattr(args, name)) for name in ("source", "target"))
    pictures.check_writable(folder / "sheet.png")
    model = args.model or DEFAULT_MODEL
    targets = next((values for name, values in axes if name == "target"), (target,))
    fetch = check_model(model, image, (source, *targets), changes, args.truncate, args.tokenizer)
    return Job(image, picture, source, target, model, args.prediction_type, args.method,
               "published" if args.published else "", changes, axes, args.truncate, fetch, folder)


def run(args: argparse.Namespace) -> None:
    """Make what is not there yet, and say where."""
    carry_out(plan(args), args, _make_all)


def _make_all(job: Job, model: Any, progress: Progress, print_paths: bool) -> dict[str, Any]:
    from sage.batch.grid import Axis, Grid, make_grid
    x, y, z = (Axis(name, values) for name, values in job.axes)
    grid = Grid(job.image, job.picture, job.source, job.target, job.method, job.changes, (x, y, z), job.folder,
                job.truncate, job.prediction_type, job.preset)
    cells, kept, notes = list[str](), 0, list[str]()

    def each(cell: Any, result: Any) -> None:
        nonlocal kept
        cells.append(str(cell.path))
        kept += result is None
        notes.extend(note for note in (result.notes if result else ()) if note not in notes)

    sheet, page = make_grid(grid, model, progress, each)
    if print_paths:
        progress.say(sheet)
        progress.say(page)
    notes += [f"{kept} of {len(cells)} edits were there already"] if kept else []
    return {"sheet": str(sheet), "page": str(page), "edits": cells, "kept": kept, "notes": notes}
