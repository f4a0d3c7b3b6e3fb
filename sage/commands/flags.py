"""The flags of every command that works with a method: the model, the method, and each of its settings.  No tensors."""

import argparse
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import Field
from typing import Any

from sage.auto import AUTO, auto_of, record_of, recorded
from sage.errors import SageError, SettingsError
from sage.method import DEFAULTS, Method, able, method
from sage.models.known import KNOWN, find_model
from sage.pictures.metadata import PREDICTIONS, read_record
from sage.prompts.phrases import read_factors, read_phrases
from sage.settings import Factors, Phrases, Settings, annotations
from sage.trajectory.label import flag, read_label

DEFAULT_MODEL = "sd-1.4"
DTYPES = ("float32", "float16", "bfloat16")
BASES = ("method", "published", "config_from", "trajectory")  # whose settings an edit starts from
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
    add("--published", action="store_true", help="start from the settings that the method's original code has for this")
    add("--truncate", action="store_true", help="cut prompts that are too long for the model")
    add("--json", action="store_true", help=f"one JSON object on stdout: {reported}")
    add("--yes", action="store_true", help="download a model that is not here without asking")
    add("--quiet", action="store_true", help="no progress, no notes")


def with_recorded(argv: Sequence[str]) -> list[str]:
    """A command line, with `--method auto` in an edit that names no method where one is recorded for its model.

    One with settings that the usual method alone has means that one.

    Raises:
        ModelError: the record is damaged.
    """
    argv, given = list(argv), _telling(argv)
    if argv[:1] != ["edit"] or given is None or any(vars(given)[name] for name in BASES):
        return argv
    try:
        name, path = find_model(given.model or DEFAULT_MODEL)
    except SageError:  # told in its place
        return argv
    values = record_of(path)
    if not values:
        return argv
    usual, taken = (set(map(flag, found.Settings.names()))
                    for found in (method(DEFAULTS["edit"]), recorded(values, name).as_method()))
    words = {word.partition("=")[0] for word in argv}
    return argv if words & (usual - taken) else ["edit", "--method", AUTO, *argv[1:]]


def _telling(argv: Sequence[str]) -> argparse.Namespace | None:
    """What of a command line tells its method; None where a flag has nothing behind it, which the real parser says."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in ("--method", "--config-from", "--trajectory", "--model"):
        finder.add_argument(name)
    finder.add_argument("--published", action="store_true")
    try:
        return finder.parse_known_args(list(argv))[0]
    except argparse.ArgumentError:
        return None


def named_method(argv: Sequence[str]) -> Method:
    """The method that a command line names, or an earlier edit or trajectory in it: it says which flags there are.

    Raises:
        SettingsError: no such method.
    """
    default = DEFAULTS.get(argv[0] if argv else "", DEFAULTS["edit"])
    given = _telling(argv)
    if given is None:
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
        default: the command whose default method is shown, and whose published settings are meant; default: of the
            task.
        but: settings whose flags the command has for something else too.
    """
    unread = chosen.of_pictures if task == "generate" else ()
    parser.set_defaults(method=chosen.where, task=default or task, **chosen.variant)
    usual = DEFAULTS[default or task]
    parser.add_argument_group("method").add_argument(
        "--method", default=argparse.SUPPRESS, metavar="NAME",
        help=f"{', '.join(able(task))}, or path/to/file.py:Class; with sage edit also {AUTO}, for what is recorded for "
             f"the model; the settings below are those of {chosen.name} (sage methods) "
             f"[{usual}; of sage edit {AUTO} where there is a record]")
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
        return read  # which the parser of all commands has words for

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


def given_for_all(args: argparse.Namespace) -> dict[str, Any]:
    """The same for edits by several methods: without what only the name of the first, such as p2p+direct, stands for.

    Raises:
        SettingsError: one out of its range.
    """
    variant = method(args.method).variant
    return {name: value for name, value in given_settings(args).items() if variant.get(name) != value}


def published(args: argparse.Namespace) -> Settings | None:
    """The settings that the method's original code has for what the command does, if they were asked for.

    Raises:
        SettingsError: nobody knows them.
    """
    return method(args.method).as_published(args.task) if args.published else None
