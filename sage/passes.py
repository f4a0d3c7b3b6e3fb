"""What a sampling step asks of the network: the prediction under each prompt, and the gradient that holds the picture.

    target pass   cross-attention replaced and reweighted
    source pass   queries and keys heard, to be compared with those of the inversion; differentiated

Where a step wants no gradient and changes no attention, both passes are one batch.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from einops import rearrange
from torch import Tensor

from sage.config import EditConfig
from sage.errors import NumericsError
from sage.guidance import masks
from sage.guidance.blend import BlendingMask
from sage.guidance.hooks import Tap, listen, select
from sage.guidance.losses import gradient, latent_slopes, map_slopes
from sage.guidance.rewrites import replacement, reweighted, rewrite_columns, rewrite_maps
from sage.inversion import Maps, Trajectory, compared_with
from sage.models.sd.model import Backbone
from sage.prompts.plan import Plan, token_factors
from sage.sampling.levels import Level


@dataclass(frozen=True)
class Prediction:
    """What one pass made of latents, all float32.

    Attributes:
        x0, eps: (B, 4, h, w).
        gradient: (B, 4, h, w) of the mean distance to what was recorded, None where none was wanted.
        loss: that distance, a number a picture.
        attention: (B, M, h', w') to each token of the prompt, mean over the watched sites and heads; None unwatched.
    """

    x0: Tensor
    eps: Tensor
    gradient: Tensor | None = None
    loss: tuple[float, ...] | None = None
    attention: Tensor | None = None


class Passes:
    """The passes of one edit.

    Args:
        watched: also say where each pass looked.
    """

    def __init__(self, model: Backbone, trajectory: Trajectory, plans: Sequence[Plan], config: EditConfig,
                 mask: BlendingMask, watched: bool = False):
        self.model, self.trajectory, self.config, self.mask = model, trajectory, config, mask
        text = torch.cat([model.encode_text(plan.target) for plan in plans])
        self.source, self.target, self.both = (
            model.prepare(t) for t in (trajectory.text, text, torch.cat([trajectory.text, text])))
        self.factors = token_factors(plans, text)
        self.carry, self.keep = (torch.stack(t).to(text.device) for t in zip(
            *(replacement(plan.replace, text.shape[1]) for plan in plans), strict=True))
        self.replaces = any(plan.replace for plan in plans)
        kind = config.reconstruction
        self.self_sites = select(model.sites(), "self", config.self_level) if kind in ("self", "replace") else []
        crosses = self.replaces or kind == "cross"
        self.cross_sites = select(model.sites(), "cross", config.cross_level) if crosses else []
        self.watched = select(model.sites(), "cross", config.cross_level) if watched else []
        self.weights = _spared(trajectory, plans, config)

    def strength(self, step: int) -> float:
        """What the gradient is multiplied by."""
        return self.config.reconstruction_scale * self.config.loss_gain * self.config.decay_weight(step)

    def guided(self, step: int) -> bool:
        """Whether a gradient is taken: none where its weight is zero."""
        return (self.config.reconstruction in ("self", "cross", "latent") and self.strength(step) > 0
                and compared_with(self.config, step) is not None)

    def at(self, step: int, z: Tensor, level: Level) -> tuple[Prediction, Prediction]:
        """The predictions from latents (B, 4, h, w) under the source and under the target prompt.

        Raises:
            NumericsError: the gradient is not finite, in float32 neither.
        """
        if not (self.guided(step) or self._replaces_at(step) or self.factors is not None
                or self.config.reconstruction == "replace"):
            return self._in_one(step, z, level)
        target = self._target(step, z, level)
        source, tap = self._source(step, z, level)
        if source.gradient is not None and not torch.isfinite(source.gradient).all():
            with self.model.full_precision():
                source, tap = self._source(step, z, level)
            if not torch.isfinite(source.gradient).all():
                raise NumericsError(f"the reconstruction gradient at step {step + 1} is not finite, in float32 too: "
                                    "nothing was written; try a smaller reconstruction_scale")
        self.mask.add(0, tap)
        return source, target

    @torch.no_grad()
    def _in_one(self, step: int, z: Tensor, level: Level) -> tuple[Prediction, Prediction]:
        with ExitStack() as stack:
            tap, seen = self.mask.listen(stack, step), stack.enter_context(listen(self.watched))
            x0, eps = self.model.denoise(torch.cat([z, z]), level, self.both)
        self.mask.add(None, tap)
        looks = self._looks(seen, z)
        return tuple(Prediction(*(None if t is None else t.chunk(2)[side] for t in (x0, eps)),
                                attention=None if looks is None else looks.chunk(2)[side]) for side in (0, 1))

    @torch.no_grad()
    def _target(self, step: int, z: Tensor, level: Level) -> Prediction:
        with ExitStack() as stack:
            if self._replaces_at(step):
                undone = self.trajectory.maps[self.config.steps - 1 - step]
                stack.enter_context(rewrite_columns(self.cross_sites, undone.cross, self.carry, self.keep))
            tap, seen = self.mask.listen(stack, step), stack.enter_context(listen(self.watched))
            if self.factors is not None:
                stack.enter_context(reweighted(self.model.sites(), self.factors))
            x0, eps = self.model.denoise(z, level, self.target)
        self.mask.add(1, tap)
        return Prediction(x0, eps, attention=self._looks(seen, z))

    def _source(self, step: int, z: Tensor, level: Level) -> tuple[Prediction, Tap | None]:
        config, held = self.config, compared_with(self.config, step)
        reference = Maps() if held is None else self.trajectory.maps[held]
        guided = self.guided(step)
        z = z.clone().requires_grad_(guided)
        with torch.set_grad_enabled(guided), ExitStack() as stack:
            if config.reconstruction == "replace" and reference.self:
                stack.enter_context(rewrite_maps(self.self_sites, reference.self))
            tap, seen = self.mask.listen(stack, step), stack.enter_context(listen(self.watched))
            if self.factors is not None and config.reweight_passes == "all":
                stack.enter_context(reweighted(self.model.sites(), self.factors))
            compared = {"self": self.self_sites, "cross": self.cross_sites}.get(config.reconstruction, [])
            heard = stack.enter_context(listen(compared if guided else [], last=True))
            x0, eps = self.model.denoise(z, level, self.source)
        prediction = Prediction(x0.detach(), eps.detach(), attention=self._looks(seen, z))
        if not guided:
            return prediction, tap
        if config.reconstruction == "latent":
            current = [x0]
            losses, slopes = latent_slopes(x0, self.trajectory.latents[0], config.map_loss)
        else:
            pairs = heard.pop()
            current = [t for pair in pairs for t in pair]
            losses, slopes = map_slopes(pairs, getattr(reference, config.reconstruction), config.map_loss, self.weights)
            del x0, eps, pairs
        used = [(t, s) for t, s in zip(current, slopes, strict=True) if t.requires_grad]  # keys of a text are given
        g = gradient([t for t, _ in used], [s for _, s in used], z)
        return replace(prediction, gradient=g, loss=tuple(losses.tolist())), tap

    def _replaces_at(self, step: int) -> bool:
        return self.replaces and step < self.config.replace_steps

    def _looks(self, tap: Tap, z: Tensor) -> Tensor | None:
        if not tap.sites:
            return None
        maps = [pair.map().mean(dim=1).detach() for pair in tap.pop()]
        return rearrange(sum(maps) / len(maps), "b (h w) m -> b m h w", h=-(-z.shape[-2] // 2**self.config.cross_level))


def _spared(trajectory: Trajectory, plans: Sequence[Plan], config: EditConfig) -> Tensor | None:
    """(B, N, N) weights of the entries of self-attention maps: 0 where either place is left out of the loss."""
    if config.spare == "none" or config.reconstruction != "self":
        return None
    tokens = torch.zeros(trajectory.attention.shape[:2], device=trajectory.noise.device)
    for row, plan in enumerate(plans):
        tokens[row, [p for span in plan.edited if config.spare == "edited" or not span.target for p in span.source]] = 1
    attention = (trajectory.attention * tokens[:, :, None, None]).sum(dim=1, keepdim=True)
    spared = masks.threshold(attention, config.blend_threshold)
    size = (-(-s // 2**config.self_level) for s in trajectory.noise.shape[-2:])
    kept = 1 - masks.resize(spared, *size).flatten(1)  # (B, N)
    return kept[:, :, None] * kept[:, None]
