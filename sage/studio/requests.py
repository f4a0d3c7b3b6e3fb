"""What visitors ask for, and how much they may."""

from dataclasses import dataclass
from typing import Any

from sage.method import method_of
from sage.pictures.regions import Move
from sage.settings import Settings

UPLOAD = 64_000_000  # bytes of a picture file


@dataclass(frozen=True)
class Limits:
    """What one visitor may ask of the machine.

    Attributes:
        pixels: of a picture; a larger one is scaled down.
        side: largest `size` to work at, in pixels; None for twice the model's own.
        edits: remembered per visitor.
        visits: remembered at a time; who came back least recently is forgotten first.
        memory: bytes of inversions kept for further edits, and of pictures.
        waiting: jobs that may wait.
        patience: seconds after which a job that nobody asks about is ended; None for never.
    """

    pixels: int = 16_000_000
    side: int | None = None
    steps: int = 100
    retries: int = 3
    edits: int = 24
    visits: int = 64
    memory: int = 1 << 30
    waiting: int = 16
    patience: float | None = None


@dataclass(frozen=True)
class EditRequest:
    """One edit as a visitor wants it.

    Attributes:
        config: settings, whose class says the method.
        picture: the key of one of the visitor's pictures; "" for the one they brought last.
        mask: the key of the picture that says where the edit may be; "" for everywhere.
        paste: whether outside the mask the picture's own pixels are put back.
        moves: what is to be put elsewhere in it.
        live: whether it is made while something is changed: it takes the place of the visitor's live edits before.
    """

    model: str
    source: str
    target: str
    config: Settings
    truncate: bool = False
    picture: str = ""
    mask: str = ""
    paste: bool = False
    moves: tuple[Move, ...] = ()
    live: bool = False

    def is_of(self, record: dict[str, Any]) -> bool:
        """Whether a record is of just this edit, of whatever picture."""
        return (self.model, self.source, self.target, self.truncate, method_of(self.config).where,
                self.config.as_dict()) == tuple(record[name] for name in (
                    "model", "source", "target", "truncate", "method", "settings"))


@dataclass(frozen=True)
class MakeRequest:
    """One picture from text as a visitor wants it; sides in pixels, None for the model's own."""

    model: str
    prompt: str
    negative: str
    width: int | None
    height: int | None
    config: Settings
    truncate: bool = False
