"""Settings <-> what a form shows of them, made from the fields that the settings of any method declare.

What is shown is text, but for switches: a browser's numbers have fewer digits than ours, and know no "none".
"""

import math
from collections.abc import Mapping
from dataclasses import Field
from typing import Any

from sage.errors import SettingsError
from sage.method import method_of
from sage.prompts.phrases import read_factors, read_phrases
from sage.settings import Factors, Phrases, Settings, Span, annotations
from sage.studio.words import factors_text, phrases_text

LONGEST = 4096
OFTEN = ("steps", "seed")  # settings shown first, beside those that a search tries


def kind(cls: type[Settings], f: Field) -> str:
    """How a setting is given: "choice", "switch", "phrases", "factors", "text", "whole", "perhaps" or "number"."""
    annotation = annotations(cls)[f.name]
    if f.metadata["choices"]:
        return "choice"
    named = {bool: "switch", str: "text", int: "whole", float: "number"}
    found = {Phrases: "phrases", Factors: "factors", int | None: "perhaps"}
    return named.get(annotation) or next(word for known, word in found.items() if annotation == known)


def shown(settings: Settings, task: str = "edit") -> dict[str, Any]:
    """The form of a method's settings, as JSON values.

    Args:
        task: "edit" or "generate", where settings that are of pictures alone are not shown.
    Returns:
        method; groups: of each its heading and its fields, with name, kind, help, range, choices, and whether it is
        one of the few that are changed often; values: by name, as `read` takes them back without loss; strength and
        keep: the sliders of these names, None where the method has none; presets: by name values to change, without
        those that would be what is recommended; random: whether another seed is another result; reads: what else of a
        request the method looks at; live: whether its edits are quick enough to follow what is typed.
    """
    found, cls = method_of(settings), type(settings)
    unread = found.of_pictures if task == "generate" else ()
    groups = [[heading.capitalize(), fields] for heading, members in cls.groups().items()
              if (fields := [_field(cls, f) for f in members if f.name not in unread])]
    values = {f.name: _text(kind(cls, f), getattr(settings, f.name)) for f in cls.fields()}
    spans = {role: (name, span_of(cls, name)) for role in SLIDERS if (name := getattr(found, role)) in cls.names()}
    sliders = {role: {"name": name, **span._asdict()} for role, (name, span) in spans.items() if span}
    presets = {title: {name: _text("number", _nearer(span, getattr(settings, name), to[role]))
                       for role, (name, span) in spans.items() if span} for title, to in PRESETS.items()}
    presets = {title: to for title, to in presets.items()  # what is at an end of its range goes one way alone
               if title == "recommended" or to != presets["recommended"]}
    return {"method": found.name, "groups": groups, "values": values, **{role: sliders.get(role) for role in SLIDERS},
            "presets": presets if sliders else {}, "random": found.random(settings), "reads": sorted(found.reads),
            "live": found.live}


SLIDERS = ("strength", "keep")
# Where each slider goes: towards an end, 0 or 1, by a share of the way there.
PRESETS: dict[str, dict[str, tuple[float, float]]] = {
    "gentle": {"strength": (0, 0.5), "keep": (1, 0.5)},
    "recommended": {"strength": (0, 0), "keep": (0, 0)},
    "bold": {"strength": (1, 0.5), "keep": (0, 0.5)}}


def span_of(cls: type[Settings], name: str) -> Span | None:
    """The numbers a slider of a setting goes through: those worth a search, or its range; None without an end."""
    f = next(f for f in cls.fields() if f.name == name)
    if isinstance(span := f.metadata["search"] or cls.tried.get(name), Span):
        return span
    low, high = f.metadata["low"], f.metadata["high"]
    return Span(low, high) if math.isfinite(low) and math.isfinite(high) else None


def _nearer(span: Span, value: float, to: tuple[float, float]) -> float:
    """A number some way from where it is to an end of the span; itself where that is no way."""
    end, share = to
    here = span.share(value)
    return span.at(here + share * (end - here)) if share and here != end else value


def _field(cls: type[Settings], f: Field) -> dict[str, Any]:
    return {"name": f.name, "kind": kind(cls, f), "help": sentence(f.metadata["help"]),
            "choices": list(f.metadata["choices"]), "range": limits(f.metadata["low"], f.metadata["high"]),
            "often": bool(f.metadata["search"]) or f.name in OFTEN}


def limits(low: float, high: float) -> str:
    """A range for people; "" for none."""
    if high == math.inf or high > 2**53:
        return "" if low == -math.inf else f"{low:g} or more"
    return f"{low:g} to {high:g}"


def sentence(text: str) -> str:
    """A help text as a sentence; the w of the papers stays a w."""
    return f"{text}." if text[1] == ":" else f"{text[0].upper()}{text[1:]}."


def _text(how: str, value: Any) -> Any:
    if how == "phrases":
        return phrases_text(value)
    if how == "factors":
        return factors_text(value)
    if how == "switch" or isinstance(value, str):
        return value
    return "" if value is None else repr(value).removesuffix(".0")


def read(cls: type[Settings], values: Any) -> Settings:
    """The settings that a form shows.

    Raises:
        SettingsError: a value that is none, by the setting's name.
    """
    values = values if isinstance(values, Mapping) else {}
    if missing := [name for name in cls.names() if name not in values]:
        raise SettingsError(f"{missing[0]} was not sent: load the page again")
    return cls.from_dict({**values, **read_some(cls, {name: values[name] for name in cls.names()})})


def read_some(cls: type[Settings], values: Mapping[str, Any]) -> dict[str, Any]:
    """Some of the values that a form shows, as those of settings; not yet held to their ranges.

    Raises:
        SettingsError: a value that is none, by the setting's name.
    """
    return {f.name: _read(f.name, kind(cls, f), values[f.name]) for f in cls.fields() if f.name in values}


def _read(name: str, how: str, value: Any) -> Any:
    if how == "switch":
        return value
    if not isinstance(value, str):
        raise SettingsError(f"{name} must be text")
    text = value[:LONGEST].strip()
    if how in ("phrases", "factors"):
        try:
            return (read_phrases if how == "phrases" else read_factors)(text or "none")
        except SettingsError as error:
            raise SettingsError(f"{name}: {error}") from error
    if how in ("choice", "text"):
        return text
    if how == "perhaps" and not text:
        return None
    return _number(name, text[:40], how)


def _number(name: str, text: str, how: str) -> float | int:
    whole = how in ("whole", "perhaps")
    try:
        return int(text) if whole else float(text)
    except ValueError:
        raise SettingsError(f"{name} is {text!r}: must be a {'whole ' if whole else ''}number") from None
