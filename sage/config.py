"""`EditConfig`: every setting of the method and its default, once.

The help of the command line, the settings stored in a picture and the checks on both are made from these fields.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from sage.errors import SettingsError

AUTO = "auto"
Phrases = str | tuple[str, str] | None

# What an inversion depends on: an edit may differ from its trajectory's configuration in everything else.
INVERSION_FIELDS = ("steps", "spacing", "grid", "encode", "size", "fit")


def setting(default: Any, help: str, group: str, choices: tuple[str, ...] = (), low: float = -math.inf,
            high: float = math.inf) -> Any:
    """A dataclass field that carries its own documentation and range."""
    value = {"default_factory": dict, "hash": False} if default == {} else {"default": default}
    return field(metadata={"help": help, "group": group, "choices": choices, "low": low, "high": high}, **value)


@dataclass(frozen=True)
class EditConfig:
    """The settings of an edit.  The defaults are those of SAGE for Stable Diffusion 1.x at 512 pixels.

    At guided step i the latents lose reconstruction_scale x loss_gain x decay(i) x the gradient of the mean loss,
    whatever the device and precision.

    Raises:
        SettingsError: a value of the wrong type or out of its range, named with what is allowed.
    """

    steps: int = setting(50, "steps of the inversion, and of the sampling", "solver", low=1, high=1000)
    spacing: str = setting("leading", "how the steps are spread over the noise levels", "solver",
                           ("leading", "trailing", "linspace"))
    guidance_scale: float = setting(7.5, "w: how strongly the target prompt replaces the source prompt; 1 follows it "
                                    "plainly", "guidance", low=0, high=100)
    reconstruction: str = setting("self", "what keeps the unmentioned: gradient of the loss on self-attention maps, on "
                                  "cross-attention maps, on the predicted clean latents; replacement of self-attention "
                                  "maps; or nothing", "reconstruction", ("self", "cross", "latent", "replace", "none"))
    reconstruction_scale: float = setting(200.0, "step size of the reconstruction gradient at every guided step: with "
                                          "more steps take less", "reconstruction", low=0)
    loss_gain: float = setting(500.0, "factor on the loss; with reconstruction_scale the whole step size",
                               "reconstruction", low=0)
    step_limit: float = setting(0.0, "largest change of the latents by the gradient in one step, root mean square; 0 "
                                "for none", "reconstruction", low=0)
    map_loss: str = setting("l1", "distance between current and recorded maps", "reconstruction", ("l1", "l2"))
    self_level: int = setting(1, "halvings of the latents at which self-attention maps are compared", "reconstruction",
                              low=0, high=8)
    pairing: str = setting("transition", "the recorded maps a sampling step is held to: those of the inversion step "
                           "that it undoes, or those of the level it starts from", "reconstruction",
                           ("transition", "level"))
    spare: str = setting("none", "places left out of the loss on self-attention maps: none, those that look at words "
                         "which the target prompt drops, or at any that it changes", "reconstruction",
                         ("none", "removed", "edited"))
    guided_steps: int = setting(41, "steps, from the first, that are guided by reconstruction", "reconstruction",
                                low=0, high=1000)
    decay: str = setting("linear", "weight of guided step i of N: linear 1 - i/N, none 1, released 1 - i/(N + 1)",
                         "reconstruction", ("linear", "none", "released"))
    cross_level: int = setting(2, "halvings of the latents at which cross-attention maps are replaced, and read for "
                               "the blending mask", "attention", low=0, high=8)
    replace: Phrases = setting(AUTO, "phrases whose cross-attention is carried over: auto (what differs between the "
                               "prompts), none, or SOURCE,TARGET", "attention")
    replace_fraction: float = setting(0.1, "share of the steps, from the first, with replacement", "attention",
                                      low=0, high=1)
    reweight: Mapping[str, float] = setting({}, "factor on the cross-attention of phrases of the target prompt: "
                                            "WORD:FACTOR,...", "attention")
    blend: Phrases = setting(AUTO, "phrases that mark where the picture may change: auto (what differs between the "
                             "prompts), none, or SOURCE,TARGET", "blending")
    mask_from: str = setting("attention", "what marks where the picture may change: attention to the phrases, or where "
                             "the predictions under the two prompts differ", "blending", ("attention", "difference"))
    blend_fraction: float = setting(0.8, "share of the steps, from the first, with blending", "blending", low=0, high=1)
    blend_threshold: float = setting(0.3, "attention or difference, relative to its maximum, above which a place is "
                                     "in the mask", "blending", low=0, high=1)
    retries: int = setting(0, "how often a result that looks oversaturated or drifted is made again, each time with "
                           "half of the guidance_scale above 1 and of the reconstruction_scale", "retry", low=0,
                           high=10)
    most_spread: float = setting(1.5, "oversaturated: deviation of the latents, relative to the source's, above this",
                                 "retry", low=0)
    most_drift: float = setting(1.0, "drifted: change of the latents where the prompts do not differ, in deviations of "
                                "the source, above this", "retry", low=0)
    encode: str = setting("mean", "latents of the picture: the mean of the autoencoder's posterior, or a sample",
                          "picture", ("mean", "sample"))
    noise_fraction: float = setting(0.0, "fresh noise mixed into the inverted latents", "picture", low=0, high=1)
    size: int | None = setting(None, "side in pixels of the square whose area is worked at; default: the model's own",
                               "picture", low=8, high=4096)
    fit: str = setting("keep", "keep the picture's aspect, or squash it to a square as the released code does",
                       "picture", ("keep", "squash"))
    quantise: str = setting("round", "8-bit output: rounded, or truncated as in the released code", "picture",
                            ("round", "truncate"))
    seed: int = setting(0, "seed of encode=sample and noise_fraction; nothing else is random", "picture", low=0,
                        high=2**63 - 1)
    grid: str = setting("consistent", "noise levels: the same both ways, or as diffusers 0.21.4 infers them",
                        "released code", ("consistent", "released"))
    blend_latents: str = setting("same", "recorded latents to blend in: of the same level, or one level noisier",
                                 "released code", ("same", "noisier"))
    mask: str = setting("union", "mask: union of a mask per prompt, or one mask of their summed maps", "released code",
                        ("union", "sum"))
    blend_match: str = setting("phrase", "blending phrases are found as tokens and must be there; or as whole words "
                               "split at spaces, where an absent one counts for nothing", "released code",
                               ("phrase", "words"))
    reweight_passes: str = setting("target", "passes that are reweighted: the target's, or all, inversion included",
                                   "released code", ("target", "all"))
    reconstruction_mask_floor: float = setting(1.0, "below 1: the gradient times 1 - mask, at least this", "released "
                                               "code", low=0, high=1)
    guidance_mask_floor: float = setting(1.0, "below 1: the guidance scale times the mask, at least this", "released "
                                         "code", low=0, high=1)

    def __post_init__(self):
        for f in fields(self):
            object.__setattr__(self, f.name, _checked(f.name, getattr(self, f.name), f.metadata))

    @classmethod
    def published(cls, **changes: Any) -> "EditConfig":
        """The released SAGE code on diffusers 0.21.4, on CUDA; on a CPU it used loss_gain=300.

        Args:
            changes: fields to set differently.
        """
        released = dict(decay="released", grid="released", blend_latents="noisier", mask="sum", blend_match="words",
                        reweight_passes="all", fit="squash", quantise="truncate", seed=8888)
        return cls(**(released | changes))

    def but(self, **changes: Any) -> "EditConfig":
        """This configuration with some fields changed; SettingsError for a field that does not exist."""
        return replace(self, **_known(changes))

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values by field name; `from_dict` takes them back."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "EditConfig":
        """From `as_dict`, or from anything a stranger wrote: unknown names and wrong values are a SettingsError."""
        return cls(**_known(dict(values)))

    def decay_weight(self, step: int) -> float:
        """Weight of the reconstruction gradient at sampling step `step`; 0 from `guided_steps` on."""
        if step >= self.guided_steps:
            return 0.0
        return {"linear": 1 - step / self.steps, "none": 1.0, "released": 1 - step / (self.steps + 1)}[self.decay]

    @property
    def replace_steps(self) -> int:
        """Sampling steps with cross-attention replacement."""
        return min(int((self.steps + 1) * self.replace_fraction), self.steps)

    def blends_at(self, step: int) -> bool:
        """Whether sampling step `step` is followed by blending."""
        return step < self.blend_fraction * self.steps


def _known(values: dict[str, Any]) -> dict[str, Any]:
    names = [f.name for f in fields(EditConfig)]
    for name in values:
        if name not in names:
            raise SettingsError(f"there is no setting {str(name)[:40]!r}: the settings are {', '.join(names)}")
    return values


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value


def _checked(name: str, value: Any, meta: Mapping[str, Any]) -> Any:
    """`value` in its field's type, or SettingsError."""
    def fail(expected: str) -> SettingsError:
        return SettingsError(f"{name} is {str(value)[:60]!r}: must be {expected}")

    kind = EditConfig.__annotations__[name]
    if kind == Phrases:
        if value is None or value == AUTO:
            return value
        if isinstance(value, (tuple, list)) and len(value) == 2 and all(isinstance(v, str) for v in value):
            return tuple(value)
        raise fail("'auto', none, or a pair of phrases (source, target)")
    if name == "reweight":
        number = (int, float)
        if not isinstance(value, Mapping) or not all(
                isinstance(k, str) and isinstance(v, number) and not isinstance(v, bool) and 0 <= v <= 1000
                for k, v in value.items()):
            raise fail("phrases with factors from 0 to 1000")
        return {k: float(v) for k, v in value.items()}
    if meta["choices"]:
        if value not in meta["choices"]:
            raise fail(f"one of {', '.join(meta['choices'])}")
        return value
    if value is None and name == "size":
        return None
    whole = kind in (int, int | None)
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise fail("a number") from None
    if isinstance(value, (bool, str)) or not math.isfinite(number) or (whole and number != int(number)):
        raise fail("a whole number" if whole else "a finite number")
    if not meta["low"] <= number <= meta["high"]:
        upper = "" if meta["high"] == math.inf else f" and at most {meta['high']:g}"
        raise fail(f"at least {meta['low']:g}{upper}")
    return int(value) if whole else number
