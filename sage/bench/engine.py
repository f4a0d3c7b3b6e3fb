"""The engine of the runner: a model that edits in batches, and further ones for the rows that name them."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sage import pictures
from sage.bench.cases import Asked, Case
from sage.bench.configs import Configuration
from sage.bench.runner import Outcome
from sage.editing import EditResult, check_prompts, edit_batch, invert_batch, task_of
from sage.errors import PromptError, SageError, SettingsError
from sage.method import Request
from sage.models.backbone import Backbone
from sage.pictures.masks import black_and_white, pasted
from sage.pictures.metadata import asked_as_text, made_by, make_record
from sage.prompts.plan import Plan
from sage.sampling.levels import Level
from sage.sampling.steps import Prediction
from sage.settings import AUTO, Settings
from sage.trajectory.fitting import sharing_key
from sage.trajectory.kinds import Trajectory

FAILURES = (SageError, RuntimeError, MemoryError)  # what one case may suffer; anything else is a mistake of ours

KEPT = 2**30  # bytes of ways to noise that are kept for what follows

Job = tuple[Case, Asked, Plan]


class Counted:
    """A backbone that counts the latents for which its network was asked.

    Attributes:
        calls: forward.
        gradients: those of them that are differentiated, by the latents or by the text.
    """

    def __init__(self, model: Backbone):
        self._model, self.calls, self.gradients = model, 0, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def part(self, name: str) -> Any:
        """A further network of the model, whose calls count too; None where there is none."""
        found = self._model.part(name)
        return None if found is None else _Part(found, self)

    def predict(self, z: Tensor, level: Level, text: Any) -> Prediction:
        self.calls += len(z)
        prediction = self._model.predict(z, level, text)
        self.gradients += len(z) * (z.requires_grad or prediction.eps.requires_grad)
        return prediction

    @property
    def counted(self) -> np.ndarray:
        """Calls and gradients so far."""
        return np.array([self.calls, self.gradients])


class _Part:
    """A further network that counts the latents for which its noise was asked."""

    def __init__(self, network: Any, counted: Counted):
        self._network, self._counted = network, counted

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    def noise(self, x0: Tensor, *given: Any) -> tuple[Tensor, Tensor]:
        self._counted.calls += len(x0)
        return self._network.noise(x0, *given)


@dataclass(frozen=True)
class Inversion:
    """A way to noise and what it took.

    Attributes:
        key: whatever has an equal one has the very same way.
        counted: calls and gradients.
    """

    key: Any
    trajectory: Trajectory
    counted: np.ndarray
    seconds: float


class ModelEngine:
    """Edits with a model, and with another where a configuration names one.

    Configurations of the same batch whose way to noise is the same share its inversion, as long as `KEPT` has room for
    it beside later ones; each is said to have taken what it would have taken alone.

    Args:
        load: the model of a name, for configurations that name one; each is loaded once, when it is first needed.
    """

    def __init__(self, model: Backbone, load: Callable[[str], Backbone] | None = None):
        self.model: Any = Counted(model)
        self._load, self._others = load, dict[str, Any]()
        self._inversions: list[Inversion] = []  # the last one used at the end

    def describe(self) -> dict[str, Any]:
        # On a CPU the number of threads changes the last bits of sums.
        threads = {"threads": torch.get_num_threads()} if self.model.device.type == "cpu" else {}
        return {**_identity(self.model), **made_by(self.model), "device": self.model.device.type, **threads}

    def configure(self, configuration: Configuration) -> dict[str, Any]:
        model = self._model_of(configuration)
        if not configuration.is_bound and (why := configuration.edits_by.fits(model)):
            raise SettingsError(f"{configuration.method} cannot edit with {model.name}: {why}")
        own = {"model": _identity(model)} if configuration.model else {}
        return configuration.record(self._recommended(configuration)) | own

    def make(self, configuration: Configuration, cases: Sequence[Case], sources: Sequence[Image.Image],
             truths: Sequence[Image.Image | None]) -> list[Outcome]:
        if configuration.makes == "source":
            return [Outcome(source) for source in sources]
        if configuration.makes == "autoencoder":
            settings = self._recommended(configuration)
            return [self._round_trip(truth or source, settings)
                    for source, truth in zip(sources, truths, strict=True)]
        if configuration.makes == "pixels":
            return [self._by_pixels(case, source) for case, source in zip(cases, sources, strict=True)]
        planned = [self._planned(configuration, case, source) for case, source in zip(cases, sources, strict=True)]
        made = iter(self._edit_all(configuration, [job for job in planned if not isinstance(job, str)]))
        return [Outcome(reason=job) if isinstance(job, str) else next(made) for job in planned]

    def _model_of(self, configuration: Configuration) -> Any:
        """The model that a configuration runs on."""
        name = configuration.model
        if not name:
            return self.model
        if self._load is None:
            raise SettingsError(f"{configuration.name}: this run has one model alone")
        if name not in self._others:
            self._others[name] = Counted(self._load(name))
        return self._others[name]

    def _recommended(self, configuration: Configuration) -> Settings:
        return configuration.edits_by.recommended(self._model_of(configuration))

    def _settings(self, configuration: Configuration, case: Case | None = None) -> Settings:
        return configuration.settings(self._recommended(configuration), case)

    def _round_trip(self, image: Image.Image, settings: Settings) -> Outcome:
        try:
            size = task_of(self.model, [image], settings).size
            x = self.model.decode(self.model.encode(pictures.to_tensor(image, size)))
            return Outcome(pictures.to_picture(x, image.size))
        except FAILURES as error:
            return Outcome(reason=_reason(error))

    @staticmethod
    def _by_pixels(case: Case, source: Image.Image) -> Outcome:
        try:
            return Outcome(case.by_pixels(source))
        except SageError as error:
            return Outcome(reason=str(error))

    def _planned(self, configuration: Configuration, case: Case, source: Image.Image) -> Job | str:
        """What is asked of the method, and where the words of its prompts stand; or why not."""
        try:
            asked = case.asked(source, configuration.edits_by.reads, worded=configuration.words != "source")
            return case, asked, self._plan(configuration, asked, self._settings(configuration, case))
        except SageError as error:
            return str(error)

    def _plan(self, configuration: Configuration, asked: Asked, settings: Settings) -> Plan:
        model, prompts = self._model_of(configuration), (asked.request.source, asked.request.target)
        try:
            return check_prompts(model, *prompts, settings)
        except PromptError as error:
            if getattr(settings, "replace", None) in (None, AUTO):
                raise
            # Of several marked phrases the released code makes one, which then is not in the prompt.
            plan = check_prompts(model, *prompts, settings.but(replace=None))
            return replace(plan, notes=(*plan.notes, f"cross-attention replacement is off: {error}"))

    def _edit_all(self, configuration: Configuration, jobs: list[Job]) -> list[Outcome]:
        if not jobs:
            return []
        if len({asked.picture.size for _, asked, _ in jobs}) > 1:
            return [outcome for job in jobs for outcome in self._edit_all(configuration, [job])]
        try:
            return self._edited(configuration, jobs)
        except FAILURES as error:
            if len(jobs) == 1:
                return [Outcome(reason=_reason(error))]
        # Outside the handler, which would keep the failed batch's memory alive.
        return [outcome for job in jobs for outcome in self._edit_all(configuration, [job])]

    def _edited(self, configuration: Configuration, jobs: Sequence[Job]) -> list[Outcome]:
        model, settings = self._model_of(configuration), self._settings(configuration)
        plans = [plan for _, _, plan in jobs]
        images, requests = [asked.picture for _, asked, _ in jobs], [asked.request for _, asked, _ in jobs]
        way = self._inverted(model, settings, images, plans, requests)
        counted, began = model.counted, time.monotonic()
        results = edit_batch(model, images, plans, settings, trajectory=way.trajectory, requests=requests)
        calls, gradients = ((way.counted + model.counted - counted) / len(jobs)).round(2).tolist()
        each = {"calls": calls, "gradients": gradients,
                "seconds": round((way.seconds + time.monotonic() - began) / len(jobs), 3)}
        return [Outcome(_around(asked, _whole(asked.picture, result.image)),
                        self._record(configuration, case, asked, result), result.notes, **each)
                for (case, asked, _), result in zip(jobs, results, strict=True)]

    def _inverted(self, model: Any, settings: Settings, images: Sequence[Image.Image], plans: Sequence[Plan],
                  requests: Sequence[Request]) -> Inversion:
        """The inversion, from memory if it is just the same."""
        # Beside the prompts, which the key of the plans has: a cache may know the regions on the way to noise too.
        given = [replace(request, source="", target="") for request in requests]
        key = id(model), sharing_key(settings, plans), [image.tobytes() for image in images], given
        found = next((known for known in self._inversions if known.key == key), None)
        if found is None:
            self._make_room()
            counted, began = model.counted, time.monotonic()
            trajectory = invert_batch(model, images, plans, settings, requests=requests)
            found = Inversion(key, trajectory, model.counted - counted, time.monotonic() - began)
        self._inversions = [*(known for known in self._inversions if known is not found), found]
        return found

    def _make_room(self) -> None:
        """Forget what was used longest ago, until what is left is small beside `KEPT`, and a new one fits."""
        while sum(known.trajectory.nbytes for known in self._inversions) > KEPT // 2:
            self._inversions.pop(0)

    def _record(self, configuration: Configuration, case: Case, asked: Asked, result: EditResult) -> dict[str, Any]:
        """What `sage edit` stores, but for the picture, which the runner adds; and which case this is."""
        request = asked.request
        more = asked_as_text(request.mask, request.moves, paste=asked.mask is not None and request.mask is not None)
        return make_record(self._model_of(configuration), request.source, request.target,
                           self._settings(configuration, case), {}, savings=result.savings, case=case.name,
                           configuration=configuration.name, **more)


def _identity(model: Any) -> dict[str, str]:
    return {"model": model.name, "family": model.family, "weights": model.fingerprint()}


def _whole(source: Image.Image, made: Image.Image) -> Image.Image:
    """A result of the picture's size: one of its middle square alone (fit=crop) is put back, so that all compare."""
    if made.size == source.size:
        return made
    picture = source.convert("RGB")
    picture.paste(made, pictures.middle(source.size))
    return picture


def _around(asked: Asked, image: Image.Image) -> Image.Image:
    """The result, with what is to stay outside the mask pasted around it."""
    if asked.around is None or asked.mask is None:
        return image
    return pasted(image, asked.around, black_and_white(asked.mask, image.size))


def _reason(error: BaseException) -> str:
    line = next(iter(str(error).splitlines()), "")[:300]
    return line if isinstance(error, SageError) else f"{type(error).__name__}: {line}"
