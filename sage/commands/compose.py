"""`sage compose`: a thing of one picture, put into another and made to belong there.  No tensors."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from sage import pictures
from sage.commands import edit
from sage.commands.checks import outputs
from sage.commands.drag import ANYTHING
from sage.errors import SettingsError
from sage.files import named_after
from sage.method import Method
from sage.pictures.masks import open_mask
from sage.pictures.metadata import asked_as_text
from sage.pictures.originals import Paste, identity
from sage.pictures.regions import box_mask, composite, read_box

WHAT = ("reference", "reference_mask", "box")
EXAMPLES = """
examples:
  sage compose table.png --reference mug.png --reference-mask mug-mask.png --box 20,20,44,52 --target "a mug on a table"
  sage compose table.png --reference mug.png --reference-mask mug-mask.png --box 20,20,44,52 --pixels  # a paste
  sage compose table.png --config-from out/table-edit.png        # again; mug.png lies beside either, or here

The thing is scaled to fill the box and pasted (--whole: all of the reference is scaled to it, as with --method eedit
--published); then the method edits the whole inside the box, and outside it the background's own pixels stay.
"""


def add_command(command: Callable[..., argparse.ArgumentParser], chosen: Method) -> None:
    """Add the command to those of `sage`.

    Args:
        command: (name, run, help, **options) -> the parser of a new command.
        chosen: whose settings are its flags.
    """
    parser = command("compose", run, "put a thing of one picture into another",
                     usage="%(prog)s BACKGROUND --reference PIC --reference-mask M --box BOX [FLAGS]", epilog=EXAMPLES)
    parser.set_defaults(prepare=prepare)
    add = parser.add_argument
    add("picture", metavar="BACKGROUND", help="the picture that the thing is put into")
    add("--reference", metavar="PIC", help="the picture that has the thing")
    add("--reference-mask", metavar="M", help="where the thing is in it, white")
    add("--box", metavar="X1,Y1,X2,Y2", help="where it shall be, in pixels of the background")
    add("--whole", action="store_true", help="scale the whole reference to the box, not what the mask marks of it")
    add("--pixels", action="store_true", help="only paste: no network")
    edit.add_flags(parser, chosen, "compose")


def run(args: argparse.Namespace) -> None:
    """Compose, write, and say where."""
    if args.pixels:
        background = pictures.open_picture(args.picture)
        [out] = outputs(args.out, named_after(Path(args.picture).stem, "-pixels.png"), 1)
        pictures.check_writable(out, background.size)
        pictures.save_picture(_pasted(args, background, args.whole)[0], out)
        print(out)
        return
    args.source = args.source or (None if args.config_from else ANYTHING)
    args.target = args.target or ([args.source] if args.source else None)
    edit.run(args)


def prepare(args: argparse.Namespace, image: Image.Image, chosen: Method, old: dict[str, Any]) -> tuple[
        Image.Image, dict[str, Any], dict[str, Any]]:
    """As of `sage edit`: the paste is edited, and only the box may change; or all as in an earlier picture."""
    if "composed" in old and not any(getattr(args, name) for name in WHAT):
        return edit.prepare(args, image, chosen, old)
    whole, paste = _pasted(args, image, args.whole or args.published and "compose" in chosen.published)
    asked: dict[str, Any] = {"mask": box_mask(paste.box, image.size), "paste": True}
    edit.check_asked(chosen, asked)
    return whole, asked, asked_as_text(**asked) | {"composed": [paste.as_dict()]}


def _pasted(args: argparse.Namespace, background: Image.Image, whole: bool) -> tuple[Image.Image, Paste]:
    """The naive paste, and what it is of."""
    for name in WHAT:
        if not getattr(args, name):
            raise SettingsError(f"--{name.replace('_', '-')} is missing: sage compose --help shows what is needed")
    reference = pictures.open_picture(args.reference)
    mask, box = open_mask(args.reference_mask, reference.size), read_box(args.box, background.size)
    return (composite(background, reference, mask, box, whole),
            Paste(identity(Path(args.reference)), mask, box, whole))
