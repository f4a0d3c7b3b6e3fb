"""A method's steps from latents and embeddings, without pictures: for research, and to hold it to recorded runs."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from sage.errors import SettingsError
from sage.guidance.caching import Places
from sage.job import TEXTS, Job, Noises, Progress
from sage.method import METHODS, Method, Request, Step, check_request
from sage.method import method as find_method
from sage.models.backbone import Backbone, Text
from sage.settings import Settings
from sage.trajectory.kinds import Trajectory, mapped


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
