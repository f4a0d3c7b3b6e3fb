"""What a way to noise leaves behind: `Trajectory` and its kinds, typed values that say what they are of.

A method declares the attention that it wants heard (`Wanted`); that declaration alone says what is recorded, how much
memory it takes, what a file holds, and whether a trajectory serves an edit.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, ClassVar, NamedTuple, Self, TypeVar

import torch
from torch import Tensor

from sage.models.backbone import Text
from sage.models.memory import on_host
from sage.models.savings import Savings
from sage.models.sites import KeysValues, QueriesKeys, Site, Sites, Where
from sage.prompts.tokens import Prompt
from sage.settings import Settings

T = TypeVar("T")
Heard = tuple[tuple[QueriesKeys, ...] | None, ...]  # a tuple of sites for each inversion step, None where unwanted


@dataclass(frozen=True)
class Wanted:
    """Attention that a method wants heard on the way to noise.

    Attributes:
        where: at which sites.
        steps: at which inversion steps, 0 being the one that leaves the clean picture.
    """

    where: Where
    steps: frozenset[int]

    def covers(self, other: "Wanted") -> bool:
        """Whether what is heard for this one is enough for the other."""
        return self.where == other.where and self.steps >= other.steps


@dataclass(frozen=True)
class Origin:
    """What a trajectory is of, and what it was made with.

    Attributes:
        model: the fingerprint of the backbone.
        inversion: the name of the way to noise, such as "ddim"; methods that share a way share its trajectories.
        method: whose settings these are.
        source, target: the prompts, one a picture; a target only where the way to noise depends on it.
        pictures: what the pictures are known by, one each: `sage.pictures.digest`.
        picture_size: (width, height) of the picture as it was given.
    """

    model: str
    inversion: str
    method: str
    settings: Settings
    source: tuple[Prompt, ...]
    target: tuple[Prompt, ...] | None
    pictures: tuple[str, ...]
    picture_size: tuple[int, int]

    def only(self, rows: Sequence[int]) -> "Origin":
        """That of some of the pictures."""
        def of(values: tuple[T, ...]) -> tuple[T, ...]:
            return tuple(values[row] for row in rows)

        return replace(self, source=of(self.source), pictures=of(self.pictures),
                       target=None if self.target is None else of(self.target))


class Frame(NamedTuple):
    """The shapes that a trajectory of a model has."""

    batch: int
    latents: tuple[int, int, int]  # (C, h, w)
    text: Text  # of one prompt, (1, M, D) and (1, P)
    steps: int
    wants: tuple[Wanted, ...]
    sites: Sites

    def latent(self) -> Tensor:
        """Latents without numbers."""
        return torch.empty(self.batch, *self.latents, device="meta")

    def embedding(self) -> Text:
        """Embedded prompts without numbers."""
        return mapped(self.text, lambda name, t: torch.empty(self.batch, *t.shape[1:], device="meta"))

    def pair(self, site: Site) -> QueriesKeys:
        """Queries and keys of a site without numbers."""
        rows, columns = site.grid(*self.latents[1:])
        keys = rows * columns if site.kind == "self" else self.text.tokens.shape[1]
        return QueriesKeys(*(torch.empty(self.batch, site.heads, places, site.width, device="meta")
                             for places in (rows * columns, keys)))


@dataclass(frozen=True, eq=False)
class Trajectory:
    """The latents of a way to noise, which many edits can share.

    Attributes:
        latents: (B, C, h, w) float32 each, from the clean picture to the noisy end.
        notes: what was done to make it fit into memory.
        unlike: for each picture what is to be said of it where the model knows a small world and it is none of that, ""
            for nothing; None where nobody has looked yet, as after reading from a file.
    """

    kind: ClassVar[str] = "latents"
    origin: Origin
    latents: tuple[Tensor, ...]
    notes: tuple[str, ...] = ()
    unlike: tuple[str, ...] | None = None

    @property
    def noise(self) -> Tensor:
        """(B, C, h, w): the noisy end, where sampling starts."""
        return self.latents[-1]

    @property
    def retraced(self) -> tuple[Tensor, ...] | None:
        """(B, C, h, w) after each step of going back without an edit, where that is known; None where it is not."""
        return None

    @property
    def config(self) -> Settings:
        """The settings that it was made with."""
        return self.origin.settings

    @property
    def source(self) -> tuple[Prompt, ...]:
        """The source prompts, one a picture."""
        return self.origin.source

    @property
    def picture_size(self) -> tuple[int, int]:
        """(width, height) of the picture as it was given."""
        return self.origin.picture_size

    @property
    def wants(self) -> tuple[Wanted, ...]:
        """The attention that it holds."""
        return ()

    @property
    def nbytes(self) -> int:
        """What its tensors take, in bytes; what is there twice counts once."""
        return sum({t.data_ptr(): t.numel() * t.element_size() for _, t in named(self)}.values())

    def keep(self, savings: Savings) -> None:
        """Move what is recorded to where it shall lie: no copy, which would free nothing."""

    def only(self, rows: Sequence[int]) -> Self:
        """The trajectory of some of the pictures."""
        rows = list(rows)
        unlike = None if self.unlike is None else tuple(self.unlike[row] for row in rows)
        return replace(mapped(self, lambda name, t: t[rows]), origin=self.origin.only(rows), unlike=unlike)

    @classmethod
    def blank(cls, origin: Origin, frame: Frame) -> Self:
        """One of this kind with its shapes and no numbers, on the meta device."""
        return cls(origin=origin, **cls.shapes(frame))

    @classmethod
    def shapes(cls, frame: Frame) -> dict[str, Any]:
        """Fields of the kind by name, as `blank` has them."""
        return {"latents": tuple(frame.latent() for _ in range(frame.steps + 1))}


class Maps(NamedTuple):
    """What was heard at one inversion step, of each kind of attention."""

    self: tuple[QueriesKeys, ...] = ()
    cross: tuple[QueriesKeys, ...] = ()


@dataclass(frozen=True, eq=False)
class Recorded(Trajectory):
    """DDIM inversion with the attention that was wanted.

    Attributes:
        heard: for each thing wanted the queries and keys at its sites, a step at a time.
    """

    kind: ClassVar[str] = "recorded"
    wanted: tuple[Wanted, ...] = ()
    heard: tuple[Heard, ...] = ()

    @property
    def wants(self) -> tuple[Wanted, ...]:
        """The attention that it holds."""
        return self.wanted

    def of(self, wanted: Wanted) -> Heard:
        """What was heard of what covers `wanted`."""
        return next(heard for own, heard in zip(self.wanted, self.heard, strict=True) if own.covers(wanted))

    @property
    def maps(self) -> tuple[Maps, ...]:
        """Step by step what was heard of self- and of cross-attention."""
        def at(k: int, kind: str) -> tuple[QueriesKeys, ...]:
            return next((heard[k] or () for own, heard in zip(self.wanted, self.heard, strict=True)
                         if own.where.kind == kind and heard[k]), ())

        return tuple(Maps(at(k, "self"), at(k, "cross")) for k in range(len(self.latents) - 1))

    def keep(self, savings: Savings) -> None:
        """Move the attention to where it shall lie."""
        if savings.references:
            object.__setattr__(self, "heard", mapped(self.heard, lambda name, t: on_host(t)))

    @classmethod
    def shapes(cls, frame: Frame) -> dict[str, Any]:
        """With the attention that is wanted."""
        def steps(wanted: Wanted) -> Heard:
            sites = frame.sites.at(wanted.where)
            return tuple(tuple(map(frame.pair, sites)) if k in wanted.steps else None for k in range(frame.steps))

        return super().shapes(frame) | {"wanted": frame.wants, "heard": tuple(map(steps, frame.wants))}


@dataclass(frozen=True, eq=False)
class Lent(Recorded):
    """Of self-attention the keys and values were heard, for a way back that computes some of the places alone."""

    kind: ClassVar[str] = "lent"

    @classmethod
    def shapes(cls, frame: Frame) -> dict[str, Any]:
        """With keys and values in place of queries and keys."""
        found = super().shapes(frame)
        return found | {"heard": tuple(tuple(of and tuple(KeysValues(*pair) for pair in of) for of in heard)
                                       for heard in found["heard"])}


@dataclass(frozen=True, eq=False)
class NullText(Trajectory):
    """With an empty prompt fitted to each sampling step, in the order of sampling (Mokady et al. 2023)."""

    kind: ClassVar[str] = "null-text"
    empties: tuple[Text, ...] = ()

    @classmethod
    def shapes(cls, frame: Frame) -> dict[str, Any]:
        """With an empty prompt a step."""
        return super().shapes(frame) | {"empties": tuple(frame.embedding() for _ in range(frame.steps))}


@dataclass(frozen=True, eq=False)
class Pair(Trajectory):
    """Of a way to noise that two states lead back along, exactly (Wallace et al. 2023, Zhang et al. 2023).

    Attributes:
        states: (B, C, h, w) float64 each, at the noisy end.
    """

    kind: ClassVar[str] = "pair"
    states: tuple[Tensor, ...] = ()

    @classmethod
    def shapes(cls, frame: Frame) -> dict[str, Any]:
        """With both states."""
        return super().shapes(frame) | {"states": (frame.latent(), frame.latent())}


@dataclass(frozen=True, eq=False)
class Settled(Trajectory):
    """Of a way to noise whose every step is the solution of an equation, found in rounds.

    Attributes:
        residuals: (B,) float32, a step each: what the last round changed, relative to the latents.
    """

    kind: ClassVar[str] = "settled"
    residuals: tuple[Tensor, ...] = ()

    @classmethod
    def shapes(cls, frame: Frame) -> dict[str, Any]:
        """With a residual a step."""
        return super().shapes(frame) | {"residuals": tuple(torch.empty(frame.batch, device="meta")
                                                           for _ in range(frame.steps))}


@dataclass(frozen=True, eq=False)
class Noises(Trajectory):
    """With the noise that each sampling step needs to meet the recorded latents (Huberman-Spiegelglas et al. 2024).

    It is in the order of sampling.
    """

    kind: ClassVar[str] = "noises"
    noises: tuple[Tensor, ...] = ()

    @property
    def retraced(self) -> tuple[Tensor, ...]:
        """With its own noises sampling meets its latents again."""
        return self.latents[-2::-1]

    @classmethod
    def shapes(cls, frame: Frame) -> dict[str, Any]:
        """With a noise a step."""
        return super().shapes(frame) | {"noises": tuple(frame.latent() for _ in range(frame.steps))}


@dataclass(frozen=True, eq=False)
class Reconstructed(Noises):
    """Of a few-step generator: the noise of each step, and what the picture is after it (Wu et al. 2408.08332, alg. 1).

    The latents are those that the generator was given.

    Attributes:
        reconstructions: (B, C, h, w) clean latents after each step, in the order of sampling.
    """

    kind: ClassVar[str] = "reconstructed"
    reconstructions: tuple[Tensor, ...] = ()

    @property
    def retraced(self) -> tuple[Tensor, ...]:
        """What the generator made of each step's noise."""
        return self.reconstructions

    @classmethod
    def shapes(cls, frame: Frame) -> dict[str, Any]:
        """With a reconstruction a step."""
        return super().shapes(frame) | {"reconstructions": tuple(frame.latent() for _ in range(frame.steps))}


KINDS: dict[str, type[Trajectory]] = {
    kind.kind: kind for kind in (Trajectory, Recorded, Lent, NullText, Pair, Settled, Noises, Reconstructed)}


# ---- every tensor of a value by its name


def parts(value: Any) -> Iterator[tuple[str, Any]]:
    """What a value that holds tensors consists of, by name."""
    if is_dataclass(value) and not isinstance(value, type):
        yield from ((f.name, getattr(value, f.name)) for f in fields(value))
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        yield from zip(value._fields, value, strict=True)
    elif isinstance(value, tuple):
        yield from ((str(i), part) for i, part in enumerate(value))
    elif isinstance(value, Mapping):
        yield from ((str(name), part) for name, part in value.items())


HOLDS = (Trajectory, Text, tuple)  # settings and origins hold no tensors


def named(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a value with its name, such as "heard.0.17.3.queries"."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, HOLDS):
        for own, part in parts(value):
            yield from named(part, f"{name}.{own}" if name else own)


def mapped(value: T, change: Callable[[str, Tensor], Tensor], name: str = "") -> T:
    """The value with each tensor replaced by `change(name, tensor)`."""
    if isinstance(value, Tensor):
        return change(name, value)  # type: ignore[return-value]
    if not isinstance(value, HOLDS):
        return value
    made = {own: mapped(part, change, f"{name}.{own}" if name else own) for own, part in parts(value)}
    if is_dataclass(value):
        return replace(value, **made)  # type: ignore[type-var]
    return type(value)(**made) if hasattr(value, "_fields") else tuple(made.values())  # type: ignore[return-value]
