"""`sage caption`: what a picture shows, a still life by the bundled model's encoder, any by a model of the user's."""

import argparse
import json
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np

from sage import pictures
from sage.display import console
from sage.errors import ModelError, SettingsError

EXAMPLES = """
examples:
  sage caption mug.png
  sage edit mug.png --source auto --instruction "make the mug red"
  sage caption cat.jpg --captioner blip-image-captioning-base/     # a captioning model that you have

By itself it knows the rendered still lifes of the bundled model, and nothing else: of a photograph it says what still
life that is most like, and a note says so.  For photographs name a captioning model: BLIP, GIT or another encoder of
pictures before a decoder of text, as transformers saves them, in safetensors.
"""
GUESS = "its thing is a guess: the picture may show none that is known"
ADVICE = ("it is described as the still life that it is most like; for photographs write the source prompt yourself, "
          "or name a captioning model with --captioner")
NO_ENCODER = ("a picture can be described where the bundled model's encoder is, a folder encoder in weights/stilllife: "
              "write the source prompt yourself, or name a captioning model with --captioner")


def add_command(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command to those of `sage`."""
    parser = command("caption", run, "describe a picture", epilog=EXAMPLES)
    parser.add_argument("picture", metavar="IMG", help="the picture to describe")
    parser.add_argument("--encoder", metavar="DIR", help="another encoder than the bundled model's")
    add_captioner(parser)
    parser.add_argument("--json", action="store_true", help="print the description, how sure each part of a still life "
                                                            "is, and notes")


def add_captioner(parser: argparse.ArgumentParser) -> None:
    """The flag that names a captioning model."""
    parser.add_argument("--captioner", metavar="FOLDER", help="describe by this model of transformers (BLIP, GIT, "
                        "vision-encoder-decoder): a folder, or the name of one in the hub's cache")


def run(args: argparse.Namespace) -> None:
    """Describe, and print it."""
    if args.captioner and args.encoder:
        raise SettingsError("--captioner and --encoder are two ways to describe a picture: give one of them")
    image = pictures.open_picture(Path(args.picture))
    if args.captioner:
        text = by_captioner(image, args.captioner)
        print(json.dumps({"caption": text}) if args.json else text)
        return
    text, read, unsure = caption(image, args.encoder, shown=True)
    notes = _notes(image, unsure)
    if args.json:
        print(json.dumps({"caption": text, "read": {name: {"value": value, "probability": round(share, 4)}
                                                    for name, (value, share) in read.items()}, "unsure": unsure,
                          "notes": notes}))
        return
    print(text)
    if left := tuple(name for name in unsure if name != "form"):
        console.note(f"{_not_sure(left)}: left out")
    for message in notes:
        console.note(message)


def by_captioner(image: Any, where: str, device: str | None = None, shown: bool = True) -> str:
    """What a captioning model of the user's says of a picture; where there is a terminal, that it is loaded."""
    console.begin(f"loading {where}", shown and sys.stderr.isatty())
    from sage.prompts.captioner import describe
    return describe(image, where, device)


def _not_sure(unsure: tuple[str, ...]) -> str:
    return f"not sure of {', '.join(name.replace('_', ' ') for name in unsure)}"


def _notes(image: Any, unsure: Collection[str]) -> list[str]:
    """What is to be said of a description: that the picture is no still life, or else that its thing is a guess."""
    from sage.bench.encoder import unlike_still_lifes
    foreign = unlike_still_lifes(pictures.normalise(image))
    return [f"{foreign}: {ADVICE}"] if foreign else [GUESS] if "form" in unsure else []


def caption(image: Any, folder: str | None = None,
            shown: bool = False) -> tuple[str, dict[str, tuple[str, float]], tuple[str, ...]]:
    """A picture's description, what was read of it and how probable that is, and what of it is unsure.

    Args:
        folder: of another encoder than the bundled model's.
        shown: say first what is done, where there is a terminal.
    Raises:
        ModelError: there is no encoder.
    """
    console.begin("looking at the picture, some seconds", shown and sys.stderr.isatty())
    from sage.bench.encoder import bundled, load_encoder
    from sage.stilllife.describe import described
    if folder is None and bundled() is None:
        raise ModelError(NO_ENCODER)
    read = load_encoder(folder).read(np.asarray(pictures.normalise(image)))
    text, unsure = described(read)
    return text, read, unsure


def described_picture(args: argparse.Namespace) -> str:
    """The description that stands in the place of `--source auto`; who sits at a terminal may correct it."""
    image, unsure = pictures.open_picture(Path(args.picture)), tuple[str, ...]()
    if args.captioner:
        text = by_captioner(image, args.captioner, args.device, not args.quiet)
    else:
        text, _, unsure = caption(image, shown=not args.quiet)
    if args.quiet:
        return text
    console.note(f"the picture is taken to show: {text}" + (f" ({_not_sure(unsure)})" if unsure else ""))
    for message in () if args.captioner else _notes(image, unsure):
        console.note(message)
    if not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
        return text
    print("Enter to take it, or another description: ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip() or text
