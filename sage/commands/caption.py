"""`sage caption`: what a still life shows, as its description in full, by the encoder of the bundled model."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sage import pictures
from sage.display import console
from sage.errors import ModelError

EXAMPLES = """
examples:
  sage caption mug.png
  sage edit mug.png --source auto --instruction "make the mug red"

It knows the rendered still lifes of the bundled model, and nothing else: of a photograph it says what still life that
is most like.
"""
NO_ENCODER = ("a picture can be described where the bundled model's encoder is, a folder encoder in weights/stilllife: "
              "write the source prompt yourself")


def add_command(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command to those of `sage`."""
    parser = command("caption", run, "describe a still life", epilog=EXAMPLES)
    parser.add_argument("picture", metavar="IMG", help="the picture to describe")
    parser.add_argument("--encoder", metavar="DIR", help="another encoder than the bundled model's")
    parser.add_argument("--json", action="store_true", help="print the description, and how sure each part is")


def run(args: argparse.Namespace) -> None:
    """Describe, and print it."""
    image = pictures.open_picture(Path(args.picture))
    text, read, unsure = caption(image, args.encoder)
    if args.json:
        print(json.dumps({"caption": text, "read": {name: {"value": value, "probability": round(share, 4)}
                                                    for name, (value, share) in read.items()}, "unsure": unsure}))
        return
    print(text)
    if unsure:
        console.note(f"not sure of {', '.join(name.replace('_', ' ') for name in unsure)}: left out")


def caption(image: Any, folder: str | None = None) -> tuple[str, dict[str, tuple[str, float]], tuple[str, ...]]:
    """A picture's description, what was read of it and how probable that is, and what was left out as unsure.

    Raises:
        ModelError: there is no encoder.
    """
    from sage.bench.encoder import bundled, load_encoder
    from sage.stilllife.describe import described
    if folder is None and bundled() is None:
        raise ModelError(NO_ENCODER)
    read = load_encoder(folder).read(np.asarray(pictures.normalise(image)))
    text, unsure = described(read)
    return text, read, unsure


def described_picture(path: Path, quiet: bool) -> str:
    """The description that stands in the place of `--source auto`; who sits at a terminal may correct it."""
    text, _, unsure = caption(pictures.open_picture(path))
    left_out = f" (not sure of {', '.join(name.replace('_', ' ') for name in unsure)})" if unsure else ""
    if quiet:
        return text
    console.note(f"the picture is taken to show: {text}{left_out}")
    if not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
        return text
    print("Enter to take it, or another description: ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip() or text
