"""What is done to need less memory.  Imports no torch."""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from sage.errors import SettingsError


@dataclass(frozen=True)
class Savings:
    """What is done to need less memory; each costs some time, and tiles change the picture a little.

    Attributes:
        references: recorded attention lies on the host, and comes to the device a step at a time.
        text: the text encoder stays on the host, in float32.
        tiles: the autoencoder works at a tile at a time.
    """

    references: bool = False
    text: bool = False
    tiles: bool = False

    def __str__(self) -> str:
        said = {"references": "recorded attention is kept on the host", "text": "the text encoder works on the host",
                "tiles": "the autoencoder works in tiles, which changes the picture a little"}
        return "; ".join(words for name, words in said.items() if getattr(self, name))

    def next(self, device: str) -> "Savings | None":
        """The next rung down; None at the last.  On a device of type "cpu" all is on the host already."""
        for name in ("references", "text", "tiles"):
            if not getattr(self, name) and (name == "tiles" or device != "cpu"):
                return replace(self, **{name: True})
        return None

    def as_dict(self) -> dict[str, bool]:
        """Plain JSON values by name."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Savings":
        """From `as_dict`; SettingsError for anything else."""
        names = [f.name for f in fields(cls)]
        if wrong := [name for name, value in values.items() if name not in names or not isinstance(value, bool)]:
            raise SettingsError(f"savings: {str(wrong[0])[:40]!r} is none: there are {', '.join(names)}, true or false")
        return cls(**values)
