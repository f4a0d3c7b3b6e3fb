"""What the file of a trajectory says about itself, checked as a stranger's word.  Imports no torch."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors import SafetensorError, safe_open

from sage import pictures
from sage.errors import PromptError, SettingsError
from sage.files import check_safetensors, parse_json, unwritable
from sage.method import method
from sage.pictures.metadata import PREDICTIONS
from sage.prompts.tokens import Prompt, check_text
from sage.settings import Settings

KEY, VERSION = "sage_trajectory", 2
MAX_PICTURES, MAX_TOKENS, MAX_LATENTS, MAX_NOTES, MAX_NAMES, MAX_WANTS = 256, 1000, 1001, 20, 100_000, 16


@dataclass(frozen=True)
class Label:
    """What a trajectory is of, and what it was made with.

    Attributes:
        version: of the file; 1 is read as it was written, by SAGE alone, and `kind`, `wants`, `orders` and `same` are
            then worked out when its tensors are read.
        kind: of the trajectory, by its name in `sage.trajectory.kinds`.
        model: its name, for people; `fingerprint` tells which it is.
        prediction_type: where the user overrode the checkpoint's own word.
        inversion, method, settings, source, target: as in `Origin`.
        truncate: whether prompts could be cut.
        pictures, picture_size: as in `Origin`.
        name: of the picture's file, for people.
        steps: of the way to noise.
        wants: the attention in it: kind, level, blocks, place and steps of each `Wanted`.
        orders: by the name of a tensor, its dimensions in the order in which they lie in memory, where that is another
            than their own; sums over them are the same to the last bit only in that order.
        same: names of tensors that are not stored, being another that is.
        notes: what was done to make it fit into memory.
        made: device, dtype and versions.
        crc32: of all tensors, in the order of their names.
    """

    version: int
    kind: str
    model: str
    fingerprint: str
    prediction_type: str | None
    inversion: str
    method: str
    settings: Settings
    source: tuple[Prompt, ...]
    target: tuple[Prompt, ...] | None
    truncate: bool
    pictures: tuple[str, ...]
    picture_size: tuple[int, int]
    name: str
    steps: int
    wants: tuple[dict[str, Any], ...]
    orders: dict[str, list[int]]
    same: dict[str, str]
    notes: tuple[str, ...]
    made: dict[str, Any]
    crc32: int

    def text(self) -> str:
        """As it is stored."""
        prompts = {name: None if of is None else [vars(prompt) for prompt in of]
                   for name, of in (("source", self.source), ("target", self.target))}
        return json.dumps(vars(self) | prompts | {"settings": self.settings.as_dict()})

    def record(self) -> dict[str, Any]:
        """What an edit can start from, by the names that the settings record of an edit has."""
        return {"source": self.source[0].text, "model": self.model, "method": self.method,
                "settings": self.settings.as_dict(), "prediction_type": self.prediction_type, "truncate": self.truncate,
                "made": self.made}

    def facts(self, path: Path) -> dict[str, Any]:
        """What `sage info` tells, as JSON values."""
        width, height = self.picture_size
        return {"trajectory": str(path), "bytes": path.stat().st_size, "picture": self.name,
                "picture size": f"{width} x {height}", "pictures": len(self.pictures), "inversion": self.inversion,
                **self.record(), "model fingerprint": self.fingerprint}


def check_place(path: Path) -> None:
    """Raise SettingsError now for where no trajectory could be written after minutes of work."""
    if path.suffix != ".safetensors":
        raise SettingsError(f"{path}: trajectories are written as .safetensors")
    if why := unwritable(path):
        raise SettingsError(why)


def is_trajectory(path: Path) -> bool:
    """Whether a file says that it is a trajectory."""
    try:
        return _said(path) is not None
    except SettingsError:
        return False


def read_label(path: str | Path, trusted: str = "") -> Label:
    """What a trajectory says about itself; its tensors are not read.

    Args:
        trusted: path/to/file.py:Class of the user's own method, the only one of the kind that a file may name.
    Raises:
        SettingsError: missing, cut short, damaged, no trajectory, or of another version of SAGE.
    """
    path = Path(path)
    text = _said(path)
    if text is None:
        raise SettingsError(f"{path} is no trajectory: `sage invert` writes one")
    try:
        values = parse_json(text)
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise SettingsError(f"{path}: what the trajectory says about itself is damaged: invert again")
    version = values.get("version")
    if version == 1:
        values = _upgraded(values)
    elif version != VERSION:
        raise SettingsError(f"{path} is a trajectory of kind {str(version)[:20]}, which this version of SAGE does not "
                            "know: invert again")
    if wrong := [name for name, fits in FITS.items() if name not in values or not fits(values[name])]:
        raise SettingsError(f"{path}: what the trajectory says about itself is damaged ({', '.join(wrong)})")
    if ".py:" in values["method"] and values["method"] != trusted:  # a stranger's file shall not say which code is run
        raise SettingsError(f"{path} was made by a method of someone's own, {values['method'][:60]}: give it with "
                            "--method")
    try:
        settings = method(values["method"]).Settings.from_dict(values["settings"])
    except SettingsError as error:
        raise SettingsError(f"{path}: the settings in the trajectory are damaged: {error}") from error
    prompts = {name: None if values[name] is None else tuple(Prompt(p["text"], tuple(p["ids"])) for p in values[name])
               for name in ("source", "target")}
    of = len(values["pictures"])
    beyond = [k for want in values["wants"] for k in want["steps"] if k >= values["steps"]]
    if beyond or {len(found) for found in prompts.values() if found is not None} != {of}:
        raise SettingsError(f"{path}: what the trajectory says about itself does not agree: invert again")
    tuples = {name: tuple(values[name]) for name in ("pictures", "picture_size", "notes", "wants")}
    return Label(**{"version": version, "settings": settings, **{n: values[n] for n in FITS if n != "settings"},
                    **tuples, **prompts})


def _upgraded(values: dict[str, Any]) -> dict[str, Any]:
    """What a file of version 1 says, with the names of version 2; damage is left for the checks to find."""
    layouts = values.get("channels_last")
    layouts = layouts if isinstance(layouts, list) and len(layouts) <= MAX_LATENTS else []
    settings = values.get("config")
    reweighted = isinstance(settings, dict) and settings.get("reweight_passes") == "all" and settings.get("reweight")
    orders = {f"latents.{k}": [0, 2, 3, 1] for k, last in enumerate(layouts) if last is True}
    return {"kind": "recorded", "method": "sage", "settings": settings, "target": None, "wants": [], "same": {},
            "inversion": "ddim, reweighted" if reweighted else "ddim", "steps": len(layouts) - 1, "orders": orders,
            **{name: value for name, value in values.items() if name not in ("config", "channels_last", "version")}}


def check_label(label: Label, path: str | Path, image: Image.Image, source: str, changes: dict[str, Any]) -> None:
    """Whether edits of a picture can start from a trajectory, as far as that can be told without the model.

    Args:
        image: as `open_picture` gives it.
        source: the source prompt of the edits.
        changes: the settings that were given as flags.
    Raises:
        SettingsError: a trajectory of another picture or prompt, or a flag that it contradicts.
    """
    if len(label.pictures) != 1:
        raise SettingsError(f"{path} is the trajectory of {len(label.pictures)} pictures: one at a time is edited here")
    if label.pictures[0] != pictures.digest(image):
        raise SettingsError(f"{path} is the trajectory of another picture ({label.name}): invert this one")
    if label.source[0].text != " ".join(source.split()):
        raise SettingsError(f"--source contradicts {path}, which is of {label.source[0].text!r}: leave it out, or "
                            "invert again")
    fixed = dict(label.settings.fixed())
    if method(label.method).draws(label.settings):
        fixed["seed"] = label.settings.as_dict()["seed"]
    for name, made in fixed.items():
        if name in changes and changes[name] != made:
            raise SettingsError(f"{flag(name)} {changes[name]} contradicts {path}, which was made with {name}={made}: "
                                "leave it out, or invert again")


def flag(name: str) -> str:
    """The flag of a setting."""
    return "--" + name.replace("_", "-")


def _said(path: Path) -> str | None:
    """The text that a trajectory carries, None if the file is whole but carries none."""
    check_safetensors(path, SettingsError, "give a file that `sage invert` wrote")
    try:
        with safe_open(path, framework="np") as file:
            return (file.metadata() or {}).get(KEY)
    except (SafetensorError, OSError) as error:
        reason = str(error).removeprefix("Error while deserializing header: ")
        raise SettingsError(f"{path} is cut short, or no trajectory at all ({reason})") from error


def _whole(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _digest(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


def _list(value: Any, fits: Callable[[Any], bool], most: int) -> bool:
    return isinstance(value, list) and len(value) <= most and all(map(fits, value))


def _text(value: Any) -> bool:
    try:
        return isinstance(value, str) and check_text(value) == value
    except PromptError:
        return False


def _prompt(value: Any) -> bool:
    return isinstance(value, dict) and _text(value.get("text")) and _list(
        value.get("ids"), lambda token: _whole(token, 0, 2**31), MAX_TOKENS)


def _sides(value: Any) -> bool:
    return (_list(value, lambda side: _whole(side, 1, pictures.MAX_SIDE), 2) and len(value) == 2
            and value[0] * value[1] <= pictures.MAX_PIXELS)


def _wanted(value: Any) -> bool:
    return (isinstance(value, dict) and value.keys() == {"kind", "level", "blocks", "place", "steps"}
            and value["kind"] in ("self", "cross") and (value["level"] is None or _whole(value["level"], 0, 8))
            and isinstance(value["place"], str) and len(value["place"]) < 20
            and _list(value["blocks"], lambda share: isinstance(share, (int, float)) and 0 <= share <= 1, 2)
            and len(value["blocks"]) == 2 and _list(value["steps"], lambda k: _whole(k, 0, MAX_LATENTS), MAX_LATENTS))


def _named(value: Any, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and len(value) <= MAX_NAMES and all(
        isinstance(name, str) and len(name) < 100 and fits(of) for name, of in value.items())


FITS: dict[str, Callable[[Any], bool]] = {
    "kind": lambda value: _text(value) and len(value) < 40,
    "model": _text, "fingerprint": _digest, "prediction_type": lambda value: value in (None, *PREDICTIONS),
    "inversion": _text, "method": _text, "settings": lambda value: isinstance(value, dict),
    "source": lambda value: _list(value, _prompt, MAX_PICTURES) and value != [],
    "target": lambda value: value is None or _list(value, _prompt, MAX_PICTURES),
    "truncate": lambda value: isinstance(value, bool),
    "pictures": lambda value: _list(value, _digest, MAX_PICTURES),
    "picture_size": _sides, "name": _text,
    "steps": lambda value: _whole(value, 0, MAX_LATENTS - 1),
    "wants": lambda value: _list(value, _wanted, MAX_WANTS),
    "orders": lambda value: _named(value, lambda order: _list(order, lambda i: _whole(i, 0, 7), 8)
                                   and sorted(order) == list(range(len(order)))),
    "same": lambda value: _named(value, lambda name: isinstance(name, str)),
    "notes": lambda value: _list(value, _text, MAX_NOTES),
    "made": lambda value: isinstance(value, dict),
    "crc32": lambda value: _whole(value, 0, 2**32 - 1)}
