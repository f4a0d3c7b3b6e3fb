"""`sage ui`: arguments -> a served studio.  Imports neither torch nor Gradio before they are checked."""

import argparse
from collections.abc import Callable
from typing import Any

PORT, QUEUE, STEPS = 7860, 16, 100


def add_command(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command to those of `sage`.

    Args:
        command: (name, run, help) -> the parser of a new command.
    """
    ui = command("ui", run_ui, "edit in a browser: the studio, on this machine alone unless told otherwise")
    add = ui.add_argument
    add("--host", metavar="ADDRESS", default="127.0.0.1", help="where to listen; 0.0.0.0 is for everyone who can reach "
                                                                "this machine [%(default)s]")
    add("--port", metavar="N", type=_whole(0, 65535), default=PORT, help="0 for any free one [%(default)s]")
    add("--share", action="store_true", help="also open a public address, through a server of Gradio's authors")
    add("--model", metavar="MODEL", action="append", help="a model to choose from; given again, one more; the first is "
                                                          "loaded at once [all that are on this disk]")
    add("--max-side", metavar="N", type=_whole(8, 4096), help="largest side to work at, in pixels [twice the model's]")
    add("--max-steps", metavar="N", type=_whole(1, 1000), default=STEPS, help="most steps of an edit [%(default)s]")
    add("--queue", metavar="N", type=_whole(1, 1000), default=QUEUE, help="how many edits may wait [%(default)s]")


def _whole(low: int, high: int) -> Callable[[str], int]:
    def whole(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from {low} to {high}")
        return int(text)
    return whole


def run_ui(args: Any) -> None:
    """Serve until Ctrl-C."""
    from importlib.util import find_spec

    from sage.errors import SettingsError
    if find_spec("gradio") is None:  # told at once, before torch is loaded
        raise SettingsError("the studio needs Gradio: pip install 'sage-edit[ui]'")
    from sage.studio.server import serve
    from sage.studio.service import Limits
    serve(args.model, Limits(side=args.max_side, steps=args.max_steps), args.host, args.port, args.queue, args.share)
