"""The driver: pictures and prompts in, a method's steps, pictures out.  It knows no method.

    z0 = encode(picture)
    path = method.invert(job)                 the way to noise, which many edits can share
    for step in method.edit(job, path): ...   the way back; progress, watching, memory and numerics are minded here
    decode(z)

Every picture of a batch is treated as if it were alone.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sage import pictures, quality
from sage.auto import AUTO, recorded
from sage.errors import NumericsError, SettingsError
from sage.guidance.caching import Places
from sage.job import TEXTS, Job, Noises, Progress
from sage.machine.memory import Task, own_savings, settle, stepping_down
from sage.method import DEFAULTS, METHODS, Method, Request, Step, check_task, method_of, readers
from sage.method import method as find_method
from sage.models.backbone import Backbone, Text
from sage.models.savings import Savings
from sage.prompts.plan import Plan, parse_pair
from sage.prompts.vocabulary import about_unknown
from sage.settings import Retry, Settings
from sage.trajectory.kinds import Origin, Trajectory, Wanted, mapped

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


SAME = "both prompts say the same to the model: nothing is asked to change"


def check_prompts(model: Backbone, source: str, target: str, config: Settings, truncate: bool = False) -> Plan:
    """Turn prompts and phrases into token positions.

    Raises:
        PromptError: a prompt is empty or too long, a phrase is not in its prompt, or cannot be replaced by its pair.
    """
    method = method_of(config)
    plan = method.plan(model.prompts, *parse_pair(model.prompts, source, target, truncate), config)
    said = about_unknown(model.name, model.prompts.taught, (source, target))
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


def check_request(method: Method[Any], request: Request) -> None:
    """SettingsError for what was given and the method does not look at, so that nothing is left out in silence."""
    given = [name for name in ("mask", "reference", "points", "moves", "foregrounds", "edits", "sentences")
             if getattr(request, name)]
    if unread := [name for name in given if name not in method.reads]:
        others = readers(unread[0])
        other = f"; these do: {', '.join(others)}" if others else ""
        raise SettingsError(f"{method.name} does not read {unread[0]}: it reads {', '.join(sorted(method.reads))}"
                            + other)


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
    z = torch.cat([model.encode(pictures.to_tensor(image, size), torch.Generator().manual_seed(_seed(config))
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
    return [replace(result, notes=(*result.notes, *of_picture, *notes, *_remarks(result, config)))
            for result, of_picture in zip(results, said, strict=True)]


def framed(images: Sequence[Image.Image], requests: Sequence[Request], config: Settings
           ) -> tuple[list[Image.Image], Sequence[Request]]:
    """What of pictures, upright RGB, is worked at, and what was asked of them, seen from there."""
    fit = getattr(config, "fit", "keep")
    parts = [pictures.framed(image, fit) for image in images]
    return parts, [request if part.size == image.size else _moved(request, image.size, fit)
                   for request, image, part in zip(requests, images, parts, strict=bool(requests))]


def _moved(asked: Request, size: tuple[int, int], fit: str) -> Request:
    """What was asked of a picture of a size (W, H) as of the part of it that is worked at."""
    def part(given: Any) -> Any:
        if not isinstance(given, Image.Image):
            return given  # which is refused where it is used
        whole = pictures.normalise(given).convert("L")
        return pictures.framed(whole if whole.size == size else whole.resize(size, Image.Resampling.NEAREST), fit)

    left, top, *_ = pictures.middle(size)
    try:
        points = tuple((x - left, y - top, to_x - left, to_y - top) for x, y, to_x, to_y in asked.points)
    except (TypeError, ValueError):
        points = asked.points
    return replace(asked, mask=part(asked.mask), points=points, foregrounds=tuple(map(part, asked.foregrounds)),
                   moves=tuple(replace(move, source=part(move.source), target=part(move.target))
                               for move in asked.moves))


def _remarks(result: EditResult, config: Settings) -> Iterator[str]:
    """What a result itself gives to say."""
    if seen := result.looks_wrong(config):
        yield f"the result looks {seen}: try a smaller guidance_scale"
    if result.masks and not any(mask.any() for mask in result.masks):
        yield "the blending mask is empty, and keeps the picture as it is: try a smaller blend_threshold, or blend none"


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
                           tuple(row[i] for row in done.losses), (*_noted(plan, request), *done.notes[i]), spread[i],
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


def run(method: str | Method[Any], model: Backbone, z0: Tensor, source: str | Text | Tensor,
        target: str | Text | Tensor, settings: Settings | None = None, noises: Noises | None = None, *,
        trajectory: Trajectory | None = None, texts: Mapping[str, Text | Tensor] | None = None,
        request: Request | None = None, places: Places | None = None, background: Tensor | None = None,
        progress: Progress | None = None) -> Iterator[Step]:
    """A method's steps from latents and embeddings, without pictures: for research, and to hold it to recorded runs.

    Args:
        method: one, its name, or path/to/file.py:Class.
        z0: (B, C, h, w) latents of the pictures, taken in float32; where a method generates and does not edit, its
            noise.
        source, target: prompts, or embedded ones of 1 or B rows, (rows, M, D); a method that goes by words needs
            prompts, beside which embeddings can be given in `texts`.
        settings: default: those that the model recommends.
        noises: every random tensor of the way to noise and back, in the order in which it is drawn, of 1 or B rows; or
            a function of its tag.  Default: drawn from the settings' seed.
        trajectory: start from this way to noise instead of making it.
        texts: embedded prompts by "source", "target", "empty" and "nothing", and by the names that the method has in
            `texts`; one that it, or its settings, ask nothing of may be among them, if only some method does.
        request: what else the method reads.
        places: the tokens that a cache computes anew, by the number of the step and the path of the layer, such as
            (4, "single_transformer_blocks.0.proj_mlp"), in place of drawing them; for both ways.
        background: (B or 1, C, h, w) clean latents of what is outside the mask, where eedit puts back others than z0.
    Yields:
        each step of the way back, its random numbers drawn in between.
    Raises:
        SageError: what does not fit.
    """
    found = method if isinstance(method, Method) else find_method(method)
    settings = found.recommended(model, "edit" if found.edits else "generate") if settings is None else settings
    if not isinstance(settings, found.Settings):
        raise SettingsError(f"these are not settings of {found.name}")
    if why := found.fits(model):
        raise SettingsError(f"{found.name} cannot edit with {model.name}: {why}")
    z0 = _latents(model, z0)
    texts = dict(texts or {})
    words = {}
    for name, given in (("source", source), ("target", target)):
        words[name] = given if isinstance(given, str) else ""
        if not isinstance(given, str):
            if found.worded(settings):
                raise SettingsError(f"{found.name} goes by the words of both prompts: give the {name} prompt itself, "
                                    "and what it is embedded as in texts")
            texts[name] = given
    embedded = _embedded(model, found, texts, len(z0)) if texts else {}
    check_request(found, asked := request or Request(words["source"], words["target"]))
    parsed = model.prompts.parse(words["source"]), model.prompts.parse(words["target"])
    plan = found.plan(model.prompts, *parsed, settings)
    job = Job(found, model, settings, [plan] * len(z0), z0, texts=embedded, noises=noises, places=places,
              background=background, requests=[asked] * len(z0), report=progress)
    with torch.no_grad():
        if not found.edits:
            yield from found.generate(job)
            return
        path = found.invert(job) if trajectory is None else trajectory
    job.start_cache()
    steps = found.edit(job, path)
    while True:
        with torch.no_grad():  # entered anew each time: between two steps the caller's own setting holds
            step = next(steps, None)
        if step is None:
            return
        yield step


def _latents(model: Backbone, given: Tensor) -> Tensor:
    channels, height, width = model.latent_shape((model.pixel_multiple, model.pixel_multiple))  # the least
    if not isinstance(given, Tensor) or given.ndim != 4 or given.shape[1] != channels or not len(given):
        what = f"of shape {tuple(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
        raise SettingsError(f"the latents are {what}: give a tensor of shape (B, {channels}, h, w)")
    if given.shape[2] % height or given.shape[3] % width:
        raise SettingsError(f"the latents are of shape {tuple(given.shape)}: {model.name} needs h to be a multiple of "
                            f"{height}, and w of {width}")
    if not torch.isfinite(given).all():
        raise SettingsError("the latents are not finite")
    return given.to(model.device, torch.float32)


def _embedded(model: Backbone, method: Method[Any], texts: Mapping[str, Text | Tensor], batch: int) -> dict[str, Text]:
    known = {*TEXTS, *(text for name in METHODS for text in find_method(name).texts)}
    own, found = model.embed([model.prompts.parse("")]), dict[str, Text]()
    for name, given in texts.items():
        if name not in known and not any(k.endswith(":") and name.startswith(k) for k in known):
            reads = ", ".join(f"{text}..." if text.endswith(":") else text for text in (*TEXTS, *method.texts))
            raise SettingsError(f"no method reads an embedded prompt {name[:40]!r}: {method.name} reads {reads}")
        text = Text(given) if isinstance(given, Tensor) else given
        if not isinstance(text, Text) or text.tokens.ndim != 3 or len(text) not in (1, batch):
            what = f"of shape {tuple(text.tokens.shape)}" if isinstance(text, Text) else type(text).__name__
            raise SettingsError(f"the embedded prompt {name!r} is {what}: give a tensor of shape "
                                f"({'1' if batch == 1 else f'1 or {batch}'}, tokens, width)")
        for what, ours, theirs in (("", own.tokens, text.tokens), (", pooled,", own.pooled, text.pooled)):
            if ours is not None and theirs is not None and ours.shape[-1] != theirs.shape[-1]:
                raise SettingsError(f"the embedded prompt {name!r}{what} is {theirs.shape[-1]} wide, and those of "
                                    f"{model.name} are {ours.shape[-1]}")
        found[name] = mapped(text, lambda _, t: t.to(model.device, torch.float32))
    return found


# ---- whether a trajectory serves


def origin_of(model: Backbone, images: Sequence[Image.Image], plans: Sequence[Plan], config: Settings) -> Origin:
    """Of what a trajectory of these pictures, upright RGB, would be."""
    method, (images, _) = method_of(config), framed(images, (), config)
    return Origin(model.fingerprint(), method.inversion(config), method.where, config, tuple(p.source for p in plans),
                  tuple(p.target for p in plans) if method.follows_target(config) else None,
                  tuple(map(pictures.digest, images)), images[0].size)


def sharing_key(config: Settings, plans: Sequence[Plan]) -> tuple[Any, ...]:
    """Edits of the same pictures with one model and equal keys make the very same way to noise, to the last bit."""
    method = method_of(config)
    followed = tuple((p.target, p.factors) for p in plans) if method.follows_target(config) else None
    return (method.inversion(config), tuple(sorted(config.fixed().items(), key=str)),
            _seed(config) if method.draws(config) else None, method.wants(config), followed,
            tuple(plan.source for plan in plans))


def check_trajectory(trajectory: Trajectory, wanted: Origin, wants: Sequence[Wanted]) -> None:
    """SettingsError unless a trajectory is of what is wanted, and holds the attention that an edit needs."""
    had, method = trajectory.origin, method_of(wanted.settings)
    if had.model != wanted.model:
        raise SettingsError("the trajectory is of another model: invert again with this one")
    if had.inversion != wanted.inversion:
        raise SettingsError(f"the trajectory was made by {had.inversion}, and this edit needs {wanted.inversion}: "
                            "invert again")
    if had.source != wanted.source:
        raise SettingsError(f"the trajectory is of another source prompt: {had.source[0].text!r}")
    if had.picture_size != wanted.picture_size:
        raise SettingsError(f"the trajectory is of a picture of {had.picture_size}, not {wanted.picture_size}")
    if had.pictures != wanted.pictures:
        raise SettingsError("the trajectory is of another picture of the same size: invert this one")
    before, now = had.settings.fixed(), wanted.settings.fixed()
    for name in {**now, **before}:  # where one method has no such setting, the way is that of the other's default
        then = before[name] if name in before else type(wanted.settings).default(name)
        if then != (needed := now[name] if name in now else type(had.settings).default(name)):
            raise SettingsError(f"the trajectory was made with {name}={then}, not {needed}: invert again")
    if method.draws(wanted.settings) and _seed(had.settings) != _seed(wanted.settings):
        raise SettingsError(f"the trajectory was made with seed={_seed(had.settings)}: invert again")
    if had.target != wanted.target or (wanted.target is not None and _words(had) != _words(wanted)):
        raise SettingsError("the trajectory was made with other reweighting: invert again with this target")
    for want in wants:
        if want.steps and not any(own.covers(want) for own in trajectory.wants):
            where = want.where
            missing = sorted(want.steps - frozenset().union(*(o.steps for o in trajectory.wants if o.where == where)))
            raise SettingsError(f"the trajectory has no {where.kind}-attention maps at level {where.level} for step "
                                f"{len(trajectory.latents) - 1 - missing[-1]}: invert again with this configuration")


def _noted(plan: Plan, request: Request) -> tuple[str, ...]:
    """The notes of a plan; what is moved, and further targets, are changes that both prompts do not say."""
    return tuple(note for note in plan.notes if note != SAME or not (request.moves or request.points or request.edits))


def _words(origin: Origin) -> Any:
    return getattr(origin.settings, "reweight", None)


def _seed(config: Settings) -> int:
    return getattr(config, "seed", 0)


def unlike(model: Backbone, images: Sequence[Image.Image], z: Tensor, size: tuple[int, int]) -> tuple[str, ...]:
    """What is to be said of each picture, if it is none of the small world that a model knows.

    Args:
        z: the pictures' latents.
        size: (width, height) at which they are worked.
    Returns:
        "" where there is nothing to be said.
    """
    given = torch.cat([pictures.to_tensor(image, size) for image in images])
    advice = "the edit will be mush; for photographs take another model, such as sd-1.4 (sage fetch sd-1.4 gets it)"
    said = quality.unlike(model.name, given, model.decode(z).cpu())
    return tuple(f"{told}: {advice}" if told else "" for told in said)


def unusual(model: Backbone, size: tuple[int, int], settings: Settings) -> list[str]:
    """What is to be said of a size, and of steps, that the model was not trained for."""
    said, made_for = [], getattr(model.schedule, "made_for", 0)
    if 0 < made_for < (steps := getattr(settings, "steps", 0)) / 2:
        said.append(f"{model.name} was made for {made_for} steps, and these are {steps}: the picture may fall apart; "
                    "take a method for few, such as turbo-ddpm, or a model that is no student")
    area = size[0] * size[1] / model.sample_size**2
    if not 0.5 <= area <= 2:
        said.append(f"{model.name} was trained at {model.sample_size} x {model.sample_size} pixels, and this picture "
                    f"is worked at {size[0]} x {size[1]}: it may fall apart")
    return said
