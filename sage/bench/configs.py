"""The configurations that can be measured by name: those below, and every method with what is recommended for it.

`NAME:field=value,...` is one of them with some settings changed, and `NAME@MODEL` one on another model than the run's.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sage.bench.cases import Case
from sage.display.console import did_you_mean
from sage.errors import SettingsError
from sage.method import DEFAULTS, METHODS, Method, able, check_task
from sage.method import method as find_method
from sage.prompts.phrases import read_factors, read_phrases
from sage.settings import AUTO, Factors, Phrases, Settings, annotations

ALONE = {"replace": None, "blend": None, "retries": 0}
NOTHING = ALONE | {"reconstruction": "none"}
WHOLE = {"reconstruction": "self", "replace": AUTO, "blend": AUTO, "mask_from": "attention", "blend_fraction": 0.8,
         "blend_threshold": 0.5, "retries": 0}
MODELS = ("self_level", "cross_level", "preserve_level", "size")  # settings that say more of a model than of an edit
WORDS = ("prompts", "benchmark", "source")
NAME = r"(?:[^:=]*\.py:)?[^:@]*"  # of a configuration, a method, or a method of one's own
EXPLICIT = "method="  # before the name of a method that is also that of a configuration


@dataclass(frozen=True)
class Configuration:
    """What makes a result of a case.

    Attributes:
        changes: settings that it changes; "=name" stands for the value of another one.
        base: the settings it starts from: the model's recommended ones, or a preset of the method at the model's levels
            of attention and size.
        words: phrases for replacement and blending: what differs between the prompts, or what the benchmark names;
            "source" for the source prompt in place of the target's where regions are moved, so that no word asks for
            anything.
        makes: "edit"; "reconstruction", an edit that asks for nothing and whose right result is the source; or a
            bound, which needs no settings: "source" the untouched picture, "autoencoder" the true edit (the source,
            where that is not known) encoded and decoded, "pixels" what is moved or pasted as plain pixels.
        method: what edits, by name or path/to/file.py:Class.
        overrides: settings that were given after the name.
        model: what it runs on, "" for the run's own model.
    """

    name: str
    help: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    base: str = "recommended"
    words: str = "prompts"
    makes: str = "edit"
    method: str = DEFAULTS["edit"]
    overrides: Mapping[str, Any] = field(default_factory=dict)
    model: str = ""

    @property
    def is_bound(self) -> bool:
        return self.makes in ("source", "autoencoder", "pixels")

    @property
    def folder(self) -> str:
        """The name as a folder."""
        return re.sub(r"[^A-Za-z0-9.=,_+-]", "_", self.name)

    @property
    def edits_by(self) -> Method:
        """The method."""
        return find_method(self.method)

    def settings(self, recommended: Settings, case: Case | None = None) -> Settings:
        """The settings for one case, or for all of them but for their words.

        Args:
            recommended: for the method on the model.
        Raises:
            SettingsError: an override that is not possible.
        """
        config = recommended
        if self.base != "recommended":
            config = self.edits_by.preset(self.base, **{name: getattr(recommended, name) for name in MODELS
                                                        if name in recommended.names()})
        changes = {name: getattr(config, value[1:]) if isinstance(value, str) and value.startswith("=") else value
                   for name, value in self.changes.items()}
        config = config.but(**changes)
        if self.words == "benchmark" and case is not None:
            config = config.but(**_words(config, case))
        return config.but(**self.overrides)

    def record(self, recommended: Settings) -> dict[str, Any]:
        """Everything that tells this configuration from another of the same name, as JSON values."""
        settings = None if self.is_bound else self.settings(recommended).as_dict()
        method = None if self.is_bound else self.edits_by.where
        return {"name": self.name, "makes": self.makes, "words": self.words, "method": method, "settings": settings}


def _words(config: Settings, case: Case) -> dict[str, Any]:
    """What a benchmark names, for the settings that are phrases and would be read off the prompts."""
    exact = getattr(config, "blend_match", "phrase") == "phrase"
    named = {"replace": case.replace(), "blend": exact and case.phrases or case.blend()}
    kinds = annotations(type(config))
    return {name: pair for name, pair in named.items()
            if kinds.get(name) == Phrases and getattr(config, name) == AUTO}


_ALL = (
    Configuration("source", "bound: the untouched picture", makes="source"),
    Configuration("autoencoder", "bound: the true edit, encoded and decoded", makes="autoencoder"),
    Configuration("pixels", "bound: plain pixels, moved, filled or pasted; of cases that put something elsewhere",
                  makes="pixels"),
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
REGION_DEFAULT = ("source", "autoencoder", "pixels", "regiondrag", "ddpm", "eedit")


def configuration(text: str) -> Configuration:
    """A configuration by its name, or NAME:field=value,...

    The name of a method is that method as it is recommended; method=NAME means the method where a configuration has the
    same name, and path/to/file.py:Class one of someone's own.  Values are written as the flags of `sage edit` take
    them; a comma followed by no `field=` belongs to the value: `plain:replace=cat,dog,reweight=grumpy:3,steps=20` has
    three.  `words=benchmark` takes the phrases that the benchmark names, `words=source` the source prompt for both.
    `turbo@stilllife-turbo:steps=2` is on that model, whatever the run's own is.

    Raises:
        SettingsError: no such name or setting.
    """
    name, model, changes = re.fullmatch(rf"({NAME})(?:@([^:]*))?:?(.*)", text, re.DOTALL).groups()
    found = _on(_named(name), model)
    if not changes:
        return found
    if found.is_bound:
        raise SettingsError(f"{name} is a bound and has no settings")
    overrides, owner = {}, found.edits_by.Settings
    for part in re.split(r",(?=[^,=]*=)", changes):
        key, equals, value = part.partition("=")
        if not equals:
            raise SettingsError(f"{part[:40]!r} must be SETTING=VALUE, such as {name}:guidance_scale=3")
        overrides[key.strip()] = _value(owner, key.strip(), value.strip())
    words = found.words if "words" in owner.names() else overrides.pop("words", found.words)
    if words not in WORDS:
        raise SettingsError(f"words is {str(words)[:40]!r}: must be {' or '.join(WORDS)}")
    owner().but(**overrides)
    return replace(found, name=text, help=f"{found.help}, with {changes}", words=words, overrides=overrides)


def _on(found: Configuration, model: str | None) -> Configuration:
    """A configuration on a model of its own, if one is named."""
    if model is None:
        return found
    if found.is_bound or not model:
        raise SettingsError(f"{found.name}@{model[:40]}: " + (f"{found.name} is a bound and needs no model of its own"
                                                             if model else "name a model after @"))
    return replace(found, name=f"{found.name}@{model}", help=f"{found.help}, on {model}", model=model)


def _named(name: str) -> Configuration:
    if name in CONFIGURATIONS:
        return CONFIGURATIONS[name]
    wanted = name.removeprefix(EXPLICIT)
    if wanted.partition("+")[0] not in METHODS and ".py:" not in wanted:
        known = [*CONFIGURATIONS, *able("edit")]
        near = did_you_mean(name, known) or f": there are {', '.join(dict.fromkeys(known))}"
        raise SettingsError(f"no configuration is called {name[:40]!r}{near}")
    method = find_method(wanted)
    check_task(method, "edit")
    return Configuration(name, f"{method.title}: {method.about}", method=wanted)


def _value(owner: type[Settings], name: str, text: str) -> Any:
    kind = annotations(owner).get(name)
    if kind == Phrases:
        return read_phrases(text)
    if kind == Factors:
        return read_factors(text)
    if kind is str or name == "words":
        return text
    if text == "none":
        return None
    try:
        return json.loads({"yes": "true", "no": "false"}.get(text, text) if kind is bool else text)
    except (ValueError, RecursionError):
        return text
