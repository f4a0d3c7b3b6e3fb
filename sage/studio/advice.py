"""What a model recommends for each method, and which words it knows: remembered when it is in memory no more."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sage.auto import AUTO
from sage.editing import settings_for
from sage.errors import SettingsError
from sage.method import DEFAULTS, Method
from sage.models.backbone import Backbone
from sage.prompts.tokens import Prompts
from sage.settings import Settings

Key = tuple[str, str]  # a task, "edit" or "generate", and the name of a method


@dataclass(frozen=True)
class Advice:
    """What is told of a model that need not be in memory.

    Attributes:
        sample_size: side in pixels of the pictures it was trained on.
        prompts: its tokenizer.
        suited: the methods from which pictures may come, by task.
        settings: what it recommends for each method that can be used with it.
        refused: why any other cannot.
        auto: the name of the method that is recorded for it, "" for none.
    """

    sample_size: int
    prompts: Prompts
    suited: Mapping[str, tuple[Method[Any], ...]]
    settings: Mapping[Key, Settings]
    refused: Mapping[Key, str]
    auto: str = ""

    def recommended(self, task: str, name: str) -> Settings:
        """Settings for a method.

        Raises:
            SettingsError: the model cannot be used with it.
        """
        if (why := self.refused.get((task, name))) is not None:
            raise SettingsError(why)
        return self.settings[task, name]

    def usual(self, task: str) -> str:
        """The method that a task begins with: for edits the one that is recorded for the model, else everybody's."""
        recorded = task == "edit" and ((task, self.auto) in self.settings or (task, self.auto) in self.refused)
        return self.auto if recorded else DEFAULTS[task]


def advice(model: Backbone, methods: Mapping[str, Iterable[Method[Any]]]) -> Advice:
    """What a model that is in memory has to say.

    Args:
        methods: by task those that are of interest.
    """
    settings: dict[Key, Settings] = {}
    refused: dict[Key, str] = {}
    for task, found in methods.items():
        for one in found:
            try:
                settings[task, one.name] = settings_for(model, None, one.name, task)
            except SettingsError as error:
                refused[task, one.name] = str(error)
    suited = {task: tuple(one for one in found if one.suits(model, task)) for task, found in methods.items()}
    return Advice(model.sample_size, model.prompts, suited, settings, refused,
                  str(model.recommends.get(AUTO, {}).get("method", "")))
