"""The driver without a picture: prompts in, a method's steps from noise, pictures out.  It knows no method.

    z = noise                                  of the seed, of a generator, or as given
    for step in method.generate(job): ...      progress, watching, memory and numerics are minded as in an edit
    decode(z)

Every picture of a batch is treated as if it were alone, and has a seed of its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from sage import pictures
from sage.editing import Watch, followed, settings_for
from sage.errors import SettingsError
from sage.job import Job, Progress
from sage.machine.memory import Task, own_savings, settle, stepping_down
from sage.method import Request, check_request, method_of
from sage.models.backbone import Backbone, Text
from sage.models.savings import Savings
from sage.notes import unusual
from sage.prompts.tokens import Prompt
from sage.prompts.vocabulary import about_words
from sage.settings import Settings, seed_of
from sage.trajectory.kinds import mapped

Prompted = str | Sequence[str] | Text
Generators = torch.Generator | Sequence[torch.Generator]
MOST_SIDE = 4096


@dataclass(frozen=True, eq=False)
class Generated:
    """A picture made from noise, and what it took.

    Attributes:
        pixels: (1, 3, H, W) float32 in about [-1, 1], of which `image` is the 8-bit picture.
        latents: (1, C, h, w) float32, before decoding.
        settings: what makes it again alone: its seed is this picture's own.
        notes: what was left out, and why; what was done to make it fit into memory.
        savings: what was done to need less memory; tiles change the picture a little.
    """

    image: Image.Image
    pixels: Tensor
    latents: Tensor
    settings: Settings
    notes: tuple[str, ...] = ()
    savings: Savings = Savings()


def generate(model: Backbone, prompt: Prompted, config: Settings | None = None, progress: Progress | None = None,
             watch: Watch | None = None, *, method: str | None = None, negative: Prompted = "",
             width: int | None = None, height: int | None = None, count: int = 1, generator: Generators | None = None,
             latents: Tensor | None = None, every: int = 1, truncate: bool = False,
             savings: Savings | None = None) -> list[Generated]:
    """Make pictures of prompts from noise.

    Args:
        prompt: what they shall show: one prompt or several, or embedded ones of as many rows.
        config: settings, whose class says the method; default: those that the model recommends for `method`.
        progress: called with (phase, steps done, steps in all); what it raises ends the work.
        watch: called with a step as it is done, its latents those of all pictures; what it raises ends the work.
        method: by name, or path/to/file.py:Class; default: of `config`, else "plain".
        negative: what they shall not show: one for all, or one a prompt, as words or embedded; without effect where
            guidance_scale is 1.
        width, height: in pixels, multiples of the model's `pixel_multiple`; default: the side it was trained at.
        count: pictures a prompt; the first has the seed of the settings, each further one the next.
        generator: that all noise is drawn from, one for the batch or one a picture, in place of the seeds.
        latents: (1 or B, C, h, w) the noise to start from.
        every: of how many steps one is watched, from the first.
        truncate: cut prompts that are too long.
        savings: of memory, from the first: the text encoder off the device, the autoencoder in tiles.
    Returns:
        The pictures of the first prompt, then those of the second.
    Raises:
        SageError: a prompt, setting, size or tensor that does not fit; NumericsError if numbers overflow.
    """
    config = settings_for(model, config, method, "generate")
    if count < 1 or every < 1:
        raise SettingsError(f"count is {count} and every is {every}: both must be at least 1")
    prompts = [prompt] if isinstance(prompt, str) else prompt
    negatives = [negative] if isinstance(negative, str) else negative
    if len(negatives) not in (1, len(prompts)) or not len(prompts):
        raise SettingsError(f"there are {len(prompts)} prompts and {len(negatives)} negative ones: give one negative "
                            "prompt for all, or one a prompt")
    rows = [i for i in range(len(prompts)) for _ in range(count)]
    texts = {name: given.expand(len(prompts)).rows(rows)
             for name, given in (("target", prompt), ("empty", negative)) if isinstance(given, Text)}

    def words(given: Prompted, row: int) -> str:
        return "" if isinstance(given, Text) else given[row if len(given) > 1 else 0]

    requests = [Request(target=words(prompts, i), negative=words(negatives, i)) for i in rows]
    seeds = [seed_of(config) + j for _ in range(len(prompts)) for j in range(count)]
    return generate_batch(model, requests, config, seeds, (width or model.sample_size, height or model.sample_size),
                          progress, watch, generator=generator, latents=latents, texts=texts, every=every,
                          truncate=truncate, savings=savings)


def generate_batch(model: Backbone, requests: Sequence[Request], config: Settings, seeds: Sequence[int],
                   size: tuple[int, int], progress: Progress | None = None, watch: Watch | None = None, *,
                   generator: Generators | None = None, latents: Tensor | None = None,
                   texts: Mapping[str, Text] | None = None, every: int = 1, truncate: bool = False,
                   savings: Savings | None = None) -> list[Generated]:
    """`generate` for a request and a seed a picture, all of one size in pixels (width, height), made at once.

    Args:
        texts: embedded prompts by "target" and "empty", of 1 or B rows, in place of words.
    """
    method, shape = method_of(config), _latent_shape(model, len(requests), size)
    if len(seeds) != len(requests):
        raise SettingsError(f"there are {len(requests)} pictures to make and {len(seeds)} seeds: give one a picture")
    for request in requests:
        check_request(method, request)
    own = [config.but(seed=seed) if "seed" in config.names() else config for seed in seeds]
    nothing = model.prompts.parse("")
    plans = [method.plan(model.prompts, nothing, model.prompts.parse(request.target, truncate), settings)
             for request, settings in zip(requests, own, strict=True)]
    negatives = [model.prompts.parse(request.negative, truncate) for request in requests]
    said = [about_words(model.name, model.prompts.taught, [request.target]) for request in requests]
    noise, start = _Noise(shape, seeds, generator), _start(latents, shape)
    report: Progress = progress or (lambda phase, done, total: None)
    with own_savings(model, savings):
        task = Task(model, size, len(requests), method.wants(config))
        notes = [*settle(task), *unusual(model, size, config)]

        @torch.no_grad()
        def sampled() -> Tensor:
            noise.begin()
            z = (noise() if start is None else start).to(model.device)
            job = Job(method, model, config, plans, z, requests=requests, texts=_texts(model, negatives, texts or {}),
                      noises=lambda tag: noise(), report=progress,
                      watched=getattr(watch, "looks", watch is not None))
            for step in followed(job, method.generate(job), "generate", watch, every):
                z = step.z
            return z

        z = stepping_down(task, "making the picture", sampled, notes)
        report("decode", 0, 1)
        x = stepping_down(task, "decoding the picture", lambda: model.decode(z), notes)
        report("decode", 1, 1)
        return [Generated(pictures.to_picture(x[i:i + 1], None, getattr(config, "quantise", "round")), x[i:i + 1].cpu(),
                          z[i:i + 1].cpu(), own[i], (*said[i], *plan.notes, *notes), model.savings)
                for i, plan in enumerate(plans)]


class _Noise:
    """Standard normal numbers (B, C, h, w), drawn for each picture alone or for all; the same when begun again."""

    def __init__(self, shape: tuple[int, ...], seeds: Sequence[int], generator: Generators | None):
        if generator is None:
            generator = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.generators = [generator] if isinstance(generator, torch.Generator) else list(generator)
        fine = all(isinstance(g, torch.Generator) for g in self.generators)
        if not fine or len(self.generators) not in (1, shape[0]):
            raise SettingsError(f"there are {shape[0]} pictures to make and {len(self.generators)} generators: give "
                                "one torch.Generator for all, or one a picture")
        self.shape = (shape[0] // len(self.generators), *shape[1:])
        self._states = [g.get_state() for g in self.generators]

    def begin(self) -> None:
        for generator, state in zip(self.generators, self._states, strict=True):
            generator.set_state(state)

    def __call__(self) -> Tensor:
        return torch.cat([torch.randn(self.shape, generator=g, device=g.device) for g in self.generators])


def _latent_shape(model: Backbone, batch: int, size: tuple[int, int]) -> tuple[int, ...]:
    for name, side in zip(("width", "height"), size, strict=True):
        pictures.check_side(name, side, model.pixel_multiple)
        if side > MOST_SIDE:
            raise SettingsError(f"{name} is {side}: must be at most {MOST_SIDE}")
    return (batch, *model.latent_shape(size))


def _start(latents: Tensor | None, shape: tuple[int, ...]) -> Tensor | None:
    if latents is None:
        return None
    if latents.ndim != 4 or tuple(latents.shape[1:]) != shape[1:] or len(latents) not in (1, shape[0]):
        raise SettingsError(f"the latents are of shape {tuple(latents.shape)}: pictures of this number, width and "
                            f"height need {shape}")
    if not torch.isfinite(latents).all():
        raise SettingsError("the latents are not finite")
    return latents.float().expand(shape)


def _texts(model: Backbone, negatives: Sequence[Prompt], given: Mapping[str, Text]) -> dict[str, Text]:
    """The negative prompts embedded, and what is given in place of words, with a row for each picture."""
    texts = {"empty": model.embed(negatives)}
    shape = texts["empty"].tokens.shape
    for name, text in given.items():
        if text.tokens.shape[1:] != shape[1:] or len(text) not in (1, len(negatives)):
            raise SettingsError(f"an embedded prompt is of shape {tuple(text.tokens.shape)}: this model and number of "
                                f"pictures need {tuple(shape)}")
        texts[name] = mapped(text, lambda name, t: t.to(model.device, torch.float32)).expand(len(negatives))
    return texts
