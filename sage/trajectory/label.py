"""What the file of a trajectory says about itself, checked as a stranger's word.  Imports no torch."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors import SafetensorError, safe_open

from sage import pictures
from sage.commands.flags import flag
from sage.config import INVERSION_FIELDS, EditConfig
from sage.errors import PromptError, SettingsError
from sage.files import parse_json, unwritable
from sage.pictures.metadata import PREDICTIONS
from sage.prompts.tokens import Prompt, check_text

KEY, VERSION = "sage_trajectory", 1
MAX_HEADER = 2**23  # bytes; 50 steps of Stable Diffusion take a fiftieth
MAX_PICTURES, MAX_TOKENS, MAX_LATENTS, MAX_NOTES = 256, 1000, 1001, 20


@dataclass(frozen=True)
class Label:
    """What a trajectory is of, and what it was made with.

    Attributes:
        model: its name, for people; `fingerprint` tells which it is.
        prediction_type: where the user overrode the checkpoint's own word.
        truncate: whether prompts could be cut.
        pictures, picture_size: as in `Trajectory`.
        name: of the picture's file, for people.
        channels_last: of each of the latents, whether they lie in memory with their channels last.
        notes: what was done to make it fit into memory.
        made: device, dtype and versions.
        crc32: of all tensors, in the order of their names.
    """

    model: str
    fingerprint: str
    prediction_type: str | None
    source: tuple[Prompt, ...]
    truncate: bool
    config: EditConfig
    pictures: tuple[str, ...]
    picture_size: tuple[int, int]
    name: str
    channels_last: tuple[bool, ...]
    notes: tuple[str, ...]
    made: dict[str, Any]
    crc32: int

    def text(self) -> str:
        """As it is stored."""
        values = vars(self) | {"version": VERSION, "config": self.config.as_dict(), "source": [
            vars(prompt) for prompt in self.source]}
        return json.dumps(values)

    def settings(self) -> dict[str, Any]:
        """What an edit can start from, by the names that the settings record of an edit has."""
        return {"source": self.source[0].text, "model": self.model, "config": self.config.as_dict(),
                "prediction_type": self.prediction_type, "truncate": self.truncate, "made": self.made}

    def facts(self, path: Path) -> dict[str, Any]:
        """What `sage info` tells, as JSON values."""
        width, height = self.picture_size
        return {"trajectory": str(path), "bytes": path.stat().st_size, "picture": self.name,
                "picture size": f"{width} x {height}", "pictures": len(self.pictures),
                **self.settings(), "model fingerprint": self.fingerprint}


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


def read_label(path: str | Path) -> Label:
    """What a trajectory says about itself; its tensors are not read.

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
    if (version := values.get("version")) != VERSION:
        raise SettingsError(f"{path} is a trajectory of kind {str(version)[:20]}, which this version of SAGE does not "
                            "know: invert again")
    if wrong := [name for name, fits in FITS.items() if name not in values or not fits(values[name])]:
        raise SettingsError(f"{path}: what the trajectory says about itself is damaged ({', '.join(wrong)})")
    try:
        config = EditConfig.from_dict(values["config"])
    except SettingsError as error:
        raise SettingsError(f"{path}: the settings in the trajectory are damaged: {error}") from error
    source = tuple(Prompt(prompt["text"], tuple(prompt["ids"])) for prompt in values["source"])
    if len(source) != len(values["pictures"]) or config.steps + 1 != len(values["channels_last"]):
        raise SettingsError(f"{path}: what the trajectory says about itself does not agree: invert again")
    tuples = {name: tuple(values[name]) for name in ("pictures", "picture_size", "channels_last", "notes")}
    return Label(**{name: values[name] for name in FITS} | tuples | {"config": config, "source": source})


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
    fixed = (*INVERSION_FIELDS, "seed") if label.config.encode == "sample" else INVERSION_FIELDS
    for name in fixed:
        made = getattr(label.config, name)
        if name in changes and changes[name] != made:
            raise SettingsError(f"{flag(name)} {changes[name]} contradicts {path}, which was made with {name}={made}: "
                                "leave it out, or invert again")


def _said(path: Path) -> str | None:
    """The text that a trajectory carries, None if the file is whole but carries none."""
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "is no plain file" if path.exists() else "does not exist"
        raise SettingsError(f"{path} {kind}: give a file that `sage invert` wrote")
    try:
        with path.open("rb") as start:
            header = int.from_bytes(start.read(8), "little")
        if MAX_HEADER < header < path.stat().st_size:
            raise SettingsError(f"{path} lists its tensors in more than {MAX_HEADER // 2**20} MB and was not read")
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


FITS: dict[str, Callable[[Any], bool]] = {
    "model": _text, "fingerprint": _digest, "prediction_type": lambda value: value in (None, *PREDICTIONS),
    "source": lambda value: _list(value, _prompt, MAX_PICTURES) and value != [],
    "truncate": lambda value: isinstance(value, bool),
    "config": lambda value: isinstance(value, dict),
    "pictures": lambda value: _list(value, _digest, MAX_PICTURES),
    "picture_size": _sides, "name": _text,
    "channels_last": lambda value: _list(value, lambda last: isinstance(last, bool), MAX_LATENTS),
    "notes": lambda value: _list(value, _text, MAX_NOTES),
    "made": lambda value: isinstance(value, dict),
    "crc32": lambda value: _whole(value, 0, 2**32 - 1)}
