"""`sage drag`: a region of a picture, put elsewhere in it.  No tensors."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from sage import pictures
from sage.commands import edit
from sage.commands.checks import outputs
from sage.errors import SettingsError
from sage.files import named_after
from sage.method import Method
from sage.pictures.metadata import asked_as_text
from sage.pictures.regions import pixels_moved, read_move

ANYTHING = "a photograph"  # what a picture shows where nobody says it
EXAMPLES = """
examples:
  sage drag mug.png --from 40,45 --to 20,45 --source "a mug on a table"     # a disc around a point
  sage drag mug.png --from 28,30,52,60 --to 20,45                           # a box, its middle to a point
  sage drag mug.png --from mug-mask.png --to 8,8,40,56 --drag-class cut     # what a mask marks, to a box of any size
  sage drag mug.png --from 40,45 --to 20,45 --pixels                        # the plain pixels, for comparison

Several regions are put elsewhere with several --from and --to, in pairs.
"""


def add_command(command: Callable[..., argparse.ArgumentParser], chosen: Method) -> None:
    """Add the command to those of `sage`.

    Args:
        command: (name, run, help, **options) -> the parser of a new command.
        chosen: whose settings are its flags.
    """
    parser = command("drag", run, "put a region of a picture elsewhere in it",
                     usage="%(prog)s IMG --from REGION --to REGION [--source PROMPT] [FLAGS]", epilog=EXAMPLES)
    parser.set_defaults(prepare=prepare)
    add = parser.add_argument
    add("picture", metavar="IMG", help="the picture to edit")
    add("--from", dest="regions_from", metavar="REGION", action="append", help="what is moved: x,y or "
        "left,top,right,bottom in pixels, or a mask file")
    add("--to", dest="regions_to", metavar="REGION", action="append", help="where it shall be, said likewise")
    add("--radius", metavar="PX", type=float, help="of the disc for which x,y stands [a tenth of the shorter side]")
    edit.add_mask(parser, "else the regions and a margin")
    add("--pixels", action="store_true", help="only move the pixels, and fill the hole with the colour around it: no "
                                              "network")
    edit.add_flags(parser, chosen, "drag")


def run(args: argparse.Namespace) -> None:
    """Put the regions elsewhere, write, and say where."""
    if args.pixels:
        _plainly(args)
        return
    args.source = args.source or (None if args.config_from else ANYTHING)
    args.target = args.target or ([args.source] if args.source else None)
    edit.run(args)


def prepare(args: argparse.Namespace, image: Image.Image, chosen: Method, old: dict[str, Any]) -> tuple[
        Image.Image, dict[str, Any], dict[str, Any]]:
    """As of `sage edit`; the moves are those of the flags, or of an earlier picture."""
    if not (args.regions_from or args.regions_to) and old.get("moves"):
        return edit.prepare(args, image, chosen, old)
    asked: dict[str, Any] = {"moves": moves_of(args, image)}
    edit.add_flagged(asked, args, image)
    edit.check_asked(chosen, asked)
    return image, asked, asked_as_text(**asked)


def moves_of(args: argparse.Namespace, image: Image.Image) -> tuple[Any, ...]:
    """The moves that the flags say; SettingsError where they say none."""
    starts, ends = args.regions_from or [], args.regions_to or []
    if not starts or len(starts) != len(ends):
        raise SettingsError(f"there are {len(starts)} --from and {len(ends)} --to: give as many of both, at least one")
    if args.radius is not None and not 0 < args.radius <= max(image.size):
        raise SettingsError(f"--radius is {args.radius:g}: must be above 0 and at most {max(image.size)}")
    return tuple(read_move(start, end, image.size, args.radius) for start, end in zip(starts, ends, strict=True))


def _plainly(args: argparse.Namespace) -> None:
    image = pictures.open_picture(args.picture)
    [out] = outputs(args.out, named_after(Path(args.picture).stem, "-pixels.png"), 1)
    pictures.check_writable(out, image.size)
    cut = getattr(args, "drag_class", "copy") == "copy"  # nothing stays where a region was
    pictures.save_picture(pixels_moved(image, moves_of(args, image), cut), out)
    print(out)
