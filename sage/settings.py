"""Settings: one flat frozen dataclass a method, composed of groups that methods share.  Imports no torch.

A field carries its own help, choices and range.  The flags of the command line, the columns of a table, the form of the
studio and the settings in a picture are made from these fields; nobody lists them a second time.

    @frozen
    class Settings(Solver, Guidance):
        '''Injection.'''
        cross_fraction: float = setting(0.4, "share of the steps with the source's cross-attention", low=0, high=1)
"""

import dataclasses
import math
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self, TypeVar, get_type_hints

from sage.errors import SettingsError

AUTO: Literal["auto"] = "auto"
Phrases = Literal["auto"] | tuple[str, str] | None
Factors = Mapping[str, float]
T = TypeVar("T")


class Span(NamedTuple):
    """Numbers worth trying, from `low` to `high`; evenly, or with `log` by equal factors."""

    low: float
    high: float
    log: bool = False

    def at(self, share: float) -> float:
        """The number a share of the way along, 0 to 1, to three digits."""
        value = self.low * (self.high / self.low) ** share if self.log else self.low + share * (self.high - self.low)
        return float(f"{value:.3g}")

    def share(self, value: float) -> float:
        """How far along a number is, at most 1 and at least 0."""
        if self.log:
            value, low, high = (math.log(max(v, self.low)) for v in (value, self.low, self.high))
        else:
            low, high = self.low, self.high
        return min(max((value - low) / (high - low), 0.0), 1.0)


Searched = Span | tuple[Any, ...]


def setting(default: Any, help: str, *choices: str, low: float = -math.inf, high: float = math.inf,
            search: Searched = ()) -> Any:
    """A field that carries its own documentation, its choices and its range.

    Args:
        search: what a search for good settings tries: a `Span`, or some values; nothing for what it leaves alone.
    """
    value = {"default_factory": dict, "hash": False} if default == {} else {"default": default}
    return dataclasses.field(metadata={"help": help, "choices": choices, "low": low, "high": high, "search": search},
                             **value)


def frozen(cls: type[T]) -> type[T]:
    """The class as a frozen dataclass."""
    return dataclasses.dataclass(frozen=True)(cls)


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of a method; a group of them where methods share it, its heading the docstring's first sentence.

    Attributes:
        fixes: names of the class's own settings that an inversion depends on: an edit that starts from a trajectory may
            differ from it in all others.
        free: names of settings whose phrases need not stand in any prompt.
        regional: names of the class's own settings that say nothing unless something is moved.
        tried: what is worth trying of settings that are off by themselves.

    Raises:
        SettingsError: a value of the wrong type or out of its range, named with what is allowed.
    """

    fixes: ClassVar[frozenset[str]] = frozenset()
    free: ClassVar[frozenset[str]] = frozenset()
    regional: ClassVar[frozenset[str]] = frozenset()
    tried: ClassVar[Mapping[str, Span]] = MappingProxyType({})

    if TYPE_CHECKING:  # what __post_init__ checks by the annotations
        def __init__(self, **values: Any) -> None: ...

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            object.__setattr__(self, f.name, _checked(f, annotations(type(self))[f.name], getattr(self, f.name)))

    @classmethod
    def groups(cls) -> dict[str, tuple[dataclasses.Field[Any], ...]]:
        """The fields under their headings, in the order in which the class names its groups, its own before theirs."""
        own = {f.name: f for f in dataclasses.fields(cls)}
        found: dict[str, tuple[dataclasses.Field[Any], ...]] = {}
        for group in cls.__mro__:
            if members := tuple(own.pop(name) for name in vars(group).get("__annotations__", {}) if name in own):
                heading = (group.__doc__ or "").partition(".")[0].lower()
                found[heading] = (*found.get(heading, ()), *members)
        return found

    @classmethod
    def fields(cls) -> tuple[dataclasses.Field[Any], ...]:
        """Every field, in the order of `groups`."""
        return tuple(f for members in cls.groups().values() for f in members)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Every field's name, in the order of `groups`."""
        return tuple(f.name for f in cls.fields())

    def but(self, **changes: Any) -> Self:
        """These settings with some changed; SettingsError for one that does not exist."""
        return dataclasses.replace(self, **self._known(changes))

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values by name; `from_dict` takes them back."""
        return {name: _plain(getattr(self, name)) for name in self.names()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From `as_dict`, or from anything a stranger wrote: unknown names and wrong values are a SettingsError."""
        return cls(**cls._known(dict(values)))

    def wordless(self) -> Self:
        """These settings with no phrase of any prompt in them."""
        kinds = annotations(type(self))
        return self.but(**{name: None for name in self.names() if kinds[name] == Phrases},
                        **{name: {} for name in self.names() if kinds[name] == Factors})

    def fixed(self) -> dict[str, Any]:
        """The settings that an inversion depends on, as plain values."""
        fixed = {name for group in type(self).__mro__ for name in vars(group).get("fixes", ())}
        return {name: _plain(getattr(self, name)) for name in self.names() if name in fixed}

    @classmethod
    def searched(cls, regions: bool = True) -> dict[str, Searched]:
        """What a search tries of each setting that is searched, by name.

        Args:
            regions: those too that say nothing unless something is moved.
        """
        left_out = set() if regions else {name for group in cls.__mro__ for name in vars(group).get("regional", ())}
        return {f.name: f.metadata["search"] for f in cls.fields() if f.metadata["search"] and f.name not in left_out}

    @classmethod
    def default(cls, name: str) -> Any:
        """The default of a setting, as a plain value."""
        return _plain(cls.__dataclass_fields__[name].default)

    @classmethod
    def _known(cls, values: dict[str, Any]) -> dict[str, Any]:
        names = cls.names()
        for name in values:
            if name not in names:
                raise SettingsError(f"there is no setting {str(name)[:40]!r}: the settings are {', '.join(names)}")
        return values


def annotations(cls: type[Settings]) -> dict[str, Any]:
    """The types of a class's fields by their names."""
    return _hints(cls)  # type: ignore[arg-type]  # which takes the class for one of its objects


_hints = cache(get_type_hints)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value


def _checked(f: dataclasses.Field[Any], kind: Any, value: Any) -> Any:
    """`value` in its field's type, or SettingsError."""
    def fail(expected: str) -> SettingsError:
        shown = str(value)[:60] if isinstance(value, int | float) else repr(str(value)[:60])
        return SettingsError(f"{f.name} is {shown}: must be {expected}")

    if kind == Phrases:
        if value is None or value == AUTO:
            return value
        if isinstance(value, (tuple, list)) and len(value) == 2 and all(isinstance(v, str) for v in value):
            return tuple(value)
        raise fail("'auto', none, or a pair of phrases (source, target)")
    if kind == Factors:
        low, most, high = max(f.metadata["low"], -1000), 1000, f.metadata["high"]
        if not isinstance(value, Mapping) or not all(
                isinstance(k, str) and isinstance(v, (int, float)) and not isinstance(v, bool) and low <= v <= most
                for k, v in value.items()):
            raise fail(f"phrases with factors from {low:g} to {most}")
        if above := next(((k, v) for k, v in value.items() if v > high), None):
            raise SettingsError(f"{f.name} is {above[1]:g} for {above[0]!r}: must be at most {high:g}")
        return {k: float(v) for k, v in value.items()}
    if f.metadata["choices"]:
        if value not in f.metadata["choices"]:
            raise fail(f"one of {', '.join(f.metadata['choices'])}")
        return value
    if kind is bool:
        if not isinstance(value, bool):
            raise fail("true or false")
        return value
    if kind is str:
        if not isinstance(value, str) or len(value) > 1000:
            raise fail("a text")
        return value
    if value is None and kind == int | None:
        return None
    whole, low, high = kind in (int, int | None), f.metadata["low"], f.metadata["high"]
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise fail("a number") from None
    if isinstance(value, (bool, str)) or not math.isfinite(number) or (whole and number != int(number)):
        raise fail("a whole number" if whole else "a finite number")
    if not low <= number <= high:
        upper = "" if high == math.inf else f" and at most {high:g}"
        raise fail(f"at least {low:g}{upper}")
    return int(value) if whole else number


def seed_of(settings: Settings) -> int:
    """What its random numbers are drawn from; 0 for settings without a seed."""
    return getattr(settings, "seed", 0)


def share_of(fraction: float, steps: int) -> int:
    """How many steps a fraction of them begins: 0.55 of 100 is 55, though the product is a little above it."""
    return math.ceil(round(fraction * steps, 9))


def as_begun(fraction: float, steps: int) -> int:
    """How many steps a strength leaves by the arithmetic of diffusers, where it does not round: 0.56 of 50 is 29."""
    return steps - int(max(steps - min(steps * fraction, steps), 0))


# ---- groups that methods share


@frozen
class Solver(Settings):
    """Solver."""

    fixes = frozenset({"steps", "spacing"})

    steps: int = setting(50, "steps of the inversion, and of the sampling", low=1, high=1000)
    spacing: str = setting("leading", "how the steps are spread over the noise levels", "leading", "trailing",
                           "linspace")


@frozen
class Stochastic(Solver):
    """Solver."""

    eta: float = setting(0.0, "fresh noise in each sampling step: 0 for none, which is DDIM; 1 for as much as DDPM",
                         low=0, high=1)


@frozen
class PartWay(Solver):
    """Solver."""

    fixes = frozenset({"strength"})

    strength: float = setting(1.0, "share of the way to noise that the picture is taken: 0 leaves it as it is", low=0,
                              high=1, search=Span(0.3, 1.0))

    @property
    def taken(self) -> int:
        """How many of the steps are taken, each way."""
        return share_of(self.strength, self.steps)


@frozen
class Guidance(Settings):
    """Guidance."""

    guidance_scale: float = setting(7.5, "w: how strongly the target prompt is followed; 1 follows it plainly", low=0,
                                    high=100, search=Span(1, 8, log=True))


@frozen
class FlowGuidance(Guidance):
    """Guidance."""

    fixes = frozenset({"guidance_by"})

    guidance_by: str = setting("passes", "guidance on a rectified flow that does not take it as an input, as FLUX.1 "
                               "schnell: by two passes; or none, as in the original code", "passes", "input")


@frozen
class Output(Settings):
    """Output."""

    quantise: str = setting("round", "8-bit output: rounded, or truncated as in the released code", "round", "truncate")
    seed: int = setting(0, "seed of everything that is drawn at random", low=0, high=2**63 - 1)


@frozen
class Cached(Settings):
    """Cache."""

    cache: str = setting("none", "what of the network is computed at every step: everything, or with eedit (docs/"
                         "eedit.md) the most of it only every few steps", "none", "eedit")
    inv_skip: int = setting(4, "cache: the network is asked at every so many steps on the way to noise, and its "
                            "predictions are continued between them", low=1, high=1000)
    fresh_threshold: int = setting(4, "cache: every so many steps of the way back are computed whole", low=1, high=1000)
    fresh_ratio: float = setting(0.1, "cache: share of the places whose feed-forward is computed in the steps between",
                                 low=0, high=1)
    cascade_num: int = setting(3, "cache: rings of places, from the mask outwards, that are drawn more often, the "
                               "mask's own being the first; 0 for none", low=0, high=100)
    soft_fresh_weight: float = setting(0.25, "cache: how much more often places are drawn that have not been for long",
                                       low=0, high=100)
    tailing_step: int = setting(1, "cache: steps, from the last, that are computed whole", low=0, high=1000)

    def fixed(self) -> dict[str, Any]:
        """With how the way to noise is skipped."""
        return super().fixed() | {"cache": f"{self.cache}, every {self.stride}" if self.stride > 1 else "none"}

    @property
    def stride(self) -> int:
        """Every how many steps of the way to noise the network is asked."""
        return 1 if self.cache == "none" else self.inv_skip

    def whole(self, step: int, steps: int) -> bool:
        """Whether step `step` of a way back of `steps` is computed whole."""
        return (self.cache == "none" or step % self.fresh_threshold == 0 or step >= steps - self.tailing_step)


@frozen
class Picture(Output, Cached):
    """Picture."""

    fixes = frozenset({"encode", "size", "fit"})

    encode: str = setting("mean", "latents of the picture: the mean of the autoencoder's posterior, or a sample",
                          "mean", "sample")
    size: int | None = setting(None, "side in pixels of the square whose area is worked at; default: the model's own",
                               low=8, high=4096)
    fit: str = setting("keep", "keep the picture's aspect; squash it to a square as the released code does; or crop it "
                       "to its middle square, which the result then is", "keep", "squash", "crop")


@frozen
class Reweighting(Settings):
    """Attention."""

    reweight: Factors = setting({}, "factor on the cross-attention of phrases of the target prompt: WORD:FACTOR,...; "
                                "below 0 it is turned round")

    @property
    def whole_words(self) -> bool:
        """Whether phrases with factors are words split at spaces, of which an absent one counts for nothing."""
        return False


@frozen
class Words(Reweighting):
    """Attention."""

    cross_level: int = setting(2, "halvings of the latents at which cross-attention maps are edited, and read for the "
                               "blending mask", low=0, high=8)


@frozen
class Blending(Settings):
    """Blending."""

    blend: Phrases = setting(AUTO, "phrases that mark where the picture may change: auto (what differs between the "
                             "prompts), none, or SOURCE,TARGET")
    mask_from: str = setting("attention", "what marks where the picture may change: attention to the phrases, or where "
                             "the predictions under the two prompts differ", "attention", "difference",
                             search=("attention", "difference"))
    blend_fraction: float = setting(0.8, "share of the steps, from the first, with blending", low=0, high=1)
    blend_threshold: float = setting(0.3, "attention or difference, relative to its maximum, above which a place is "
                                     "in the mask", low=0, high=1, search=Span(0.1, 0.6))
    blend_match: str = setting("phrase", "blending phrases are found as tokens and must be there; or as whole words "
                               "split at spaces, where an absent one counts for nothing", "phrase", "words")

    def blends_at(self, step: int) -> bool:
        """Whether sampling step `step` is followed by blending: the first `blend_fraction` of the steps."""
        return step < share_of(self.blend_fraction, self.steps)  # type: ignore[attr-defined]


@frozen
class Preserved(Settings):
    """Preservation."""

    # Searched where a name such as ddpm+sage adds it, and begins in the middle; by itself it is off.
    tried = MappingProxyType({"preserve_scale": Span(2000, 100_000, log=True)})

    preserve_scale: float = setting(0.0, "step size of the gradient that draws the edit's self-attention maps to those "
                                    "of the source branch, as SAGE's does (there reconstruction_scale x loss_gain); 0 "
                                    "for none", low=0)
    preserve_limit: float = setting(0.01, "largest change of the latents by it in one step, root mean square; 0 for no "
                                    "limit", low=0)
    preserve_level: int = setting(1, "halvings of the latents at which the maps are compared", low=0, high=8)
    preserve_fraction: float = setting(0.8, "share of the steps taken, from the first, with it", low=0, high=1)


@frozen
class Retry(Settings):
    """Retry."""

    retries: int = setting(0, "how often a result that looks oversaturated or drifted is made again, each time with "
                           "gentler settings", low=0, high=10)
    most_spread: float = setting(1.5, "oversaturated: deviation of the latents, relative to the source's, above this",
                                 low=0)
    most_drift: float = setting(1.0, "drifted: change of the latents where the prompts do not differ, in deviations of "
                                "the source, above this", low=0)
