"""`auto`: the method and the settings that were recorded for a model, in auto.json beside its settings.json.

    {"method": "p2p+direct", "settings": {"steps": 20, ...}, "why": {...}}

`sage bench BENCHMARK --experiment rivals` writes such a file where a method is ahead of what is recommended for sage.
Without one, auto is sage as it is recommended; for a student of few steps, which sage is not for, turbo-ddpm.  Imports
no torch.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sage.errors import ModelError, SageError
from sage.files import parse_json, read_plain
from sage.method import DEFAULTS, METHODS, Method, check_task, method
from sage.models.known import find_model, installed, known_model, made_for_few, named_for_few

AUTO, FILE = "auto", "auto.json"
MOST = 2**20  # bytes
OF_STUDENTS: Mapping[str, Any] = {"method": "turbo-ddpm", "settings": {}}  # of those that record nothing


@dataclass(frozen=True)
class Recorded:
    """What auto takes.

    Attributes:
        method: by name, such as "p2p+direct".
        settings: as plain values; nothing for what is recommended for it.
        note: which it is and why, for people.
    """

    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    def as_method(self) -> Method[Any]:
        """The method, with these settings as what its name stands for."""
        found = method(self.method)
        made = type(found)()
        made.variant = {**found.variant, **self.settings}
        return made


def recorded(values: Mapping[str, Any] | None, model: str) -> Recorded:
    """What auto takes with a model.

    Args:
        values: what its auto.json holds; None where it has none.
        model: what it is called.
    Raises:
        ModelError: another thing than a method that edits and its settings.
    """
    if values is None:
        usual = DEFAULTS["edit"]
        return Recorded(usual, note=f"auto takes {usual}: no other method is recorded for {model}")
    name, settings = values.get("method"), values.get("settings")
    # A model's word may choose among what is here, and run no file.
    if not isinstance(name, str) or name.partition("+")[0] not in METHODS or not isinstance(settings, dict):
        raise ModelError(f"{FILE} of {model} must have the name of a method and an object of settings")
    try:
        found = method(name)
        check_task(found, "edit")
        found.Settings.from_dict(settings)
    except SageError as error:
        raise ModelError(f"{FILE} of {model}: {error}") from error
    why = f": {model} is made for few steps" if values == OF_STUDENTS else f", as recorded for {model}"
    return Recorded(name, settings, f"auto takes {name}{why}")


def read_auto(folder: Path) -> dict[str, Any] | None:
    """What a model's folder records; None where it records nothing.

    Raises:
        ModelError: it cannot be read, or is no object.
    """
    path = folder / FILE
    if not os.path.lexists(path):
        return None
    raw = read_plain(path, ModelError, MOST)
    try:
        values = parse_json(raw.decode())
    except ValueError as error:
        raise ModelError(f"{path} is damaged: it is not JSON") from error
    if not isinstance(values, dict):
        raise ModelError(f"{path} must be an object with a method and settings")
    return values


def auto_of(model: str) -> Recorded:
    """What auto takes with a model that is not loaded, by its name, folder or file.

    Raises:
        ModelError: no such model, or a damaged record.
    """
    known = known_model(model)
    if known and known.repo and installed(known.name) is None:  # to be fetched, and then as it is
        return recorded(OF_STUDENTS if known.student else None, known.name)
    name, path = find_model(model)
    return recorded(record_of(path), name)


def record_of(path: Path) -> Mapping[str, Any] | None:
    """What is recorded for a model that lies at a path; None for nothing.

    Raises:
        ModelError: the record is damaged.
    """
    return (read_auto(path) if path.is_dir() else None) or (OF_STUDENTS if _is_student(path) else None)


def _is_student(path: Path) -> bool:
    """Whether a folder or file is of a network for few steps; a damaged schedule is told when it is loaded."""
    if not path.is_dir():
        return named_for_few(path)
    try:
        c = parse_json(read_plain(path / "scheduler" / "scheduler_config.json", ModelError, MOST).decode())
        told = c.get("_class_name", ""), c.get("timestep_spacing", "leading"), c.get("rescale_betas_zero_snr", False)
        return made_for_few(*told)
    except (ModelError, ValueError, AttributeError):
        return False
