"""`sage grid`: arguments -> one picture under every combination of some settings.  Imports no torch by itself."""

import argparse
import sys
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

from sage import pictures
from sage.commands.flags import (
    DEFAULT_MODEL,
    add_method,
    add_model,
    fetch_model,
    given_settings,
    load,
    must_fetch,
    reader,
    typed,
)
from sage.display import console
from sage.display.progress import Progress
from sage.errors import SettingsError
from sage.method import Method, check_task, method
from sage.pictures.metadata import check_prompt, identity

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
    parser = command("grid", run, "edit a picture in every combination of some settings", epilog=EXAMPLES,
                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("picture", metavar="IMG", help="the picture to edit")
    add("--source", metavar="PROMPT", type=typed, required=True, help="what the picture shows")
    add("--target", metavar="PROMPT", type=typed, required=True, help="what it shall show")
    for name, text in (("x", "from left to right"), ("y", "from top to bottom"), ("z", "one table after the other")):
        add(f"--{name}", metavar="NAME=VALUES", type=typed, required=name == "x", help=f"what differs {text}")
    add("--out", metavar="DIR", default="grid", help="where the pictures, sheet.png and index.html go [%(default)s]")
    add("--truncate", action="store_true", help="cut prompts that are too long for the model")
    add("--yes", action="store_true", help="download a model that is not here without asking")
    add("--quiet", action="store_true", help="no progress, no notes")
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


def run(args: argparse.Namespace) -> None:
    """Make what is not there yet, and say where."""
    chosen = method(args.method)
    check_task(chosen, "edit")
    axes = [read_axis(getattr(args, name), chosen) for name in ("x", "y", "z")]
    named = [name for name, _ in axes if name]
    if len(named) != len({*named}):
        raise SettingsError("two axes go through the same: give each another")
    if (cells := prod(len(values) for _, values in axes)) > MOST:
        raise SettingsError(f"the grid has {cells} cells: at most {MOST}")
    changes = {**chosen.variant, **given_settings(args)}
    path, folder = Path(args.picture), Path(args.out)
    image, picture = pictures.open_picture(path), identity(path)
    for name in ("source", "target"):
        check_prompt(name, getattr(args, name))
    pictures.check_writable(folder / "sheet.png")
    model_name = args.model or DEFAULT_MODEL
    if must_fetch(model_name):
        fetch_model(model_name, args)
    model, messages = load(model_name, args.prediction_type, args)
    from sage.batch.grid import Axis, Grid, make_grid
    x, y, z = (Axis(name, values) for name, values in axes)
    grid = Grid(image, picture, args.source, args.target, chosen.where, changes, (x, y, z), folder, args.truncate)
    there = 0
    with Progress(shown=sys.stderr.isatty() and not args.quiet) as progress:
        def each(cell: Any, was_there: bool) -> None:
            nonlocal there
            there += was_there

        sheet, page = make_grid(grid, model, progress, each)
        for made in (sheet, page):
            progress.say(made)
    if not args.quiet:
        for message in [*messages, *([f"{there} of {cells} edits were there already"] if there else [])]:
            console.note(message)
