"""`sage invert`: a picture and its description -> a trajectory that edits start from."""

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from sage import pictures
from sage.commands.checks import OUT, as_taught_by, check_model, check_phrases, outputs
from sage.commands.flags import (
    DEFAULT_MODEL,
    add_method,
    add_model,
    add_ways,
    given_settings,
    published,
    typed,
)
from sage.commands.running import carry_out
from sage.display.progress import Progress
from sage.errors import SettingsError
from sage.files import named_after
from sage.method import Method, check_task, method
from sage.pictures.metadata import check_prompt
from sage.settings import Settings
from sage.trajectory.label import check_place, is_trajectory, read_label

EPILOG = """
examples:
  sage invert cat.jpg --source "a cat on a sofa" --model sd-1.5
  sage edit cat.jpg --trajectory out/cat-trajectory.safetensors --target "a dog on a sofa"
  sage edit cat.jpg --trajectory out/cat-trajectory.safetensors --target "a fox on a sofa" --guidance-scale 5
  sage info out/cat-trajectory.safetensors

Edits take the model, the source prompt and the settings from the trajectory, and other flags win; what the way to noise
depends on (--steps, --spacing, --grid, --encode, --size, --fit) stays as it is. Attention is recorded as far as these
settings have need of it: an edit that needs more, of another level or for more steps, says so.
"""


@dataclass(frozen=True)
class Job:
    """What one `sage invert` shall do, checked as far as it can be without the model; as that of `sage edit`."""

    image: Image.Image
    name: str
    source: str
    target: str | None
    model: str
    prediction_type: str | None
    method: Method
    base: Settings | None
    changes: dict[str, Any]
    truncate: bool
    fetch: bool
    out: Path
    notes: tuple[str, ...] = ()


def add_command(command: Callable[..., argparse.ArgumentParser], chosen: Method) -> None:
    """Add the command to those of `sage`.

    Args:
        command: (name, run, help, **options) -> the parser of a new command.
        chosen: whose settings are its flags.
    """
    parser = command("invert", run, "carry a picture to noise once, for many edits that then cost only their sampling",
                     usage="%(prog)s IMG --source PROMPT [FLAGS]", epilog=EPILOG)
    add = parser.add_argument
    add("picture", metavar="IMG", help="the picture to invert")
    add("--source", metavar="PROMPT", type=typed, help="what the picture shows")
    add("--target", metavar="PROMPT", type=typed,
        help="what it shall show: only for --reweight with --reweight-passes all, where the edit reaches into the "
             "inversion")
    add("--out", metavar="PATH", help="the .safetensors file to write, or a folder "
                                      f"[{OUT}/NAME-trajectory.safetensors, numbered if that exists]")
    add_ways(parser, "path, size, settings, notes, seconds, versions")
    add_model(parser)
    add_method(parser, chosen)


def run(args: argparse.Namespace) -> None:
    """Invert, write, and say where."""
    carry_out(plan(args), args, _invert)


def _invert(job: Job, model: Any, progress: Progress, print_paths: bool) -> dict[str, Any]:
    import sage
    from sage.editing import settings_for
    config = settings_for(model, job.base, job.method.where).but(**job.changes)
    trajectory = sage.invert(model, job.image, job.source, config, progress, job.target, job.truncate)
    sage.save_trajectory(trajectory, job.out, model, name=job.name, truncate=job.truncate,
                         prediction_type=job.prediction_type)
    if print_paths:
        progress.say(job.out)
    facts = read_label(job.out, job.method.where).facts(job.out)
    return {"out": str(job.out), "bytes": facts["bytes"], "settings": facts,
            "notes": [*trajectory.notes, f"{job.out} takes {facts['bytes'] / 1e6:.1f} MB"]}


def plan(args: argparse.Namespace) -> Job:
    """Check everything that was given, and decide where the trajectory goes.

    Raises:
        SageError: whatever is wrong with it.
    """
    changes, base, chosen = given_settings(args), published(args), method(args.method)
    check_task(chosen, "edit")
    config = (base or chosen.Settings()).but(**changes)
    source = check_prompt("source", args.source)
    target = None if args.target is None else check_prompt("target", args.target)
    model = args.model or DEFAULT_MODEL
    (source, *others), notes = as_taught_by(model, source, *([] if target is None else [target]))
    target = next(iter(others), None)
    check_phrases(source, others, config)
    if target is None and chosen.follows_target(config):
        raise SettingsError("--target is missing: with these settings the inversion depends on it")
    path = Path(args.picture)
    image = pictures.open_picture(path)
    fetch = check_model(model, image, (source, *others), changes, args.truncate, args.tokenizer)
    return Job(image, path.name, source, target, model, args.prediction_type, chosen, base, changes, args.truncate,
               fetch, _out(args.out, path), notes)


def _out(out: str | None, picture: Path) -> Path:
    """Where the trajectory goes: never over a file of another kind, which may be a model's weights."""
    [path] = outputs(out, named_after(picture.stem, "-trajectory.safetensors"), 1)
    check_place(path)
    if os.path.lexists(path) and not is_trajectory(path):
        raise SettingsError(f"{path} exists and is no trajectory: give another --out")
    return path
