"""The configurations that can be measured by name.

`NAME:field=value,...` is one of them with some settings changed.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sage.bench.cases import Case
from sage.config import AUTO, EditConfig, Phrases
from sage.errors import SettingsError
from sage.prompts.phrases import read_factors, read_phrases

ALONE = {"replace": None, "blend": None, "retries": 0}
NOTHING = ALONE | {"reconstruction": "none"}
WHOLE = {"reconstruction": "self", "replace": AUTO, "blend": AUTO, "mask_from": "attention", "blend_fraction": 0.8,
         "blend_threshold": 0.5, "retries": 0}


@dataclass(frozen=True)
class Configuration:
    """What makes a result of a case.

    Attributes:
        base: the settings it starts from: the model's recommended ones, or those of the released code at the model's
            levels of attention and size.
        words: phrases for replacement and blending: what differs between the prompts, or what the benchmark names.
        makes: "edit"; "reconstruction", an edit that asks for nothing and whose right result is the source; or a
            bound, which needs no settings: "source" the untouched picture, "autoencoder" the true edit (the source,
            where that is not known) encoded and decoded.
    """

    name: str
    help: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    base: str = "recommended"
    words: str = "prompts"
    makes: str = "edit"
    overrides: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_bound(self) -> bool:
        return self.makes in ("source", "autoencoder")

    @property
    def folder(self) -> str:
        """The name as a folder."""
        return re.sub(r"[^A-Za-z0-9.=,_+-]", "_", self.name)

    def settings(self, recommended: EditConfig, case: Case | None = None) -> EditConfig:
        """The settings for one case, or for all of them but for their words.

        Raises:
            SettingsError: an override that is not possible.
        """
        config = recommended
        if self.base == "published":
            config = EditConfig.published(self_level=recommended.self_level, cross_level=recommended.cross_level,
                                          size=recommended.size)
        changes = {name: getattr(config, value[1:]) if isinstance(value, str) and value.startswith("=") else value
                   for name, value in self.changes.items()}
        config = config.but(**changes)
        if self.words == "benchmark" and case is not None:
            if config.replace == AUTO:
                config = config.but(replace=case.replace())
            if config.blend == AUTO:
                phrases = case.phrases if config.blend_match == "phrase" else None
                config = config.but(blend=phrases or case.blend())
        return config.but(**self.overrides)

    def record(self, recommended: EditConfig) -> dict[str, Any]:
        """Everything that tells this configuration from another of the same name, as JSON values."""
        settings = None if self.is_bound else self.settings(recommended).as_dict()
        return {"name": self.name, "makes": self.makes, "words": self.words, "settings": settings}


_ALL = (
    Configuration("source", "bound: the untouched picture", makes="source"),
    Configuration("autoencoder", "bound: the true edit, encoded and decoded", makes="autoencoder"),
    Configuration("recommended", "the model's recommended settings"),
    Configuration("plain", "inversion and sampling at w = 1, nothing else", NOTHING | {"guidance_scale": 1.0}),
    Configuration("guidance", "inversion and sampling at the model's w, nothing else", NOTHING),
    Configuration("published", "the released code", base="published", words="benchmark"),
    # Table I of the paper, with the model's w, levels and step size
    Configuration("cross-guidance", "Table I, i: gradient on cross-attention maps, at the level of self-attention's",
                  ALONE | {"reconstruction": "cross", "cross_level": "=self_level"}),
    Configuration("latent-guidance", "Table I, ii: gradient on the predicted clean latents, scale 1",
                  ALONE | {"reconstruction": "latent", "reconstruction_scale": 1.0}),
    Configuration("self-replacement", "Table I, iii: recorded self-attention maps put in place of the current ones",
                  ALONE | {"reconstruction": "replace"}),
    Configuration("self-guidance", "Table I, iv: gradient on self-attention maps", ALONE | {"reconstruction": "self"}),
    Configuration("self-guidance-replace", "Table I, v: iv and replacement of cross-attention",
                  WHOLE | {"blend": None}, words="benchmark"),
    Configuration("self-guidance-replace-blend", "Table I, vi: v and local blending, the whole method",
                  WHOLE, words="benchmark"),
    # Table VI: the source prompt in place of the target, so that the right result is the source
    Configuration("reconstruct", "Table VI: inversion and sampling under the source prompt, nothing else", NOTHING,
                  makes="reconstruction"),
    Configuration("reconstruct-cross", "Table VI: the same, guided by cross-attention maps",
                  ALONE | {"reconstruction": "cross", "cross_level": "=self_level"}, makes="reconstruction"),
    Configuration("reconstruct-latent", "Table VI: guided by the predicted clean latents",
                  ALONE | {"reconstruction": "latent", "reconstruction_scale": 1.0}, makes="reconstruction"),
    Configuration("reconstruct-replace", "Table VI: recorded self-attention maps put in place of the current ones",
                  ALONE | {"reconstruction": "replace"}, makes="reconstruction"),
    Configuration("reconstruct-self", "Table VI: guided by self-attention maps", ALONE | {"reconstruction": "self"},
                  makes="reconstruction"),
    # Ours
    Configuration("difference-blend", "blending alone, where the predictions under the two prompts differ",
                  NOTHING | {"blend": AUTO, "mask_from": "difference"}),
    Configuration("attention-blend", "blending alone, where the cross-attention of the edited words is",
                  WHOLE | {"reconstruction": "none", "replace": None},
                  words="benchmark"),
)
CONFIGURATIONS = {c.name: c for c in _ALL}
DEFAULT = ("source", "autoencoder", "recommended", "plain", "guidance")


def configuration(text: str) -> Configuration:
    """A configuration by its name, or NAME:field=value,...

    Values are written as the flags of `sage edit` take them; a comma followed by no `field=` belongs to the value:
    `plain:replace=cat,dog,reweight=grumpy:3,fluffy:2,steps=20` has three.

    Raises:
        SettingsError: no such name or setting.
    """
    name, _, changes = text.partition(":")
    found = CONFIGURATIONS.get(name)
    if found is None:
        raise SettingsError(f"no configuration is called {name[:40]!r}: there are {', '.join(CONFIGURATIONS)}")
    if not changes:
        return found
    if found.is_bound:
        raise SettingsError(f"{name} is a bound and has no settings")
    overrides = {}
    for part in re.split(r",(?=[^,=]*=)", changes):
        key, equals, value = part.partition("=")
        if not equals:
            raise SettingsError(f"{part[:40]!r} must be SETTING=VALUE, such as {name}:guidance_scale=3")
        overrides[key.strip()] = _value(key.strip(), value.strip())
    EditConfig().but(**overrides)
    return replace(found, name=text, help=f"{found.help}, with {changes}", overrides=overrides)


def _value(name: str, text: str) -> Any:
    kind = EditConfig.__annotations__.get(name)
    if kind == Phrases:
        return read_phrases(text)
    if name == "reweight":
        return read_factors(text)
    if kind is not str and text == "none":
        return None
    try:
        return json.loads(text)
    except ValueError:
        return text
