"""Which LoRA files are merged into a model, and how strongly: as users name them and records hold them.  No torch."""

import hashlib
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sage.errors import ModelError, SettingsError
from sage.files import check_safetensors, open_plain

MOST_SCALE = 100.0


@dataclass(frozen=True)
class Lora:
    """One file, and the factor on what it changes.

    Attributes:
        sha256: of the file's bytes, which it is known by.
        path: where it was found; no record holds it.
    """

    name: str
    sha256: str
    scale: float = 1.0
    path: Path = field(default=Path(), compare=False)

    def as_dict(self) -> dict[str, Any]:
        """What records hold, plain JSON values."""
        return {key: value for key, value in asdict(self).items() if key != "path"}

    def __str__(self) -> str:
        return f"{self.name}:{self.scale:g}"


def read_lora(named: str | Path) -> Lora:
    """A LoRA as it is named: FILE or FILE:SCALE.

    Raises:
        SettingsError: a scale out of its range.
        ModelError: no such file, or no .safetensors file.
    """
    place, colon, scale = str(named).rpartition(":")
    try:
        factor = float(scale) if colon else 1.0
    except ValueError:  # the colon is of the path
        place, factor = str(named), 1.0
    path = Path(os.path.expanduser(place if colon else str(named)))
    if not math.isfinite(factor) or abs(factor) > MOST_SCALE:
        raise SettingsError(f"the scale of {path.name} is {factor:g}: must be between -{MOST_SCALE:g} and "
                            f"{MOST_SCALE:g}")
    if path.suffix.lower() != ".safetensors":
        raise ModelError(f"{path} is no .safetensors file: other kinds of LoRA can run programs, and are not read")
    check_safetensors(path, ModelError)
    with open_plain(path, ModelError) as file:
        return Lora(path.name, hashlib.file_digest(file, "sha256").hexdigest(), factor, path)


def read_loras(named: "str | Path | Iterable[str | Path | Lora] | None") -> tuple[Lora, ...]:
    """Several, in their order; one; or none.  As `read_lora`; those that are read already are taken as they are."""
    if named is None:
        return ()
    return tuple(one if isinstance(one, Lora) else read_lora(one)
                 for one in ([named] if isinstance(named, str | Path) else named))


def are_loras(value: Any) -> bool:
    """Whether a value in a record is what `Lora.as_dict` gives, of each of some."""
    return isinstance(value, list) and all(
        isinstance(one, dict) and one.keys() == {"name", "sha256", "scale"} and isinstance(one["name"], str)
        and isinstance(one["sha256"], str) and type(one["scale"]) in (int, float) and abs(one["scale"]) <= MOST_SCALE
        for one in value)


def check_same(record: Mapping[str, Any], given: Iterable[Lora], where: str) -> tuple[str, ...]:
    """What to say where an edit is made again with other files than its own; nothing where they are the same.

    Args:
        record: that of the edit.
        where: the picture that holds it.
    Raises:
        SettingsError: it was made with some, and none are given: no file that a picture names is ever opened.
    """
    had, now = [Lora(**one) for one in record.get("lora", [])], list(given)
    if had and not now:
        flags = " ".join(f"--lora {lora}" for lora in had)
        names = " and ".join(lora.name[:60] for lora in had)
        raise SettingsError(f"{where} was made with {names}: give the same again "
                            f"({flags[:200]})")
    if had == now:
        return ()
    return (f"{where} was made with {', '.join(map(str, had))[:120] or 'no LoRA'}, and this edit is with "
            f"{', '.join(map(str, now))}" + (": files of the same name, and others" if
                                             list(map(str, had)) == list(map(str, now)) else ""),)
