"""SAGE: edit a real picture by rewriting its description (arXiv 2505.09571).

    invert   z0 -> z_T under the source prompt, recording attention maps A_ref
    sample   eps = eps_source + w (eps_target - eps_source)
             z  <- DDIM(z, eps) - scale decay grad_z mean|A - A_ref|
             z  <- M z + (1 - M) z_inverted

Every picture of a batch is treated as if it were alone.  docs/method.md gives each line its place in the paper.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from sage import image as pictures
from sage.config import AUTO, EditConfig
from sage.errors import NumericsError, PromptError, SettingsError
from sage.guidance import masks
from sage.guidance.losses import gradient, mean_distance
from sage.guidance.rewrites import check_counts, replace_columns, replacement, reweight
from sage.guidance.taps import record, rewrite, select
from sage.models.backbone import Backbone
from sage.models.prompt import Prompt, Span
from sage.sampling.ddim import renoise, walk
from sage.sampling.schedule import Level

Progress = Callable[[str, int, int], None]

# What an inversion depends on: an edit may differ from its trajectory's configuration in everything else.
INVERSION_FIELDS = ("steps", "spacing", "grid", "encode", "size", "fit")


@dataclass(frozen=True)
class Plan:
    """What one edit does to the attention, in token positions of its two prompts.

    Attributes:
        replace: spans whose cross-attention the target takes over from the source.
        blend: tokens that mark where the picture may change, or None for everywhere.
        factors: token position in the target prompt -> factor on its cross-attention.
        edited: spans in which the prompts differ.
        notes: what was left out by itself, and why, for people to read.
    """

    source: Prompt
    target: Prompt
    replace: tuple[Span, ...] = ()
    blend: Span | None = None
    factors: tuple[tuple[int, float], ...] = ()
    edited: tuple[Span, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Maps:
    """The attention recorded at one inversion step: (B, H, N, M) a site, empty where no edit asked for them."""

    self: tuple[Tensor, ...] = ()
    cross: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Trajectory:
    """An inversion that many edits can share.

    Attributes:
        source: the prompts, one a picture.
        config: what it was made with.
        latents: N + 1 tensors (B, 4, h, w) float32, from the clean picture to noise.
        maps: N entries; entry k was recorded on the way from latents[k] to latents[k + 1].
        text: (B, M, width), the embedded source prompts.
        picture_size: (width, height) of the picture as it was given.
        factors: (B, M) the reweighting it was recorded under, None for the usual: no reweighting.
        attention: (B, M, h, w) how much each place looks at each token of the source prompt, mean over the inversion;
            None where nothing asked for it.
    """

    source: tuple[Prompt, ...]
    config: EditConfig
    latents: tuple[Tensor, ...]
    maps: tuple[Maps, ...]
    text: Tensor
    picture_size: tuple[int, int]
    factors: Tensor | None = None
    attention: Tensor | None = None

    @property
    def noise(self) -> Tensor:
        """(B, 4, h, w): the noisy end, where sampling starts."""
        return self.latents[-1]


@dataclass(frozen=True)
class EditResult:
    """An edited picture and what it took.

    Attributes:
        image: the size of the input.
        latents: (1, 4, h, w) float32, before decoding.
        masks: (1, 1, h, w) float32 blending masks, one a blended step.
        losses: reconstruction loss at each guided step.
        notes: what was left out, and why.
    """

    image: Image.Image
    latents: Tensor
    trajectory: Trajectory
    masks: tuple[Tensor, ...]
    losses: tuple[float, ...]
    notes: tuple[str, ...]


def check_prompts(model: Backbone, source: str, target: str, config: EditConfig, truncate: bool = False) -> Plan:
    """Turn prompts and phrases into token positions.

    Raises:
        PromptError: a prompt is empty or too long, a phrase is not in its prompt, or cannot be replaced by its pair.
    """
    find = model.prompts
    a, b = find.parse(source, truncate), find.parse(target, truncate)
    for name, prompt in (("source", a), ("target", b)):
        if not prompt.text:
            raise PromptError(f"the {name} prompt is empty: describe the picture in a few words")
    spans, notes = find.differences(a, b), []
    if config.replace == AUTO:
        replaced = []
        for span in spans:
            if span.source and span.target:
                try:
                    check_counts(span)
                    replaced.append(span)
                except PromptError as error:
                    notes.append(f"cross-attention replacement is off for one phrase: {error}")
    elif config.replace:
        replaced = [Span(find.find(a, config.replace[0]), find.find(b, config.replace[1]))]
        check_counts(replaced[0])
    else:
        replaced = []

    blend = None
    if config.blend == AUTO:
        blend = Span(tuple(p for span in spans for p in span.source), tuple(p for span in spans for p in span.target))
    elif config.blend and config.blend_match == "words":
        blend = Span(find.find_word(a, config.blend[0]), find.find_word(b, config.blend[1]))
    elif config.blend:
        # An empty phrase stands for a thing that only the other prompt names.
        blend = Span(*(find.find(p, phrase, every=True) if phrase else ()
                       for p, phrase in zip((a, b), config.blend, strict=True)))
    if blend and not (blend.source or blend.target):
        if config.blend != AUTO and config.blend_match == "words":
            notes.append("neither blending word is in its prompt: while blending, nothing may change")
        else:
            if config.blend != AUTO:
                notes.append("blending is off: both phrases are empty")
            blend = None

    factors = {p: factor for phrase, factor in config.reweight.items() for p in find.find(b, phrase, every=True)}
    return Plan(a, b, tuple(replaced), blend, tuple(sorted(factors.items())), tuple(spans), tuple(notes))


def invert(model: Backbone, image: Image.Image, source: str, config: EditConfig | None = None,
           progress: Progress | None = None, target: str | None = None, truncate: bool = False) -> Trajectory:
    """Carry a picture to noise under its description, recording the attention that edits will be held to.

    Args:
        image: any PIL picture.
        config: default: the model's recommended one.
        progress: called with (phase, steps done, steps in all).
        target: needed only with reweight_passes="all", where the released code lets the edit reach into the inversion.
    Returns:
        a Trajectory for any number of edits by configurations that agree in steps, spacing, grid, encode, size and fit.
    Raises:
        SageError: a picture, prompt or setting that does not fit; NumericsError if numbers overflow.
    """
    config = config or model.recommended
    plan = check_prompts(model, source, target if target is not None else source,
                         config if target is not None else config.but(replace=None, blend=None, reweight={}), truncate)
    return invert_batch(model, [image], [plan], config, progress)


def edit(model: Backbone, image: Image.Image, source: str, target: str, config: EditConfig | None = None,
         progress: Progress | None = None, trajectory: Trajectory | None = None, truncate: bool = False) -> EditResult:
    """Edit a picture so that it shows `target` where it now shows `source`.

    Args:
        image: any PIL picture.
        source: describes the picture as it is.
        target: describes the picture wanted.
        config: default: the model's recommended one.
        progress: called with (phase, steps done, steps in all).
        trajectory: of `invert` for the same picture, source prompt and inversion settings.
    Raises:
        SageError: a picture, prompt, setting or trajectory that does not fit; NumericsError if numbers overflow.
    """
    config = config or model.recommended
    return edit_batch(model, [image], [check_prompts(model, source, target, config, truncate)], config, progress,
                      trajectory)[0]


def invert_batch(model: Backbone, images: Sequence[Image.Image], plans: Sequence[Plan], config: EditConfig,
                 progress: Progress | None = None) -> Trajectory:
    """`invert` for several pictures at once, all worked at the size of the first."""
    report = progress or (lambda phase, done, total: None)
    recorder = _Recording(model, config)
    images = [pictures.normalise(image) for image in images]
    size = pictures.working_size(*images[0].size, config.size or model.sample_size, model.pixel_multiple, config.fit)
    report("encode", 0, 1)
    sample = config.encode == "sample"  # each picture with the noise that it would have alone
    z = torch.cat([model.encode(pictures.to_tensor(image, size), _generator(config) if sample else None)
                   for image in images])
    text = torch.cat([model.encode_text(plan.source) for plan in plans])
    factors = _factors(plans, text) if config.reweight_passes == "all" else None
    report("encode", 1, 1)

    edges = model.schedule(config.steps, config.spacing, config.grid).inversion
    latents = [z]

    def denoise(z: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        with recorder, ExitStack() as stack:
            if factors is not None:
                stack.enter_context(_reweighted(model, factors))
            return model.denoise(z, level, text)

    with torch.no_grad():
        for done, reached in enumerate(walk(denoise, z, edges), start=1):
            latents.append(reached)
            report("invert", done, len(edges))
    return Trajectory(tuple(p.source for p in plans), config, tuple(latents), tuple(recorder.maps), text,
                      images[0].size, factors, recorder.attention(z))


def edit_batch(model: Backbone, images: Sequence[Image.Image], plans: Sequence[Plan], config: EditConfig,
               progress: Progress | None = None, trajectory: Trajectory | None = None) -> list[EditResult]:
    """`edit` for several pictures at once, all worked at the size of the first."""
    report = progress or (lambda phase, done, total: None)
    images = [pictures.normalise(image) for image in images]
    if trajectory is None:
        trajectory = invert_batch(model, images, plans, config, progress)
    else:
        _check_trajectory(trajectory, plans, config, images)
    z, history, losses = _sample(model, trajectory, plans, config, report)
    report("decode", 0, 1)
    x = model.decode(z)
    report("decode", 1, 1)
    return [
        EditResult(pictures.to_picture(x[i:i + 1], image.size, config.quantise), z[i:i + 1].cpu(), trajectory,
                   tuple(m[i:i + 1] for m in history), tuple(row[i] for row in losses), plan.notes)
        for i, (image, plan) in enumerate(zip(images, plans, strict=True))]


def _sample(model: Backbone, trajectory: Trajectory, plans: Sequence[Plan], config: EditConfig,
            report: Progress) -> tuple[Tensor, list[Tensor], list[list[float]]]:
    """The guided way back from noise: latents, blending masks by step, losses by guided step and picture."""
    steps, w = config.steps, config.guidance_scale
    target_text = torch.cat([model.encode_text(plan.target) for plan in plans])
    factors = _factors(plans, target_text)
    everywhere = factors is not None and config.reweight_passes == "all"
    carry, keep = (torch.stack(t).to(target_text.device) for t in zip(
        *(replacement(plan.replace, target_text.shape[1]) for plan in plans), strict=True))
    replaces = any(plan.replace for plan in plans)
    mask = _BlendingMask(model, plans, config, trajectory.noise)
    self_sites = select(model.sites(), "self", config.self_level) if config.reconstruction in (
        "self", "replace") else []
    cross_sites = select(model.sites(), "cross", config.cross_level) if (
        replaces or config.reconstruction == "cross") else []

    weights = _spared(trajectory, plans, config)
    z = _with_noise(trajectory.noise, config)
    history: list[Tensor] = []
    losses: list[list[float]] = []
    for i, (start, end) in enumerate(model.schedule(steps, config.spacing, config.grid).sampling):
        undone, held = trajectory.maps[steps - 1 - i], compared_with(config, i)
        reference = Maps() if held is None else trajectory.maps[held]
        strength = config.reconstruction_scale * config.loss_gain * config.decay_weight(i)
        guided = config.reconstruction in ("self", "cross", "latent") and strength > 0 and (
            held is not None)
        z = z.detach()

        with torch.no_grad(), ExitStack() as stack:
            if replaces and i < config.replace_steps:
                stack.enter_context(rewrite_columns(cross_sites, undone.cross, carry, keep))
            tap = mask.listen(stack, i)
            if factors is not None:
                stack.enter_context(_reweighted(model, factors))
            x0_target, eps_target = model.denoise(z, start, target_text)
            mask.add_target(tap)

        def source_pass(z=z, start=start, reference=reference, guided=guided, i=i):
            z = z.clone().requires_grad_(guided)
            with torch.set_grad_enabled(guided), ExitStack() as stack:
                if config.reconstruction == "replace" and reference.self:
                    stack.enter_context(rewrite_maps(self_sites, reference.self))
                tap = mask.listen(stack, i)
                compared = {"self": self_sites, "cross": cross_sites}.get(config.reconstruction, [])
                current = stack.enter_context(record(compared)) if guided and compared else None
                if everywhere:
                    stack.enter_context(_reweighted(model, factors))
                x0, eps = model.denoise(z, start, trajectory.text)
                if not guided:
                    return x0, eps, None, None, tap
                maps, recorded = ([x0], [trajectory.latents[0]]) if current is None else (
                    current.pop(), getattr(reference, config.reconstruction))
                loss, g = gradient(maps, z, lambda maps: _losses(maps, recorded, config.map_loss, weights))
                return x0.detach(), eps.detach(), g, loss.tolist(), tap

        x0_source, eps_source, g, loss, tap = source_pass()
        if g is not None and not torch.isfinite(g).all():
            with model.full_precision():
                x0_source, eps_source, g, loss, tap = source_pass()
            if not torch.isfinite(g).all():
                raise NumericsError(f"the reconstruction gradient at step {i + 1} is not finite, in float32 too: "
                                    "nothing was written; try a smaller reconstruction_scale")
        mask.add_source(tap)
        mask.add_difference(eps_target - eps_source)

        with torch.no_grad():
            scale = w * mask.floored(config.guidance_mask_floor, z) if config.guidance_mask_floor < 1 else w
            x0 = x0_source + scale * (x0_target - x0_source)
            eps = eps_source + scale * (eps_target - eps_source)
            z = renoise(x0, eps, end.alpha)
            if g is not None:
                if config.reconstruction_mask_floor < 1:
                    g = g * mask.floored(config.reconstruction_mask_floor, z, inverse=True)
                z = z - strength * g
                losses.append(loss)
            if mask.used and config.blends_at(i):
                m = mask.at(z)
                kept = trajectory.latents[steps - i if config.blend_latents == "noisier" else steps - 1 - i]
                z = m * z + (1 - m) * kept
                history.append(m.cpu())
        report("edit", i + 1, steps)
    if not torch.isfinite(z).all():
        raise NumericsError("the edited latents are not finite: nothing was written; try smaller guidance_scale and "
                            "reconstruction_scale")
    return z, history, losses


def rewrite_columns(sites, reference: Sequence[Tensor], carry: Tensor, keep: Tensor):
    """Context in which the maps at `sites` take columns of the recorded ones."""
    by_path = {site.path: map for site, map in zip(sites, reference, strict=True)}
    return rewrite(sites, lambda map, site: replace_columns(map, by_path[site.path], carry, keep))


def rewrite_maps(sites, reference: Sequence[Tensor]):
    """Context in which the maps at `sites` are the recorded ones."""
    by_path = {site.path: map for site, map in zip(sites, reference, strict=True)}
    return rewrite(sites, lambda map, site: by_path[site.path].to(map))


def vae_reconstruction(model: Backbone, trajectory: Trajectory) -> Image.Image:
    """The picture after encoding and decoding alone: the best any edit can keep."""
    return pictures.to_picture(model.decode(trajectory.latents[0][:1]), trajectory.picture_size)


def ddim_reconstruction(model: Backbone, trajectory: Trajectory, progress: Progress | None = None) -> Image.Image:
    """The picture after inversion and plain sampling under the source prompt."""
    c, z = trajectory.config, trajectory.noise
    edges = model.schedule(c.steps, c.spacing, c.grid).sampling
    with torch.no_grad(), ExitStack() as stack:
        if trajectory.factors is not None:
            stack.enter_context(_reweighted(model, trajectory.factors))
        steps = walk(lambda z, level: model.denoise(z, level, trajectory.text), trajectory.noise, edges)
        for done, reached in enumerate(steps, start=1):
            z = reached
            if progress:
                progress("reconstruct", done, len(edges))
    return pictures.to_picture(model.decode(z[:1]), trajectory.picture_size)


class _Recording:
    """Keeps, inversion step by inversion step, the maps of which sampling has need."""

    def __init__(self, model: Backbone, config: EditConfig):
        self.config, self.maps, self._attention = config, [], 0.0
        self.wanted = [maps_needed(config, k) for k in range(config.steps)]
        for_self, for_cross = (any(column) for column in zip(*self.wanted, strict=True))
        self.self_sites = select(model.sites(), "self", config.self_level) if for_self else []
        self.cross_sites = select(model.sites(), "cross", config.cross_level) if (
            for_cross or config.spare != "none") else []

    def __enter__(self) -> None:
        """Listen to one pass."""
        self._stack = ExitStack()
        wants_self, self._wants_cross = self.wanted[len(self.maps)]
        self._self = self._stack.enter_context(record(self.self_sites if wants_self else []))
        self._cross = self._stack.enter_context(
            record(self.cross_sites if self._wants_cross or self.config.spare != "none" else []))

    def __exit__(self, *error) -> None:
        self._stack.close()
        if error[0] is not None:
            return
        cross = self._cross.pop()
        self.maps.append(Maps(tuple(self._self.pop()), tuple(cross) if self._wants_cross else ()))
        if self.config.spare != "none":
            self._attention = self._attention + sum(m.float().mean(dim=1) for m in cross)  # (B, N, M)

    def attention(self, z: Tensor) -> Tensor | None:
        """(B, M, h, w) of latents z, mean over the steps; None if nobody asked."""
        if self.config.spare == "none":
            return None
        height = -(-z.shape[-2] // 2**self.config.cross_level)
        return rearrange(self._attention / len(self.maps), "b (h w) m -> b m h w", h=height)


def compared_with(config: EditConfig, step: int) -> int | None:
    """The inversion step whose maps sampling step `step` is held to, None where it is held to none.

    By level, the first sampling step has the very latents that its maps would be of: the loss is zero, and what
    L1 makes of rounding would be its gradient.
    """
    if config.pairing == "transition":
        return config.steps - 1 - step
    return config.steps - step if step else None


def maps_needed(config: EditConfig, k: int) -> tuple[bool, bool]:
    """Whether sampling reads the self-attention maps of inversion step `k`, and its cross-attention maps."""
    undone_by = config.steps - 1 - k
    held = next((i for i in (undone_by, undone_by + 1) if i < config.steps and compared_with(config, i) == k), None)
    guided = held is not None and config.decay_weight(held) * config.reconstruction_scale * config.loss_gain > 0
    return ((config.reconstruction == "replace" and held is not None) or (config.reconstruction == "self" and guided),
            (config.reconstruction == "cross" and guided)
            or (config.replace is not None and undone_by < config.replace_steps))


class _BlendingMask:
    """Accumulates the cross-attention of the blending phrases over passes and steps, and gives the mask so far."""

    def __init__(self, model: Backbone, plans: Sequence[Plan], config: EditConfig, z: Tensor):
        self.config = config
        floors = min(config.reconstruction_mask_floor, config.guidance_mask_floor) < 1
        self.listens = config.mask_from == "attention"
        self.used = any(p.blend for p in plans) and (config.blend_fraction > 0 or floors)
        self.always = floors
        if not self.used:
            return
        # A picture without blending phrases may change everywhere.
        self.free = torch.tensor([plan.blend is None for plan in plans], device=z.device)[:, None, None, None]
        self.difference = torch.zeros_like(z[:, :1])
        self.sites = select(model.sites(), "cross", config.cross_level) if self.listens else []
        self.side = tuple(-(-s // 2**config.cross_level) for s in z.shape[-2:])
        length = len(plans[0].source.ids)
        self.tokens = [torch.zeros(len(plans), length, device=z.device) for _ in range(2)]
        for row, plan in enumerate(plans):
            blend = plan.blend or Span((), ())
            for tokens, positions in zip(self.tokens, (blend.source, blend.target), strict=True):
                tokens[row, list(positions)] = 1.0
        self.attention = [torch.zeros(len(plans), 1, *self.side, device=z.device) for _ in range(2)]

    def listen(self, stack: ExitStack, step: int):
        if self.used and self.listens and (self.always or self.config.blends_at(step)):
            return stack.enter_context(record(self.sites))
        return None

    def add_source(self, tap) -> None:
        self._add(0, tap)

    def add_target(self, tap) -> None:
        self._add(1, tap)

    def _add(self, side: int, tap) -> None:
        if tap is not None:
            maps = [m.detach() for m in tap.pop()]
            self.attention[side] += masks.token_attention(maps, self.tokens[side], *self.side)

    def add_difference(self, eps: Tensor) -> None:
        if self.used and not self.listens:
            self.difference += eps.abs().mean(dim=1, keepdim=True)

    def at(self, z: Tensor) -> Tensor:
        """(B, 1, h, w) in {0, 1}: where the picture may change."""
        source, target = self.attention
        share = self.config.blend_threshold
        if not self.listens:
            return (masks.threshold(self.difference, share) | self.free).float()
        mask = (masks.threshold(source + target, share) if self.config.mask == "sum" else
                masks.threshold(source, share) | masks.threshold(target, share))
        return masks.resize(mask | self.free, *z.shape[-2:])

    def floored(self, floor: float, z: Tensor, inverse: bool = False) -> Tensor | float:
        if not self.used:
            return 1.0
        mask = self.at(z)
        return (1 - mask if inverse else mask).clamp(floor, 1).masked_fill(self.free, 1.0)


def _reweighted(model: Backbone, factors: Tensor):
    sites = [s for s in model.sites() if s.kind == "cross"]
    return rewrite(sites, lambda map, site: reweight(map, factors))


def _factors(plans: Sequence[Plan], text: Tensor) -> Tensor | None:
    """(B, M) factors on the target prompts' tokens, None if nothing is reweighted."""
    if not any(plan.factors for plan in plans):
        return None
    factors = torch.ones(len(plans), text.shape[1], device=text.device)
    for row, plan in enumerate(plans):
        for position, factor in plan.factors:
            factors[row, position] = factor
    return factors


def _losses(current: Sequence[Tensor], reference: Sequence[Tensor], kind: str, weights: Tensor | None) -> Tensor:
    """(B,) each the mean over one picture, so that a picture's gradient does not depend on its batch."""
    return torch.stack([mean_distance([m[i] for m in current], [m[i] for m in reference], kind,
                                      None if weights is None else weights[i]) for i in range(len(current[0]))])


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


def _with_noise(z: Tensor, config: EditConfig) -> Tensor:
    """(1 - b) z + b noise, brought back to unit variance."""
    b = config.noise_fraction
    if b == 0:
        return z
    noise = torch.randn(z[:1].shape, generator=_generator(config)).to(z)  # the same for every picture of a batch
    return ((1 - b) * z + b * noise) / ((1 - b) ** 2 + b**2) ** 0.5


def _generator(config: EditConfig) -> torch.Generator:
    return torch.Generator().manual_seed(config.seed)


def _check_trajectory(trajectory: Trajectory, plans: Sequence[Plan], config: EditConfig,
                      images: Sequence[Image.Image]) -> None:
    """SettingsError unless the trajectory is of these prompts and holds what the configuration needs."""
    if trajectory.source != tuple(plan.source for plan in plans):
        raise SettingsError(f"the trajectory is of another source prompt: {trajectory.source[0].text!r}")
    if trajectory.picture_size != images[0].size:
        raise SettingsError(f"the trajectory is of a picture of {trajectory.picture_size}, not {images[0].size}")
    for f in fields(EditConfig):
        a, b = getattr(trajectory.config, f.name), getattr(config, f.name)
        if f.name in INVERSION_FIELDS and a != b:
            raise SettingsError(f"the trajectory was made with {f.name}={a}, not {b}: invert again")
    if config.encode == "sample" and trajectory.config.seed != config.seed:
        raise SettingsError(f"the trajectory was made with seed={trajectory.config.seed}: invert again")
    factors = _factors(plans, trajectory.text) if config.reweight_passes == "all" else None
    if (factors is None) != (trajectory.factors is None) or (factors is not None
                                                             and not torch.equal(factors, trajectory.factors)):
        raise SettingsError("the trajectory was made with other reweighting: invert again with this target")
    if config.spare != "none" and trajectory.attention is None:
        raise SettingsError(f"the trajectory has no attention to the prompt's words, which spare={config.spare} needs: "
                            "invert again with this configuration")
    for k in reversed(range(config.steps)):
        wanted, had = maps_needed(config, k), maps_needed(trajectory.config, k)
        levels = [(getattr(trajectory.config, n), getattr(config, n)) for n in ("self_level", "cross_level")]
        for needs, has, (a, b), kind in zip(wanted, had, levels, ("self", "cross"), strict=True):
            if needs and not (has and a == b):
                raise SettingsError(f"the trajectory has no {kind}-attention maps at level {b} for step "
                                    f"{config.steps - k}: invert again with this configuration")
