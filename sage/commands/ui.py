"""`sage ui` and `sage serve`: arguments -> a served studio, or its API.  Imports no torch before they are checked."""

import argparse
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

PORT, QUEUE, STEPS, PATIENCE = 7860, 16, 100, 60
LEAST_TOKEN = 8  # characters


def add_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands to those of `sage`.

    Args:
        command: (name, run, help) -> the parser of a new command.
    """
    _add_flags(command("ui", partial(_serve, home="studio.html"), "edit in a browser: the studio, on this machine "
                       "alone unless told otherwise"))
    _add_flags(command("serve", partial(_serve, home="api.html"), "edit over HTTP: the API, which the studio itself "
                       "speaks, on this machine alone unless told otherwise"))


def _add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--host", metavar="ADDRESS", default="127.0.0.1", help="where to listen; 0.0.0.0 is for everyone who can reach "
                                                                "this machine and has the token [%(default)s]")
    add("--port", metavar="N", type=_whole(0, 65535), default=PORT, help="0 for any free one [%(default)s]")
    add("--token", metavar="TEXT", type=_token, default=os.environ.get("SAGE_TOKEN"),
        help="what visitors must bring; none: nothing, where something else knows who may come [SAGE_TOKEN, else none "
             "on this machine alone, and a random one that is printed anywhere else]")
    add("--model", metavar="MODEL", action="append", help="a model to choose from; given again, one more; the first is "
                                                          "loaded at once [all that are on this disk]")
    add("--gallery", metavar="DIR", help="a folder in which every result is kept [none: they go when this ends]")
    add("--max-side", metavar="N", type=_whole(8, 4096), help="largest side to work at, in pixels [twice the model's]")
    add("--max-steps", metavar="N", type=_whole(1, 1000), default=STEPS, help="most steps of an edit [%(default)s]")
    add("--queue", metavar="N", type=_whole(1, 1000), default=QUEUE, help="how many edits may wait [%(default)s]")
    add("--patience", metavar="SECONDS", type=_whole(5, 86400), default=PATIENCE,
        help="after which an edit that nobody asks about any more is ended [%(default)s]")
    add("--no-compile", action="store_true", help="leave small networks to torch, where OpenVINO is installed too "
                                                  "(pip install 'sage-edit[fast]'), which serves them in half the time")


def _whole(low: int, high: int) -> Callable[[str], int]:
    def whole(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from {low} to {high}")
        return int(text)
    return whole


def _token(text: str) -> str:
    if text != "none" and not re.fullmatch(rf"[\w-]{{{LEAST_TOKEN},}}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"must be at least {LEAST_TOKEN} letters, digits, - and _; or none")
    return text


def _serve(args: Any, home: str) -> None:
    """Serve until Ctrl-C."""
    from importlib.util import find_spec

    from sage.errors import SettingsError
    if find_spec("fastapi") is None or find_spec("uvicorn") is None:  # told at once, before torch is loaded
        raise SettingsError("the studio needs FastAPI and uvicorn: pip install 'sage-edit[ui]'")
    from sage.studio.requests import Limits
    from sage.studio.server import serve
    limits = Limits(side=args.max_side, steps=args.max_steps, waiting=args.queue, patience=args.patience)
    serve(args.model, limits, args.host, args.port, home, "" if args.token == "none" else args.token,
          Path(args.gallery) if args.gallery else None, not args.no_compile)
