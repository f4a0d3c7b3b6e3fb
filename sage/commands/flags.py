"""The flags of every command that edits: the model, and each field of EditConfig.  No tensors.

Torch is imported when a model is fetched or loaded, and not before.
"""

import argparse
import warnings
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from sage.config import EditConfig, Phrases
from sage.errors import SettingsError
from sage.models.known import KNOWN, find_model, installed, known_model
from sage.pictures.metadata import PREDICTIONS
from sage.prompts.phrases import read_factors, read_phrases

DEFAULT_MODEL = "sd-1.4"
DTYPES = ("float32", "float16", "bfloat16")


def add_model(parser: argparse.ArgumentParser) -> None:
    """What the model is, and on what it runs."""
    add = parser.add_argument_group("model").add_argument
    add("--model", help=f"a name ({', '.join(KNOWN)}), a diffusers folder or a .safetensors file [{DEFAULT_MODEL}]")
    add("--device", help="cpu, cuda, cuda:1, ... [cuda where there is one]")
    add("--dtype", choices=DTYPES, help="precision [float16 on cuda, else float32]")
    add("--prediction-type", choices=PREDICTIONS, help="where the checkpoint's own word is missing or wrong")
    add("--tokenizer", metavar="FOLDER", help="vocab.json and merges.txt, for a single-file model")


def add_ways(parser: argparse.ArgumentParser, reported: str) -> None:
    """How to go about it, and what to say of it.

    Args:
        reported: what the JSON object tells.
    """
    add = parser.add_argument
    add("--published", action="store_true", help="start from the settings of the released SAGE code")
    add("--truncate", action="store_true", help="cut prompts that are too long for the model")
    add("--json", action="store_true", help=f"one JSON object on stdout: {reported}")
    add("--quiet", action="store_true", help="no progress, no notes")


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Every field of EditConfig, absent from the parsed arguments unless given."""
    groups: dict[str, Any] = {}
    for f in fields(EditConfig):
        name = f.metadata["group"]
        if name not in groups:
            groups[name] = parser.add_argument_group(name)
        _add_setting(groups[name], f)


def _add_setting(group: Any, f: Any) -> None:
    kind, choices = EditConfig.__annotations__[f.name], f.metadata["choices"]
    metavar = {int: "N", int | None: "N", float: "X", str: None}.get(kind, "PHRASES")
    default = {} if kind not in (int, int | None, float, str, Phrases) else f.default
    shown = "" if default in (None, {}) else f" [{default}]"
    options = {"choices": choices} if choices else {"metavar": metavar}
    group.add_argument(flag(f.name), dest=f.name, type=_for_argparse(reader(f.name)), default=argparse.SUPPRESS,
                       help=(f.metadata["help"] + shown).replace("%", "%%"), **options)


def flag(field: str) -> str:
    """The flag of a setting."""
    return "--" + field.replace("_", "-")


def reader(field: str) -> Callable[[str], Any]:
    """What makes a setting's value of a text; ValueError or SettingsError for a text that is none."""
    kind = EditConfig.__annotations__[field]
    return {int: int, int | None: int, float: float, str: str, Phrases: read_phrases}.get(kind, read_factors)


def _for_argparse(read: Callable[[str], Any]) -> Callable[[str], Any]:
    if read not in (read_phrases, read_factors):
        return read  # a type whose name argparse puts into its own message

    def parse(text: str) -> Any:
        try:
            return read(text)
        except SettingsError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


def given_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given as flags, by field name.

    Raises:
        SettingsError: one out of its range.
    """
    changes = {f.name: vars(args)[f.name] for f in fields(EditConfig) if f.name in vars(args)}
    EditConfig().but(**changes)
    return changes


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


def fetch_model(model: str, args: argparse.Namespace) -> None:
    """Download a known model."""
    from sage.models.fetch import fetch
    from sage.models.loading import choose_device
    choose_device(args.device)  # before gigabytes are fetched for a device that is not there
    fetch(model, progress=not args.quiet)


def load(model: str, prediction_type: str | None, args: argparse.Namespace) -> tuple[Any, list[str]]:
    """The model, and what its loading warned of."""
    import sage
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        loaded = sage.load_model(model, device=args.device, dtype=args.dtype, prediction_type=prediction_type,
                                 tokenizer=args.tokenizer)
    return loaded, [str(w.message) for w in caught if w.category is UserWarning]
