"""From checked arguments to finished work: the model is named, fetched and loaded, and what came of it is said.

Torch is imported when a model is fetched or loaded, and not before.
"""

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any, Protocol

from sage.commands.flags import DEFAULT_MODEL
from sage.display import console
from sage.display.progress import Progress
from sage.errors import ModelError
from sage.models.known import AT_HAND, KNOWN, KnownModel, known_model, weights_dir
from sage.pictures.metadata import versions


class Job(Protocol):
    """What the planned work of any command says of its model.

    Attributes:
        model: its name, folder or file.
        prediction_type: where the user overrides the checkpoint's own word.
        fetch: it must be downloaded first.
        notes: what the user should know beforehand.
    """

    @property
    def model(self) -> str: ...
    @property
    def prediction_type(self) -> str | None: ...
    @property
    def fetch(self) -> bool: ...
    @property
    def notes(self) -> tuple[str, ...]: ...


def model_of(old: dict[str, Any], where: str | None) -> str:
    """The model of an earlier picture, by name only: no path that stands in a picture is ever opened."""
    if not old:
        return DEFAULT_MODEL
    if old["model"] not in KNOWN:
        raise ModelError(f"{where} was made with a model of your own, {old['model']!r}: say where it is with --model")
    return old["model"]


def ask_to_fetch(model: KnownModel, yes: bool) -> None:
    """Have a person say whether gigabytes may come; where nobody sits at a terminal, and with `yes`, they may.

    Raises:
        ModelError: they may not.
    """
    if yes or not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
        return
    print(f"sage: {model.name} is not here yet: {model.download / 1e9:.1f} GB from {model.repo} to {weights_dir()}, "
          f"licence {model.licence} ({model.licence_url})\ndownload it? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise ModelError(f"{model.name} was not downloaded: {AT_HAND}")


def fetch_model(model: str, args: argparse.Namespace) -> None:
    """Download a known model, if that is wanted."""
    ask_to_fetch(known_model(model), args.yes)
    from sage.models.fetch import fetch
    from sage.models.loading import choose_device
    choose_device(args.device)  # before gigabytes are fetched for a device that is not there
    fetch(model, progress=not args.quiet)


def load(model: str, prediction_type: str | None, fetch: bool, args: argparse.Namespace,
         note: Callable[[str], None]) -> tuple[Any, list[str]]:
    """The model, downloaded first if it has to be; and what its loading warned of, which is noted too."""
    if fetch:
        fetch_model(model, args)
    console.begin(f"loading {model}", sys.stderr.isatty() and not args.quiet)
    import sage
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        loaded = sage.load_model(model, device=args.device, dtype=args.dtype, prediction_type=prediction_type,
                                 tokenizer=args.tokenizer, lora=args.lora)
    messages = [str(w.message) for w in caught if w.category is UserWarning]
    for message in messages:
        note(message)
    return loaded, messages


def carry_out(job: Job, args: argparse.Namespace, work: Callable[..., dict[str, Any]]) -> None:
    """Load the model of a planned job, let the work be done, and print what came of it if --json asks for it.

    Args:
        work: (job, model, progress, print_paths) -> the report, with its notes, which are said when all is done.
    """
    began, note = time.monotonic(), (lambda message: None) if args.quiet else console.note
    for message in job.notes:
        note(message)
    model, messages = load(job.model, job.prediction_type, job.fetch, args, note)
    with Progress(shown=sys.stderr.isatty() and not args.quiet) as progress:
        report = work(job, model, progress, print_paths=not args.json)
    for message in report["notes"]:  # once no bar is there for them to run into
        note(message)
    if args.json:
        report["notes"] = [*job.notes, *messages, *report["notes"]]
        print(json.dumps({**report, "seconds": round(time.monotonic() - began, 2), "versions": versions()}))
