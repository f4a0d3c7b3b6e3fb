"""EditConfig <-> the values of a form, one a field, in the order of the fields."""

from collections.abc import Sequence
from dataclasses import Field, fields
from typing import Any

from sage.config import EditConfig, Phrases
from sage.errors import SettingsError
from sage.prompts.phrases import read_factors, read_phrases
from sage.studio.words import factors_text, phrases_text

FIELDS: tuple[Field, ...] = fields(EditConfig)
NAMES = tuple(f.name for f in FIELDS)


def kind(f: Field) -> str:
    """How a field is given: "choice", "number", "whole", "phrases", "factors", "digits" or "perhaps".

    Digits are text: a seed has more of them than a browser's numbers.  So is "perhaps" a number, which a browser would
    take for 0 where there is none.
    """
    annotation = EditConfig.__annotations__[f.name]
    if f.metadata["choices"]:
        return "choice"
    if annotation == Phrases:
        return "phrases"
    if f.name == "reweight":
        return "factors"
    if f.metadata["high"] > 2**53 and annotation is int:
        return "digits"
    if annotation == int | None:
        return "perhaps"
    return "number" if annotation is float else "whole"


def values(config: EditConfig) -> list[Any]:
    """What the form shows of a configuration; `config` takes it back without loss."""
    shown = {"phrases": phrases_text, "factors": factors_text, "digits": str,
             "perhaps": lambda value: "" if value is None else str(value)}
    return [shown.get(kind(f), lambda value: value)(getattr(config, f.name)) for f in FIELDS]


def config(given: Sequence[Any]) -> EditConfig:
    """The configuration that a form shows.

    Raises:
        SettingsError: a value that is no setting, by the field's name.
    """
    if len(given) != len(FIELDS):
        raise SettingsError(f"{len(given)} settings were sent, and there are {len(FIELDS)}")
    return EditConfig(**{f.name: _read(f, value) for f, value in zip(FIELDS, given, strict=True)})


def _read(f: Field, value: Any) -> Any:
    how = kind(f)
    if how in ("phrases", "factors", "digits", "perhaps") and not isinstance(value, str):
        raise SettingsError(f"{f.name} must be text")
    if how == "perhaps" and not value.strip():
        return None
    if how == "phrases":
        return read_phrases(value.strip())
    if how == "factors":
        return read_factors(value.strip() or "none")
    if how in ("digits", "perhaps"):
        if not value.strip().isdecimal():
            raise SettingsError(f"{f.name} is {value[:40]!r}: must be a whole number")
        return int(value.strip()[:40])
    if value is None:
        raise SettingsError(f"{f.name} is empty: give a number, or take back the model's own settings")
    return value
