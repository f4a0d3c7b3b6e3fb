"""SAGE: edit a real picture by rewriting its description (arXiv 2505.09571).

    invert   z0 -> z_T under the source prompt, recording attention maps A_ref
    sample   eps = eps_source + w (eps_target - eps_source)
             z  <- DDIM(z, eps) - scale decay grad_z mean|A - A_ref|
             z  <- M z + (1 - M) z_inverted

Every picture of a batch is treated as if it were alone.  docs/method.md gives each line its place in the paper.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Tensor

from sage import pictures, quality
from sage.config import EditConfig
from sage.errors import NumericsError
from sage.guidance.blend import BlendingMask
from sage.guidance.losses import limited
from sage.inversion import Progress, Trajectory, check_trajectory, generator, invert_batch, task_of
from sage.memory import Task, settle, stepping_down
from sage.models.sd.model import Backbone
from sage.passes import Passes
from sage.prompts.plan import Plan, check_prompts
from sage.sampling.levels import Level
from sage.sampling.steps import renoise


@dataclass(frozen=True)
class Moment:
    """One step of the guided way back, for those who want to look inside an edit; all tensors float32.

    Attributes:
        step: from 0 on; an edit that is made again by `retries` begins anew at 0.
        level: the noise level from which the step started.
        z: (B, 4, h, w) latents after the step.
        x0_source, x0_target, x0: (B, 4, h, w) clean latents as predicted under each prompt, and by both with guidance.
        difference: (B, 4, h, w) what the guidance scale multiplies, eps_target - eps_source.
        gradient: (B, 4, h, w) what reconstruction guidance took out of the latents, None where it did nothing.
        loss: a number a picture, None where there was no reconstruction guidance.
        mask: (B, 1, h, w) in {0, 1}, where the picture could change; None without blending.
        attention_source, attention_target: (B, M, h', w') how much each place looks at each token of that prompt, mean
            over the heads and sites of the cross-attention level.
    """

    step: int
    level: Level
    z: Tensor
    x0_source: Tensor
    x0_target: Tensor
    x0: Tensor
    difference: Tensor
    gradient: Tensor | None
    loss: tuple[float, ...] | None
    mask: Tensor | None
    attention_source: Tensor
    attention_target: Tensor


Watch = Callable[[Moment], None]


@dataclass(frozen=True)
class EditResult:
    """An edited picture and what it took.

    Attributes:
        image: the size of the input.
        latents: (1, 4, h, w) float32, before decoding.
        masks: (1, 1, h, w) float32 blending masks, one a blended step.
        losses: reconstruction loss at each guided step.
        notes: what was left out, and why; what looks wrong with the result; what was tried instead.
        spread, drift: how the result looks, by `sage.quality`.
    """

    image: Image.Image
    latents: Tensor
    trajectory: Trajectory
    masks: tuple[Tensor, ...]
    losses: tuple[float, ...]
    notes: tuple[str, ...]
    spread: float
    drift: float

    def faults(self, config: EditConfig) -> str:
        """What looks wrong with it, in a few words; "" for nothing."""
        found = [word for word, value, most in (("oversaturated", self.spread, config.most_spread),
                                                ("far from the source where nothing was to change", self.drift,
                                                 config.most_drift)) if value > most]
        return " and ".join(found)


def edit(model: Backbone, image: Image.Image, source: str, target: str, config: EditConfig | None = None,
         progress: Progress | None = None, trajectory: Trajectory | None = None, truncate: bool = False,
         watch: Watch | None = None) -> EditResult:
    """Edit a picture so that it shows `target` where it now shows `source`.

    Args:
        image: any PIL picture.
        source: describes the picture as it is.
        target: describes the picture wanted.
        config: default: the model's recommended one.
        progress: called with (phase, steps done, steps in all).
        trajectory: of `invert` for the same picture, source prompt and inversion settings.
        watch: called with every step as it is done; what it raises ends the edit.
    Raises:
        SageError: a picture, prompt, setting or trajectory that does not fit; NumericsError if numbers overflow.
    """
    config = config or model.recommended
    return edit_batch(model, [image], [check_prompts(model, source, target, config, truncate)], config, progress,
                      trajectory, watch)[0]


def edit_batch(model: Backbone, images: Sequence[Image.Image], plans: Sequence[Plan], config: EditConfig,
               progress: Progress | None = None, trajectory: Trajectory | None = None,
               watch: Watch | None = None) -> list[EditResult]:
    """`edit` for several pictures at once, all worked at the size of the first."""
    report = progress or (lambda phase, done, total: None)
    images = [pictures.normalise(image) for image in images]
    task, notes = task_of(model, images, config), []
    if trajectory is None:
        trajectory = invert_batch(model, images, plans, config, progress)
        notes += trajectory.notes
    else:
        check_trajectory(trajectory, plans, config, images)
        notes += settle(task)
    results = _edited(task, images, plans, config, report, trajectory, watch, notes)
    gentler = config
    for _ in range(config.retries):
        bad = [i for i, result in enumerate(results) if result.faults(config)]
        if not bad:
            break
        gentler = gentler.but(guidance_scale=(gentler.guidance_scale + min(gentler.guidance_scale, 1)) / 2,
                              reconstruction_scale=gentler.reconstruction_scale / 2)
        again = _edited(task, [images[i] for i in bad], [plans[i] for i in bad], gentler, report,
                        trajectory.only(bad), watch, notes)
        for i, result in zip(bad, again, strict=True):
            note = (f"the result looked {results[i].faults(config)}: it was made again with guidance_scale "
                    f"{gentler.guidance_scale:g} and reconstruction_scale {gentler.reconstruction_scale:g}")
            results[i] = replace(result, trajectory=trajectory, notes=(*results[i].notes, note))
    return [replace(result, notes=(*result.notes, *notes, *(
        [f"the result looks {seen}: try a smaller guidance_scale"] if (seen := result.faults(config)) else [])))
            for result in results]


def _edited(task: Task, images: Sequence[Image.Image], plans: Sequence[Plan], config: EditConfig, report: Progress,
            trajectory: Trajectory, watch: Watch | None, notes: list[str]) -> list[EditResult]:
    """Every picture's result at these settings, however it looks."""
    model = task.model

    def sampled() -> tuple[Tensor, BlendingMask, list[tuple[float, ...]]]:
        trajectory.keep(model.savings)
        return _sample(model, trajectory, plans, config, report, watch)

    z, mask, losses = stepping_down(task, "sampling", sampled, notes)
    report("decode", 0, 1)
    x = stepping_down(task, "decoding the picture", lambda: model.decode(z), notes)
    report("decode", 1, 1)
    source = trajectory.latents[0]
    spread, drift = quality.spread(z, source).tolist(), quality.drift(z, source, mask.difference).tolist()
    return [
        EditResult(pictures.to_picture(x[i:i + 1], image.size, config.quantise), z[i:i + 1].cpu(), trajectory,
                   tuple(m[i:i + 1] for m in mask.history), tuple(row[i] for row in losses), plan.notes, spread[i],
                   drift[i])
        for i, (image, plan) in enumerate(zip(images, plans, strict=True))]


def _sample(model: Backbone, trajectory: Trajectory, plans: Sequence[Plan], config: EditConfig,
            report: Progress, watch: Watch | None) -> tuple[Tensor, BlendingMask, list[tuple[float, ...]]]:
    """The guided way back from noise: latents, the blending mask, losses by guided step and picture."""
    steps, w = config.steps, config.guidance_scale
    mask = BlendingMask(model, plans, config, trajectory.noise)
    passes = Passes(model, trajectory, plans, config, mask, watched=watch is not None)
    z = _with_noise(trajectory.noise, config)
    losses: list[tuple[float, ...]] = []
    for i, (start, end) in enumerate(model.schedule(steps, config.spacing, config.grid).sampling):
        source, target = passes.at(i, z, start)
        difference, g, m = target.eps - source.eps, source.gradient, None
        mask.add_difference(difference)

        scale = w * mask.floored(config.guidance_mask_floor, z) if config.guidance_mask_floor < 1 else w
        x0 = source.x0 + scale * (target.x0 - source.x0)
        z = renoise(x0, source.eps + scale * difference, end.alpha)
        if g is not None:
            if config.reconstruction_mask_floor < 1:
                g = g * mask.floored(config.reconstruction_mask_floor, z, inverse=True)
            g = limited(passes.strength(i) * g, config.step_limit)
            z = z - g
            losses.append(source.loss)
        if mask.used and config.blends_at(i):
            m = mask.at(z)
            kept = trajectory.latents[steps - i if config.blend_latents == "noisier" else steps - 1 - i]
            z = m * z + (1 - m) * kept
            mask.history.append(m.cpu())
        if watch:
            watch(Moment(i, start, z, source.x0, target.x0, x0, difference, g, source.loss, m, source.attention,
                         target.attention))
        report("edit", i + 1, steps)
    if not torch.isfinite(z).all():
        raise NumericsError("the edited latents are not finite: nothing was written; try smaller guidance_scale and "
                            "reconstruction_scale")
    return z, mask, losses


def _with_noise(z: Tensor, config: EditConfig) -> Tensor:
    """(1 - b) z + b noise, brought back to unit variance."""
    b = config.noise_fraction
    if b == 0:
        return z
    noise = torch.randn(z[:1].shape, generator=generator(config)).to(z)  # the same for every picture of a batch
    return ((1 - b) * z + b * noise) / ((1 - b) ** 2 + b**2) ** 0.5
