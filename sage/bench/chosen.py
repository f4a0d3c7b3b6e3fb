"""What a search chose for each rival, and the files that say so.

    RIVAL/chosen.json       `Chosen`: its settings and all trials
    chosen.json             `Record`: all of them, the model and the protocol, which a later comparison may take up
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sage.bench.configs import CONFIGURATIONS, EXPLICIT, Configuration
from sage.bench.files import MAX_JSON, BenchmarkError, write_text
from sage.bench.search import Trial, Values, best
from sage.files import parse_json, read_plain
from sage.method import method as find_method

CHOSEN = "chosen.json"


@dataclass(frozen=True)
class Chosen:
    """What the search of one rival came to.

    Attributes:
        settings: all of them, as plain values.
        values: of those that were searched.
        strengths: the setting that is its strength, and the values of its curve.
        published: whether there are published settings.
    """

    rival: str
    title: str
    settings: Values
    values: Values
    strength: str
    strengths: tuple[Any, ...]
    published: bool
    trials: tuple[Trial, ...]

    @property
    def label(self) -> str:
        """What it is called in tables: its name, or method=NAME where a configuration has the same."""
        return f"{EXPLICIT if self.rival in CONFIGURATIONS else ''}{self.rival}"

    @cached_property
    def curve(self) -> dict[str, Any]:
        """The rows along its strength by their labels, from the weakest on; the chosen one is among them."""
        here = self.settings.get(self.strength)
        values = sorted({*self.strengths, here}) if self.strengths else []
        return {self.label if v == here else f"{self.label}:{self.strength}={v:g}": v for v in values}

    @property
    def as_published(self) -> str:
        return f"{self.label}:published"

    @property
    def itself(self) -> Configuration:
        """As it was chosen."""
        return configuration(self.label, self.rival, self.settings)

    def others(self) -> list[Configuration]:
        """What is tested of it besides: other strengths, and the published settings."""
        made = [configuration(label, self.rival, {**self.settings, self.strength: value})
                for label, value in self.curve.items() if label != self.label]
        if self.published:
            length = {name: self.settings[name] for name in ("steps",) if name in self.settings}
            made.append(Configuration(self.as_published, "its published settings, in as many steps", base="published",
                                      changes=length, words="benchmark", method=self.rival))
        return made

    def as_dict(self) -> dict[str, Any]:
        return {**{name: getattr(self, name) for name in ("rival", "title", "values", "strength", "published",
                                                          "settings")},
                "strengths": list(self.strengths), "score": best(self.trials).score,
                "trials": [trial.as_dict() for trial in self.trials]}


def configuration(label: str, rival: str, settings: Values) -> Configuration:
    """A rival at some settings, as a row of a table."""
    return Configuration(label, find_method(rival).title, changes=dict(settings), method=rival)


def write_chosen(path: Path, chosen: Chosen) -> None:
    """Write a file for `read_chosen`."""
    write_text(path, json.dumps(chosen.as_dict(), indent=1) + "\n")


def read_chosen(path: Path) -> Chosen:
    """What `write_chosen` wrote.

    Raises:
        BenchmarkError: not there, or damaged.
    """
    try:
        return _as_chosen(parse_json(read_plain(path, BenchmarkError, MAX_JSON).decode()))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BenchmarkError(f"{path} is damaged: remove it") from error


def _as_chosen(found: Mapping[str, Any]) -> Chosen:
    trials = tuple(Trial(**{**trial, "each": tuple(trial["each"])}) for trial in found["trials"])
    rest = {name: value for name, value in found.items() if name not in ("score", "trials", "strengths")}
    return Chosen(**rest, strengths=tuple(found["strengths"]), trials=trials)


@dataclass(frozen=True)
class Record:
    """What an earlier comparison chose, from its chosen.json.

    Attributes:
        weights: the fingerprint of the model that it was chosen on.
        protocol: that it was chosen by.
        chosen: by rival.
    """

    weights: str
    protocol: Mapping[str, Any]
    chosen: Mapping[str, Chosen]


def read_record(path: Path) -> Record:
    """What sage.bench.rivals.as_record told.

    Raises:
        BenchmarkError: not there, or no such file.
    """
    try:
        found = parse_json(read_plain(path, BenchmarkError, MAX_JSON).decode())
        chosen = {str(name): _as_chosen(one) for name, one in found["rivals"].items()}
        return Record(str(found["model"]["weights"]), dict(found["protocol"]), chosen)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BenchmarkError(f"{path} is no {CHOSEN} of a comparison: give the one that lies in its folder") from error
