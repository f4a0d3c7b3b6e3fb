"""The flags of every command that works with a method: the model, the method, and each of its settings.  No tensors.

Torch is imported when a model is fetched or loaded, and not before.
"""

import argparse
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import Field
from typing import Any

from sage.auto import AUTO, auto_of
from sage.display import console
from sage.display.progress import Progress
from sage.errors import ModelError, SageError, SettingsError
from sage.method import DEFAULTS, Method, able, method
from sage.models.known import AT_HAND, KNOWN, KnownModel, find_model, installed, known_model, weights_dir
from sage.pictures.metadata import PREDICTIONS, read_record, versions
from sage.prompts.phrases import read_factors, read_phrases
from sage.settings import Factors, Phrases, Settings, annotations
from sage.trajectory.label import flag, read_label

DEFAULT_MODEL = "sd-1.4"
DTYPES = ("float32", "float16", "bfloat16")
MASK = "mask_file"  # where the value of --mask is: a setting may be called mask too


def typed(text: str) -> str:
    """A prompt as it was typed, where the terminal speaks UTF-8 and the locale names another encoding.

    Python then reads each byte as a letter of that encoding, or as half a character that stands for it.
    """
    try:
        return os.fsencode(text).decode()
    except UnicodeError:  # it is of that encoding, or of none
        return text


def add_model(parser: argparse.ArgumentParser) -> None:
    """What the model is, and on what it runs."""
    add = parser.add_argument_group("model").add_argument
    add("--model", help=f"a name ({', '.join(KNOWN)}), a diffusers folder or a .safetensors file [{DEFAULT_MODEL}]")
    add("--device", help="cpu, cuda, cuda:1, ... [cuda where there is one]")
    add("--dtype", choices=DTYPES, help="precision [float16 on cuda, else float32]")
    add("--prediction-type", choices=PREDICTIONS, help="where the checkpoint's own word is missing or wrong")
    add("--lora", metavar="FILE[:SCALE]", action="append", help="merge a LoRA into the model; can be repeated")
    add("--tokenizer", metavar="FOLDER", help="for a single-file model: what has vocab.json and merges.txt, or the "
                                                 "text encoders of FLUX.1")


def add_ways(parser: argparse.ArgumentParser, reported: str) -> None:
    """How to go about it, and what to say of it.

    Args:
        reported: what the JSON object tells.
    """
    add = parser.add_argument
    add("--published", action="store_true", help="start from the settings of the method's original code")
    add("--truncate", action="store_true", help="cut prompts that are too long for the model")
    add("--json", action="store_true", help=f"one JSON object on stdout: {reported}")
    add("--yes", action="store_true", help="download a model that is not here without asking")
    add("--quiet", action="store_true", help="no progress, no notes")


def named_method(argv: Sequence[str]) -> Method:
    """The method that a command line names, or an earlier edit or trajectory in it: it says which flags there are.

    Raises:
        SettingsError: no such method.
    """
    default = DEFAULTS.get(argv[0] if argv else "", DEFAULTS["edit"])
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in ("--method", "--config-from", "--trajectory", "--model"):
        finder.add_argument(name)
    try:
        given = finder.parse_known_args(list(argv))[0]
    except argparse.ArgumentError:  # a flag with nothing behind it: the real parser says so
        return method(default)
    if given.method == AUTO and argv[0] == "edit":
        return auto_of(given.model or DEFAULT_MODEL).as_method()
    if given.method:
        return method(given.method)
    try:  # an earlier edit, or a trajectory, says which method it was made by
        if given.config_from:
            return method(read_record(given.config_from)["method"])
        if given.trajectory:
            return method(read_label(given.trajectory).method)
    except SageError:  # told in its place
        pass
    return method(default)


def add_method(parser: argparse.ArgumentParser, chosen: Method, task: str = "edit", default: str = "",
               but: Collection[str] = ()) -> None:
    """The method, and every one of its settings that plays a part, absent from the parsed arguments unless given.

    Args:
        task: "edit" or "generate".
        default: the command whose default method is shown; default: of the task.
        but: settings whose flags the command has for something else too.
    """
    unread = chosen.of_pictures if task == "generate" else ()
    parser.set_defaults(method=chosen.where, **chosen.variant)
    parser.add_argument_group("method").add_argument(
        "--method", default=argparse.SUPPRESS, metavar="NAME",
        help=f"{', '.join(able(task))}, or path/to/file.py:Class; with sage edit also {AUTO}, for what is recorded for "
             f"the model; the settings below are those of {chosen.name} "
             f"(sage methods) [{DEFAULTS[default or task]}]")
    for heading, members in chosen.Settings.groups().items():
        if read := [f for f in members if f.name not in unread and f.name not in but]:
            group = parser.add_argument_group(heading)
            for f in read:
                _add_setting(group, chosen.Settings, f)


def _add_setting(group: Any, owner: type[Settings], f: Field) -> None:
    kind, choices = annotations(owner)[f.name], f.metadata["choices"]
    metavar = {int: "N", int | None: "N", float: "X", str: "TEXT", bool: "yes|no"}.get(kind, "PHRASES")
    default = "" if kind == Factors else f.default
    shown = "" if default in (None, "") else f" [{default}]"
    options = {"choices": choices} if choices else {"metavar": metavar}
    group.add_argument(flag(f.name), dest=f.name, type=_for_argparse(reader(owner, f.name)), default=argparse.SUPPRESS,
                       help=(f.metadata["help"] + shown).replace("%", "%%"), **options)


def read_yes_no(text: str) -> bool:
    """`yes` or `no`, in any of their usual spellings; SettingsError for anything else."""
    known = {"yes": True, "true": True, "on": True, "1": True, "no": False, "false": False, "off": False, "0": False}
    if text.strip().lower() not in known:
        raise SettingsError(f"{text[:40]!r} must be yes or no")
    return known[text.strip().lower()]


def reader(owner: type[Settings], field: str) -> Callable[[str], Any]:
    """What makes a setting's value of a text; ValueError or SettingsError for a text that is none."""
    readers: dict[Any, Callable[[str], Any]] = {
        int: int, int | None: int, float: float, str: str, bool: read_yes_no, Phrases: read_phrases}
    return readers.get(annotations(owner)[field], read_factors)


def _for_argparse(read: Callable[[str], Any]) -> Callable[[str], Any]:
    if read in (int, float):
        return read  # a type whose name argparse puts into its own message

    def parse(text: str) -> Any:
        try:
            return read(typed(text))
        except SettingsError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


def given_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given as flags, by field name; a word behind --mask that is one is no file.

    Raises:
        SettingsError: one out of its range.
    """
    owner = method(args.method).Settings
    changes = {name: vars(args)[name] for name in owner.names() if name in vars(args)}
    words = next((f.metadata["choices"] for f in owner.fields() if f.name == "mask"), ())
    if vars(args).get(MASK) in words:
        changes["mask"], args.mask_file = args.mask_file, None
    owner().but(**changes)
    return changes


def model_of(old: dict[str, Any], where: str | None) -> str:
    """The model of an earlier picture, by name only: no path that stands in a picture is ever opened."""
    if not old:
        return DEFAULT_MODEL
    if old["model"] not in KNOWN:
        raise ModelError(f"{where} was made with a model of your own, {old['model']!r}: say where it is with --model")
    return old["model"]


def published(args: argparse.Namespace) -> Settings | None:
    """The settings of the method's original code, if they were asked for.

    Raises:
        SettingsError: nobody knows them.
    """
    return method(args.method).preset("published") if args.published else None


def must_fetch(model: str) -> bool:
    """Whether a model has to be downloaded first.

    Raises:
        ModelError: neither a known name nor there.
    """
    known = known_model(model)
    if known is not None and known.repo and installed(known.name) is None:
        return True
    find_model(model)
    return False


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


def load(model: str, prediction_type: str | None, args: argparse.Namespace) -> tuple[Any, list[str]]:
    """The model, and what its loading warned of."""
    console.begin(f"loading {model}", sys.stderr.isatty() and not args.quiet)
    import sage
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        loaded = sage.load_model(model, device=args.device, dtype=args.dtype, prediction_type=prediction_type,
                                 tokenizer=args.tokenizer, lora=args.lora)
    return loaded, [str(w.message) for w in caught if w.category is UserWarning]


def carry_out(job: Any, args: argparse.Namespace, work: Callable[..., dict[str, Any]]) -> None:
    """Load the model of a planned job, let the work be done, and print what came of it if --json asks for it.

    Args:
        job: has `notes`, `model`, `prediction_type`, and `fetch`, whether the model is to be downloaded.
        work: (job, model, progress, note, print_paths) -> the report, its notes among it.
    """
    began, note = time.monotonic(), (lambda message: None) if args.quiet else console.note
    for message in job.notes:
        note(message)
    if job.fetch:
        fetch_model(job.model, args)
    model, messages = load(job.model, job.prediction_type, args)
    for message in messages:
        note(message)
    with Progress(shown=sys.stderr.isatty() and not args.quiet) as progress:
        report = work(job, model, progress, note, print_paths=not args.json)
    if args.json:
        report["notes"] = [*job.notes, *messages, *report["notes"]]
        print(json.dumps({**report, "seconds": round(time.monotonic() - began, 2), "versions": versions()}))
