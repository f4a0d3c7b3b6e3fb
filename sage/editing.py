"""The driver: pictures and prompts in, a method's steps, pictures out.  It knows no method.

    z0 = encode(picture)
    path = method.invert(job)                 the way to noise, which many edits can share
    for step in method.edit(job, path): ...   the way back; progress, watching, memory and numerics are minded here
    decode(z)

Every picture of a batch is treated as if it were alone.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sage import pictures, quality
from sage.auto import AUTO, recorded
from sage.errors import NumericsError, SettingsError
from sage.job import Job, Progress
from sage.machine.memory import Task, own_savings, settle, stepping_down
from sage.method import DEFAULTS, Request, Step, check_request, check_task, method_of
from sage.method import method as find_method
from sage.models.backbone import Backbone
from sage.models.savings import Savings
from sage.notes import SAME, of_plan, of_result, unlike, unusual
from sage.pictures.framing import framed
from sage.prompts.plan import Plan, parse_pair
from sage.prompts.vocabulary import about_words
from sage.settings import Retry, Settings, seed_of
from sage.trajectory.fitting import check_trajectory, origin_of
from sage.trajectory.kinds import Trajectory

Watch = Callable[[Step], None]
Moment = Step


@dataclass(frozen=True, eq=False)
class EditResult:
    """An edited picture and what it took.

    Attributes:
        image: the size of the input; with fit=crop of its middle square.
        latents: (1, C, h, w) float32, before decoding.
        settings: what it was made with.
        masks: (1, 1, h, w) float32 blending masks, one a blended step.
        losses: reconstruction loss at each guided step.
        notes: what was left out, and why; what looks wrong with the result; what was tried instead.
        spread, drift: how the result looks, by `sage.quality`.
        savings: what was done to need less memory; tiles change the picture a little.
        attempt: 0, or which of the retries it is.
    """

    image: Image.Image
    latents: Tensor
    trajectory: Trajectory
    settings: Settings
    masks: tuple[Tensor, ...]
    losses: tuple[float, ...]
    notes: tuple[str, ...]
    spread: float
    drift: float
    savings: Savings = Savings()
    attempt: int = 0

    def looks_wrong(self, settings: Settings) -> str:
        """What looks wrong with it, in a few words; "" for nothing."""
        if not isinstance(settings, Retry):
            return ""
        found = [word for word, value, most in (("oversaturated", self.spread, settings.most_spread),
                                                ("far from the source where nothing was to change", self.drift,
                                                 settings.most_drift)) if value > most]
        return " and ".join(found)

    def badness(self, settings: Retry) -> float:
        """How far the worse of its measures is from where it would look wrong; above 1 it does."""
        return max(value / max(most, 1e-9) for value, most in ((self.spread, settings.most_spread),
                                                               (self.drift, settings.most_drift)))


def check_prompts(model: Backbone, source: str, target: str, config: Settings, truncate: bool = False) -> Plan:
    """Turn prompts and phrases into token positions.

    Raises:
        PromptError: a prompt is empty or too long, a phrase is not in its prompt, or cannot be replaced by its pair.
    """
    method = method_of(config)
    plan = method.plan(model.prompts, *parse_pair(model.prompts, source, target, truncate), config)
    said = about_words(model.name, model.prompts.taught, (source, target))
    if plan.source.ids == plan.target.ids and not plan.factors:
        said += (SAME,)
    return replace(plan, notes=(*said, *method.notes(config, plan)))


def edit(model: Backbone, image: Image.Image | str | Path, source: str, target: str, config: Settings | None = None,
         progress: Progress | None = None, trajectory: Trajectory | None = None, truncate: bool = False,
         watch: Watch | None = None, *, method: str | None = None, savings: Savings | None = None,
         paste: bool = False, **request: Any) -> EditResult:
    """Edit a picture so that it shows `target` where it now shows `source`.

    Args:
        image: any PIL picture, or the path of one.
        source: describes the picture as it is.
        target: describes the picture wanted.
        config: settings, whose class says the method; default: those that the model recommends for `method`.
        progress: called with (phase, steps done, steps in all).
        trajectory: of `invert` for the same picture, source prompt and inversion settings.
        watch: called with every step as it is done; what it raises ends the edit.  It is shown where the passes look,
            unless it has an attribute `looks` that is False, and then costs nothing.
        method: by name, or path/to/file.py:Class; "auto" for what is recorded for the model, which a note then tells;
            default: of `config`, else "sage".
        savings: what was done to need less memory when an edit was made that shall be repeated to the byte.
        paste: outside the mask the picture's own pixels, with an edge inside it (`sage.pictures.masks.pasted`).
        request: what else the method reads: mask, reference, points, moves, foregrounds, edits, sentences
            (`sage.Request`).
    Raises:
        SageError: a picture, prompt, setting or trajectory that does not fit; NumericsError if numbers overflow.
    """
    taken = recorded(model.recommends.get(AUTO), model.name).note if method == AUTO and config is None else ""
    config = settings_for(model, config, method)
    asked = Request(source, target, **request)
    check_request(method_of(config), asked)
    if paste and asked.mask is None:
        raise SettingsError("there is no mask to paste around: give one, white where the picture may change")
    given = picture_of(image)
    result = edit_batch(model, [given], [check_prompts(model, source, target, config, truncate)], config,
                        progress, trajectory, watch, requests=[asked], savings=savings)[0]
    if paste:
        result = _pasted(result, given, asked)
    return replace(result, notes=(taken, *result.notes)) if taken else result


def _pasted(result: EditResult, image: Image.Image, asked: Request) -> EditResult:
    from sage.pictures.masks import black_and_white, feather, pasted
    (original,), (asked,) = framed([pictures.normalise(image)], [asked], result.settings)
    assert asked.mask is not None
    said = (f"outside the mask are the picture's own pixels; the edit comes in over {feather(original.size)} pixels "
            "inside its edge")
    return replace(result, image=pasted(result.image, original, black_and_white(asked.mask, original.size)),
                   notes=(*result.notes, said))


def settings_for(model: Backbone, config: Settings | None, method: str | None, task: str = "edit") -> Settings:
    """The settings given, or those that the model recommends for a method.

    Args:
        task: "edit" or "generate".
    Raises:
        SettingsError: settings of another method than the one that is named, one that does not do this, or a model
            that it does not fit.
    """
    if method == AUTO and config is not None:
        raise SettingsError(f"these are settings of {method_of(config).name}, and auto brings its own: leave out one")
    if method == AUTO and task == "edit":
        found = recorded(model.recommends.get(AUTO), model.name).as_method()
    else:
        found = find_method(method or DEFAULTS[task]) if config is None else method_of(config)
    check_task(found, task)
    if config is not None and method is not None and find_method(method).Settings is not type(config):
        raise SettingsError(f"these are settings of {found.name}, and the method is {method}: give one of the two")
    if why := found.fits(model):
        raise SettingsError(f"{found.name} cannot edit with {model.name}: {why}")
    return found.recommended(model, task) if config is None else config


def picture_of(image: Image.Image | str | Path) -> Image.Image:
    """The picture itself, or that of a file.

    Raises:
        SettingsError: something else.
        PictureError: the file cannot be read.
    """
    if isinstance(image, str | Path):
        return pictures.open_picture(image)
    if not isinstance(image, Image.Image):
        raise SettingsError(f"the picture is {type(image).__name__}: give a PIL picture or the path of one")
    return image


def invert(model: Backbone, image: Image.Image | str | Path, source: str, config: Settings | None = None,
           progress: Progress | None = None, target: str | None = None, truncate: bool = False, *,
           method: str | None = None) -> Trajectory:
    """Carry a picture to noise under its description, recording what edits will be held to.

    Args:
        image: any PIL picture, or the path of one.
        config: settings, whose class says the method; default: those that the model recommends for `method`.
        progress: called with (phase, steps done, steps in all).
        target: only where the target prompt reaches into the inversion, as with SAGE's reweight_passes="all".
    Raises:
        SageError: a picture or prompt that does not fit; NumericsError if numbers overflow.
    """
    config = settings_for(model, config, method)
    if target is None and method_of(config).follows_target(config):
        raise SettingsError("with these settings the inversion depends on the target prompt: give it too")
    plan = check_prompts(model, source, source if target is None else target,
                         config if target is not None else config.wordless(), truncate)
    return invert_batch(model, [picture_of(image)], [plan], config, progress)


def invert_batch(model: Backbone, images: Sequence[Image.Image], plans: Sequence[Plan], config: Settings,
                 progress: Progress | None = None, requests: Sequence[Request] = ()) -> Trajectory:
    """`invert` for several pictures at once, all worked at the size of the first."""
    images, requests = framed([pictures.normalise(image) for image in images], requests, config)
    with own_savings(model):
        return _inverted(model, images, plans, config, progress, requests)


def _inverted(model: Backbone, images: Sequence[Image.Image], plans: Sequence[Plan], config: Settings,
              progress: Progress | None, requests: Sequence[Request]) -> Trajectory:
    task, method = task_of(model, images, config), method_of(config)
    notes = list(settle(task))

    def walked() -> Trajectory:
        z = encoded(model, images, config, task.size, progress)
        with torch.no_grad():
            return method.invert(Job(method, model, config, plans, z, requests=requests, report=progress))

    trajectory = stepping_down(task, "inverting the picture", walked, notes)
    return replace(trajectory, origin=origin_of(model, images, plans, config), notes=tuple(notes))


def encoded(model: Backbone, images: Sequence[Image.Image], config: Settings, size: tuple[int, int],
            progress: Progress | None = None) -> Tensor:
    """(B, C, h, w) latents of pictures, each with the noise that it would have alone."""
    report = progress or (lambda phase, done, total: None)
    report("encode", 0, 1)
    sample = getattr(config, "encode", "mean") == "sample"
    z = torch.cat([model.encode(pictures.to_tensor(image, size), torch.Generator().manual_seed(seed_of(config))
                                if sample else None) for image in images])
    report("encode", 1, 1)
    return z


def task_of(model: Backbone, images: Sequence[Image.Image], config: Settings) -> Task:
    """What an edit of these pictures, upright RGB, asks of memory."""
    size = pictures.working_size(*images[0].size, getattr(config, "size", None) or model.sample_size,
                                 model.pixel_multiple, getattr(config, "fit", "keep"))
    return Task(model, size, len(images), method_of(config).wants(config))


def edit_batch(model: Backbone, images: Sequence[Image.Image], plans: Sequence[Plan], config: Settings,
               progress: Progress | None = None, trajectory: Trajectory | None = None, watch: Watch | None = None, *,
               requests: Sequence[Request] = (), savings: Savings | None = None) -> list[EditResult]:
    """`edit` for several pictures at once, all worked at the size of the first; who watches sees the first."""
    check_task(method_of(config), "edit")
    whole = [pictures.normalise(image) for image in images]
    images, requests = framed(whole, requests, config)
    with own_savings(model, savings):
        task, notes = task_of(model, images, config), list[str]()
        if trajectory is None:
            trajectory = _inverted(model, images, plans, config, progress, requests)
            notes += trajectory.notes
        else:
            check_trajectory(trajectory, origin_of(model, images, plans, config), method_of(config).wants(config))
            notes += settle(task)
        notes += unusual(model, task.size, config)
        if trajectory.unlike is None and model.prompts.taught:
            trajectory = replace(trajectory, unlike=unlike(model, images, trajectory.latents[0], task.size))
        said = [[told] if told else [] for told in trajectory.unlike or ("",) * len(images)]
        for about, image, part in zip(said, whole, images, strict=True):
            if part.size != image.size:
                about.append(f"the picture is cropped to its middle square, and the result has {part.width} x "
                             f"{part.height} pixels; fit=keep takes all of it")
        batch = _Batch(task, images, plans, requests, trajectory, progress, notes)
        results = batch.edited(config, watch)
        if isinstance(config, Retry):
            results = batch.retried(config, results, watch)
    return [replace(result, notes=(*result.notes, *of_picture, *notes, *of_result(result, config)))
            for result, of_picture in zip(results, said, strict=True)]


@dataclass
class _Batch:
    """Pictures on their way back from noise."""

    task: Task
    images: Sequence[Image.Image]
    plans: Sequence[Plan]
    requests: Sequence[Request]
    trajectory: Trajectory
    progress: Progress | None
    notes: list[str]

    def edited(self, config: Settings, watch: Watch | None, attempt: int = 0) -> list[EditResult]:
        """Every picture's result at these settings, however it looks."""
        model, report = self.task.model, self.progress or (lambda phase, done, total: None)

        def sampled() -> _Sampled:
            self.trajectory.keep(model.savings)
            job = Job(method_of(config), model, config, self.plans, self.trajectory.latents[0], requests=self.requests,
                      report=self.progress, watched=getattr(watch, "looks", watch is not None))
            job.start_cache()
            return _sampled(job, self.trajectory, watch, attempt)

        done = stepping_down(self.task, "sampling", sampled, self.notes)
        report("decode", 0, 1)
        x = stepping_down(self.task, "decoding the picture", lambda: model.decode(done.z), self.notes)
        report("decode", 1, 1)
        source, requests = self.trajectory.latents[0], self.requests or (Request(),) * len(self.plans)
        spread = quality.spread(done.z, source).tolist()
        drift = ([0.0] * len(source) if done.difference is None
                 else quality.drift(done.z, source, done.difference).tolist())
        return [EditResult(pictures.to_picture(x[i:i + 1], image.size, getattr(config, "quantise", "round")),
                           done.z[i:i + 1].cpu(), self.trajectory, config, tuple(m[i:i + 1] for m in done.masks),
                           tuple(row[i] for row in done.losses), (*of_plan(plan, request), *done.notes[i]), spread[i],
                           drift[i], model.savings)
                for i, (image, plan, request) in enumerate(zip(self.images, self.plans, requests, strict=True))]

    def only(self, rows: Sequence[int]) -> "_Batch":
        """Some of the pictures."""
        return replace(self, images=[self.images[i] for i in rows], plans=[self.plans[i] for i in rows],
                       requests=[self.requests[i] for i in rows] if self.requests else (),
                       trajectory=self.trajectory.only(rows))

    def retried(self, config: Retry, results: list[EditResult], watch: Watch | None) -> list[EditResult]:
        """The results, those that look wrong made again with gentler settings; the best of each is kept."""
        gentler = method_of(config).gentler(config)
        for attempt in range(1, config.retries + 1):
            bad = [i for i, result in enumerate(results) if result.looks_wrong(config)]
            if not bad or gentler is None:
                break
            again = self.only(bad).edited(gentler, watch if bad[0] == 0 else None, attempt)
            said = " and ".join(f"{name} {getattr(gentler, name):g}" for name in gentler.names()
                                if isinstance(getattr(gentler, name), float)
                                and getattr(gentler, name) != getattr(config, name))
            for i, result in zip(bad, again, strict=True):
                note = f"the result looked {results[i].looks_wrong(config)}: it was made again with {said}"
                if result.badness(config) < results[i].badness(config):
                    results[i] = replace(result, trajectory=self.trajectory, notes=(*results[i].notes, note),
                                         attempt=attempt)
                else:
                    note += ", which looked no better and was left out"
                    results[i] = replace(results[i], notes=(*results[i].notes, note))
            gentler = method_of(config).gentler(gentler)
        return results


@dataclass(frozen=True)
class _Sampled:
    """What the way back gave; a loss a picture of each guided step, and notes a picture."""

    z: Tensor
    difference: Tensor | None
    masks: tuple[Tensor, ...]
    losses: tuple[tuple[float, ...], ...]
    notes: tuple[list[str], ...]


def followed(job: Job[Any], steps: Iterator[Step], phase: str, watch: Watch | None = None,
             every: int = 1) -> Iterator[Step]:
    """A method's steps, each told to those who watch and to those who wait.

    Args:
        phase: what is being done, for those who wait.
        every: of how many steps one is watched, from the first.
    Raises:
        NumericsError: the latents of the last step are not finite.
    """
    step, total = None, len(job.down)
    for done, step in enumerate(steps, start=1):
        yield step
        if watch and (done - 1) % every == 0:
            watch(replace(step, looks=job.take_looks()))
        job.report(phase, done, max(done, total))
    if step is not None and not torch.isfinite(step.z).all():
        raise NumericsError("the latents are not finite at the end: nothing was written; try a smaller guidance_scale "
                            "and gentler settings")


@torch.no_grad()
def _sampled(job: Job[Any], trajectory: Trajectory, watch: Watch | None, attempt: int = 0) -> _Sampled:
    difference, masks, losses, z = None, [], [], trajectory.latents[0]
    shown = watch and (lambda step: watch(replace(step, attempt=attempt)))
    for step in followed(job, job.method.edit(job, trajectory), "edit", shown):
        z = step.z
        if step.difference is not None:
            seen = step.difference.abs().mean(dim=1, keepdim=True)
            difference = seen if difference is None else difference + seen
        if step.mask is not None:
            masks.append(step.mask.cpu())
        if step.loss is not None:
            losses.append(step.loss)
    return _Sampled(z, difference, tuple(masks), tuple(losses), job.notes)
