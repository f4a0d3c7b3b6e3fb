"""The way to noise: DDIM inversion under the source prompt, recording the attention that edits are held to."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from sage import pictures
from sage.config import INVERSION_FIELDS, EditConfig
from sage.errors import SettingsError
from sage.guidance.hooks import listen, select
from sage.guidance.rewrites import reweighted
from sage.memory import Task, settle, stepping_down
from sage.models.memory import Savings, on_host
from sage.models.sd.attention import QueriesKeys
from sage.models.sd.model import Backbone
from sage.prompts.plan import Plan, check_prompts, token_factors
from sage.prompts.tokens import Prompt
from sage.sampling.levels import Level
from sage.sampling.steps import walk

Progress = Callable[[str, int, int], None]

@dataclass(frozen=True)
class Maps:
    """The attention recorded at one inversion step, as the queries and keys of its maps: a pair a site, none where no
    edit asked for them."""

    self: tuple[QueriesKeys, ...] = ()
    cross: tuple[QueriesKeys, ...] = ()

    def kept(self, savings: Savings) -> "Maps":
        """Where they shall lie: as they are, or on the host, from where a GPU takes them without waiting."""
        if not savings.references:
            return self
        return Maps(*(tuple(QueriesKeys(*map(on_host, pair)) for pair in sites) for sites in (self.self, self.cross)))


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
        pictures: what the pictures are known by, one each: `sage.pictures.digest`.
        factors: (B, M) the reweighting it was recorded under, None for the usual: no reweighting.
        attention: (B, M, h, w) how much each place looks at each token of the source prompt, mean over the inversion;
            None where nothing asked for it.
        notes: what was done to make it fit into memory.
    """

    source: tuple[Prompt, ...]
    config: EditConfig
    latents: tuple[Tensor, ...]
    maps: tuple[Maps, ...]
    text: Tensor
    picture_size: tuple[int, int]
    pictures: tuple[str, ...]
    factors: Tensor | None = None
    attention: Tensor | None = None
    notes: tuple[str, ...] = ()

    def keep(self, savings: Savings) -> None:
        """Move the recorded attention to where it shall lie: no copy, which would free nothing."""
        if savings.references:
            object.__setattr__(self, "maps", tuple(m.kept(savings) for m in self.maps))

    def only(self, rows: Sequence[int]) -> "Trajectory":
        """The trajectory of some of the pictures."""
        rows = list(rows)

        def of(sites: Sequence[QueriesKeys]) -> tuple[QueriesKeys, ...]:
            return tuple(QueriesKeys(*(t[rows] for t in site)) for site in sites)

        return replace(self, source=tuple(self.source[row] for row in rows),
                       pictures=tuple(self.pictures[row] for row in rows),
                       latents=tuple(t[rows] for t in self.latents),
                       maps=tuple(Maps(of(m.self), of(m.cross)) for m in self.maps), text=self.text[rows],
                       factors=None if self.factors is None else self.factors[rows],
                       attention=None if self.attention is None else self.attention[rows])

    @property
    def nbytes(self) -> int:
        """What the recorded latents and attention take, in bytes; keys that are the same at all steps count once."""
        tensors = [*self.latents, *(t for m in self.maps for site in (*m.self, *m.cross) for t in site)]
        return sum({t.data_ptr(): t.numel() * t.element_size() for t in tensors}.values())

    @property
    def noise(self) -> Tensor:
        """(B, 4, h, w): the noisy end, where sampling starts."""
        return self.latents[-1]


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


def invert_batch(model: Backbone, images: Sequence[Image.Image], plans: Sequence[Plan], config: EditConfig,
                 progress: Progress | None = None) -> Trajectory:
    """`invert` for several pictures at once, all worked at the size of the first."""
    images = [pictures.normalise(image) for image in images]
    task = task_of(model, images, config)
    notes = [*settle(task)]
    trajectory = stepping_down(task, "inverting the picture",
                               lambda: _inverted(model, images, plans, config, task.size, progress), notes)
    return replace(trajectory, notes=tuple(notes))


def task_of(model: Backbone, images: Sequence[Image.Image], config: EditConfig) -> Task:
    """What an edit of these pictures, upright RGB, asks of memory."""
    size = pictures.working_size(*images[0].size, config.size or model.sample_size, model.pixel_multiple, config.fit)
    for_self, for_cross = (sum(c) for c in zip(*(maps_needed(config, k) for k in range(config.steps)), strict=True))
    return Task(model, size, len(images),
                (("self", config.self_level, for_self), ("cross", config.cross_level, for_cross)))


def _inverted(model: Backbone, images: Sequence[Image.Image], plans: Sequence[Plan], config: EditConfig,
              size: tuple[int, int], progress: Progress | None) -> Trajectory:
    report = progress or (lambda phase, done, total: None)
    recorder = _Recording(model, config)
    report("encode", 0, 1)
    sample = config.encode == "sample"  # each picture with the noise that it would have alone
    z = torch.cat([model.encode(pictures.to_tensor(image, size), generator(config) if sample else None)
                   for image in images])
    text = torch.cat([model.encode_text(plan.source) for plan in plans])
    factors = token_factors(plans, text) if config.reweight_passes == "all" else None
    report("encode", 1, 1)

    edges = model.schedule(config.steps, config.spacing, config.grid).inversion
    latents, conditioning = [z], model.prepare(text)

    def denoise(z: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        with recorder, ExitStack() as stack:
            if factors is not None:
                stack.enter_context(reweighted(model.sites(), factors))
            return model.denoise(z, level, conditioning)

    with torch.no_grad():
        for done, reached in enumerate(walk(denoise, z, edges), start=1):
            latents.append(reached)
            report("invert", done, len(edges))
    return Trajectory(tuple(p.source for p in plans), config, tuple(latents), tuple(recorder.maps), text,
                      images[0].size, tuple(map(pictures.digest, images)), factors, recorder.attention(z))


class _Recording:
    """Keeps, inversion step by inversion step, the maps of which sampling has need."""

    def __init__(self, model: Backbone, config: EditConfig):
        self.config, self.savings, self.maps, self._attention = config, model.savings, [], 0.0
        self.wanted = [maps_needed(config, k) for k in range(config.steps)]
        for_self, for_cross = (any(column) for column in zip(*self.wanted, strict=True))
        self.self_sites = select(model.sites(), "self", config.self_level) if for_self else []
        self.cross_sites = select(model.sites(), "cross", config.cross_level) if (
            for_cross or config.spare != "none") else []

    def __enter__(self) -> None:
        """Listen to one pass."""
        self._stack = ExitStack()
        wants_self, self._wants_cross = self.wanted[len(self.maps)]
        self._self = self._stack.enter_context(listen(self.self_sites if wants_self else []))
        self._cross = self._stack.enter_context(
            listen(self.cross_sites if self._wants_cross or self.config.spare != "none" else []))

    def __exit__(self, *error) -> None:
        self._stack.close()
        if error[0] is not None:
            return
        cross = self._cross.pop()
        self.maps.append(Maps(tuple(self._self.pop()), tuple(cross) if self._wants_cross else ()).kept(self.savings))
        if self.config.spare != "none":
            self._attention = self._attention + sum(site.map().mean(dim=1) for site in cross)  # (B, N, M)

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


def recording_key(config: EditConfig, plans: Sequence[Plan]) -> tuple:
    """Edits of the same picture with equal keys record the very same inversion, to the last bit."""
    return (tuple(getattr(config, name) for name in INVERSION_FIELDS), config.seed, config.self_level,
            config.cross_level, config.spare != "none", tuple(maps_needed(config, k) for k in range(config.steps)),
            config.reweight_passes == "all" and tuple(plan.factors for plan in plans),
            tuple(plan.source for plan in plans))


def check_trajectory(trajectory: Trajectory, plans: Sequence[Plan], config: EditConfig,
                      images: Sequence[Image.Image]) -> None:
    """SettingsError unless the trajectory is of these prompts and holds what the configuration needs."""
    if trajectory.source != tuple(plan.source for plan in plans):
        raise SettingsError(f"the trajectory is of another source prompt: {trajectory.source[0].text!r}")
    if trajectory.picture_size != images[0].size:
        raise SettingsError(f"the trajectory is of a picture of {trajectory.picture_size}, not {images[0].size}")
    if trajectory.pictures != tuple(map(pictures.digest, images)):
        raise SettingsError("the trajectory is of another picture of the same size: invert this one")
    for f in fields(EditConfig):
        a, b = getattr(trajectory.config, f.name), getattr(config, f.name)
        if f.name in INVERSION_FIELDS and a != b:
            raise SettingsError(f"the trajectory was made with {f.name}={a}, not {b}: invert again")
    if config.encode == "sample" and trajectory.config.seed != config.seed:
        raise SettingsError(f"the trajectory was made with seed={trajectory.config.seed}: invert again")
    factors = token_factors(plans, trajectory.text) if config.reweight_passes == "all" else None
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


def vae_reconstruction(model: Backbone, trajectory: Trajectory) -> Image.Image:
    """The picture after encoding and decoding alone: the best any edit can keep."""
    return pictures.to_picture(model.decode(trajectory.latents[0][:1]), trajectory.picture_size)


def ddim_reconstruction(model: Backbone, trajectory: Trajectory, progress: Progress | None = None) -> Image.Image:
    """The picture after inversion and plain sampling under the source prompt."""
    c, z = trajectory.config, trajectory.noise
    edges = model.schedule(c.steps, c.spacing, c.grid).sampling
    with torch.no_grad(), ExitStack() as stack:
        conditioning = model.prepare(trajectory.text)
        if trajectory.factors is not None:
            stack.enter_context(reweighted(model.sites(), trajectory.factors))
        steps = walk(lambda z, level: model.denoise(z, level, conditioning), trajectory.noise, edges)
        for done, reached in enumerate(steps, start=1):
            z = reached
            if progress:
                progress("reconstruct", done, len(edges))
    return pictures.to_picture(model.decode(z[:1]), trajectory.picture_size)


def generator(config: EditConfig) -> torch.Generator:
    """The random numbers of an edit, from their beginning."""
    return torch.Generator().manual_seed(config.seed)
