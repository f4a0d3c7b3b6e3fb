"""The engine of the runner: a model that edits in batches."""

from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from typing import Any

import torch
from PIL import Image

from sage import __version__, pictures
from sage.bench.cases import Case
from sage.bench.configs import Configuration
from sage.bench.runner import Outcome
from sage.config import AUTO, EditConfig
from sage.editing import edit_batch
from sage.errors import PromptError, SageError
from sage.inversion import Trajectory, invert_batch, recording_key
from sage.models.fingerprint import fingerprint
from sage.models.sd.model import StableDiffusion
from sage.prompts.plan import Plan, check_prompts

FAILURES = (SageError, RuntimeError, MemoryError)  # what one case may suffer; anything else is a mistake of ours


class ModelEngine:
    """Edits with one model.

    Configurations that follow each other on the same batch and record the same attention share its inversion.
    """

    def __init__(self, model: StableDiffusion):
        self.model = model
        self.made = {"device": model.device.type, "dtype": str(model.dtype).removeprefix("torch."),
                     "versions": {"sage": __version__, "torch": metadata.version("torch")}}
        self._inversion: tuple[Any, Trajectory] | None = None

    def describe(self) -> dict[str, Any]:
        # On a CPU the number of threads changes the last bits of sums.
        threads = {"threads": torch.get_num_threads()} if self.made["device"] == "cpu" else {}
        return {"model": self.model.name, "weights": fingerprint(self.model),
                "prediction_type": self.model.prediction_type, **self.made, **threads}

    def configure(self, configuration: Configuration) -> dict[str, Any]:
        return configuration.record(self.model.recommended)

    def make(self, configuration: Configuration, cases: Sequence[Case], sources: Sequence[Image.Image],
             truths: Sequence[Image.Image | None]) -> list[Outcome]:
        if configuration.makes == "source":
            return [Outcome(source) for source in sources]
        if configuration.makes == "autoencoder":
            return [self._round_trip(truth or source) for source, truth in zip(sources, truths, strict=True)]
        planned = [self._plan(configuration, case) for case in cases]
        jobs = [(case, source, plan) for case, source, plan in zip(cases, sources, planned, strict=True)
                if isinstance(plan, Plan)]
        made = iter(self._edit_all(configuration, jobs))
        return [next(made) if isinstance(plan, Plan) else Outcome(reason=plan) for plan in planned]

    def _round_trip(self, image: Image.Image) -> Outcome:
        config = self.model.recommended
        try:
            size = pictures.working_size(*image.size, config.size or self.model.sample_size, self.model.pixel_multiple,
                                         config.fit)
            x = self.model.decode(self.model.encode(pictures.to_tensor(image, size)))
            return Outcome(pictures.to_picture(x, image.size))
        except FAILURES as error:
            return Outcome(reason=_reason(error))

    def _plan(self, configuration: Configuration, case: Case) -> Plan | str:
        """Where the words of a case stand, or why they cannot be found."""
        config = configuration.settings(self.model.recommended, case)
        try:
            try:
                return check_prompts(self.model, case.source, case.target, config)
            except PromptError as error:
                if config.replace in (None, AUTO):
                    raise
                # Of several marked phrases the released code makes one, which then is not in the prompt.
                plan = check_prompts(self.model, case.source, case.target, config.but(replace=None))
                return replace(plan, notes=(*plan.notes, f"cross-attention replacement is off: {error}"))
        except SageError as error:
            return str(error)

    def _edit_all(self, configuration: Configuration, jobs: list[tuple[Case, Image.Image, Plan]]) -> list[Outcome]:
        if not jobs:
            return []
        if len({source.size for _, source, _ in jobs}) > 1:
            return [outcome for job in jobs for outcome in self._edit_all(configuration, [job])]
        config = configuration.settings(self.model.recommended)
        images, plans = [source for _, source, _ in jobs], [plan for _, _, plan in jobs]
        try:
            trajectory = self._inverted(config, images, plans)
            results = edit_batch(self.model, images, plans, config, trajectory=trajectory)
        except FAILURES as error:
            if len(jobs) == 1:
                return [Outcome(reason=_reason(error))]
            results = None
        if results is None:  # outside the handler, which would keep the failed batch's memory alive
            return [outcome for job in jobs for outcome in self._edit_all(configuration, [job])]
        return [Outcome(result.image, self._record(configuration, case), result.notes)
                for (case, _, _), result in zip(jobs, results, strict=True)]

    def _inverted(self, config: EditConfig, images: Sequence[Image.Image], plans: Sequence[Plan]) -> Trajectory:
        """The inversion, from memory if it is just the same."""
        key = recording_key(config, plans), [image.tobytes() for image in images]
        if self._inversion is None or self._inversion[0] != key:
            self._inversion = None  # the maps of two would be a lot
            self._inversion = key, invert_batch(self.model, images, plans, config)
        return self._inversion[1]

    def _record(self, configuration: Configuration, case: Case) -> dict[str, Any]:
        """What `sage edit` stores, but for the picture's hash, which the runner adds; and which case this is."""
        return {"source": case.source, "target": case.target, "model": self.model.name,
                "config": configuration.settings(self.model.recommended, case).as_dict(), "prediction_type": None,
                "truncate": False, "made": self.made, "case": case.name, "configuration": configuration.name}


def _reason(error: BaseException) -> str:
    line = next(iter(str(error).splitlines()), "")[:300]
    return line if isinstance(error, SageError) else f"{type(error).__name__}: {line}"
