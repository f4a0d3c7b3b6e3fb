"""LEDITS++: concepts that are added or taken away, each where it belongs (Brack et al. 2311.16711).

    eps = eps_base + sum_c s_c M1_c M2_c (eps_c - eps_base)     s_c below 0 takes a concept away
    M1  where it is looked at: cross-attention to its words, blurred, from its quantile on
    M2  where it makes a difference: |eps_c - eps_base|, from its quantile on

The noises that hold the picture are those of DDPM inversion (2304.06140), here under the steps of a second-order
solver, DPM-Solver++ (Lu et al. 2211.01095), which makes do with fewer of them.  Without concepts of its own an edit has
one: the target prompt, and the words that are new in it mark where.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sage import kit
from sage.errors import PromptError, SettingsError
from sage.method import Method, Step
from sage.settings import Factors, Picture, Solver, Span, frozen, setting

if TYPE_CHECKING:
    from torch import Tensor

    from sage.job import Job
    from sage.models.backbone import Backbone
    from sage.prompts.plan import Plan
    from sage.prompts.tokens import Prompt, Prompts

Seen = tuple[dict[str, "kit.Prediction"], dict[str, list["Tensor"]]]
PUBLISHED = dict(steps=30, skip=0.15, source_text="empty", source_guidance_scale=3.5, guidance_scale=5.0,
                 mask_quantile=0.9, conventions="published")
LATE = 800  # the timestep from which on differences say where; before, they are everywhere
BLUR = 0.5**0.5  # deviation, in places


@frozen
class Settings(Solver, Picture):
    """Concepts."""

    free = frozenset({"add", "remove", "quantiles"})
    fixes = frozenset({"skip", "solver", "source_text", "source_guidance_scale", "conventions"})

    add: Factors = setting({}, "concepts to add, each with its scale: CONCEPT:SCALE,...; where none is named here or "
                           "below, the target prompt is the concept", low=0)
    remove: Factors = setting({}, "concepts to take away, each with its scale: CONCEPT:SCALE,...", low=0)
    guidance_scale: float = setting(5.0, "scale of the target prompt where it is the concept", low=0, high=100,
                                    search=Span(1, 12, log=True))
    masks: str = setting("both", "where a concept acts: where it is looked at and makes a difference, where one of the "
                         "two, or everywhere", "both", "attention", "difference", "none")
    mask_quantile: float = setting(0.9, "share of the places that each of the masks leaves out", low=0, high=1,
                                   search=Span(0.4, 0.95))
    quantiles: Factors = setting({}, "the same for single concepts: CONCEPT:SHARE,...", low=0, high=1)
    warmup: int = setting(0, "steps before concepts act", low=0, high=1000)
    cooldown: int | None = setting(None, "steps after which they no longer do; default: none", low=0, high=1000)
    skip: float = setting(0.15, "share of steps, beside those that are taken, left out at the noisy end: the more, the "
                          "less may change", low=0, high=10, search=Span(0.0, 0.5))
    solver: str = setting("second-order", "steps: DPM-Solver++ of second order, or DDPM's", "second-order", "ddpm")
    source_text: str = setting("source", "what the picture is inverted under and concepts lead away from: the source "
                               "prompt, or the empty one", "source", "empty")
    source_guidance_scale: float = setting(1.0, "how strongly the source prompt is followed", low=0, high=100)
    cross_level: int = setting(2, "halvings of the latents at which attention is read", low=0, high=8)
    conventions: str = setting("consistent", "levels, the last noise, and what leads the edit under the source prompt: "
                               "consistent, or as in diffusers' pipeline", "consistent", "published")

    @property
    def own(self) -> dict[str, float]:
        """The concepts that are named, with their signs."""
        return {**self.add, **{concept: -scale for concept, scale in self.remove.items()}}


class LEdits(Method[Settings]):
    """LEDITS++."""

    name, title, paper = "ledits", "LEDITS++", "2311.16711"
    about = "adds and takes away several concepts at once, each inside a mask of its own; needs no target prompt"
    good_at = "several changes at once, each confined to its place"
    reads = frozenset({"source", "target", "negative", "mask"})
    texts = ("concept:",)
    presets = {"published": PUBLISHED}
    keep = "mask_quantile"
    calls = "N + N (1 + concepts); N more each way under the source prompt with source_guidance_scale other than 1"

    def defaults(self, model: "Backbone") -> Settings:
        side = model.latent_shape((model.sample_size, model.sample_size))[1]
        levels = {site.level for site in model.sites() if site.kind == "cross" and site.place != "mid"} or {0}
        fine = [level for level in levels if side >> level >= 16] or [min(levels)]  # 16 x 16 on Stable Diffusion
        return Settings(cross_level=max(fine))

    def fits(self, model: "Backbone") -> str:
        return "" if any(site.kind == "cross" for site in model.sites()) else "it has no cross-attention"

    def plan(self, prompts: "Prompts", source: "Prompt", target: "Prompt", settings: Settings) -> "Plan":
        from dataclasses import replace
        plan, own = super().plan(prompts, source, target, settings), settings.own
        if both := [concept for concept in settings.add if concept in settings.remove]:
            raise SettingsError(f"{both[0]!r} is to be added and taken away: give it once")
        for concept in own:
            if not prompts.parse(concept).text:
                raise PromptError("a concept is empty: name what is to be added or taken away")
        notes = [f"quantiles names {concept!r}, which is neither added nor taken away"
                 for concept in settings.quantiles if concept not in own]
        if not own and plan.edited and not any(span.target for span in plan.edited):
            notes.append("no word of the target prompt is new: where it acts is told by the difference that it makes "
                         "alone")
        return replace(plan, notes=(*plan.notes, *notes))

    # ---- the way to noise

    def inversion(self, settings: Settings) -> str:
        return "ledits"

    def draws(self, settings: Settings) -> bool:
        return True

    def edges(self, model: "Backbone", settings: Settings, size: tuple[int, int]) -> tuple["kit.Edges", "kit.Edges"]:
        n = settings.steps
        if settings.conventions == "published":
            cleanest = kit.of_timesteps(model, "cleanest")
            levels = cleanest(n, int(n * (1 + settings.skip)), settings.solver == "second-order")
        else:
            total = int(round(n * (1 + settings.skip), 9))
            levels = model.schedule.levels(total, settings.spacing, size)[:n + 1]
        return kit.upwards(levels), kit.downwards(levels)

    def invert(self, job: "Job[Settings]") -> "kit.Trajectory":
        from dataclasses import replace
        steps = Steps(job)
        path = kit.noise_inversion(job, lambda z, i: steps.reaching(i, _base(job, z, job.down[i][0], job.nothing)))
        if job.settings.conventions == "published" and job.down[-1][1].noise == 0:
            return replace(path, noises=(*path.noises[:-1], 0 * path.noises[-1]))
        return path

    # ---- the way back

    def edit(self, job: "Job[Settings]", path: "kit.Trajectory") -> Iterator[Step]:
        s, steps, concepts, z = job.settings, Steps(job), _concepts(job), path.noise
        for i, (here, _) in enumerate(job.down):
            active = concepts if s.warmup <= i < (s.steps if s.cooldown is None else s.cooldown) else ()
            # diffusers leads the edit from the empty prompt, whatever it has inverted under
            base = _base(job, z, here, job.empty) if s.conventions == "consistent" else job.predict(z, here, job.empty)
            seen, maps = _seen(job, z, here, active)
            guided, mask = base, None
            for concept in active:
                change = seen[concept.name] - base
                m = _where(job, concept, change, maps[concept.name], here)
                guided = guided + concept.scale * m * change
                mask = m if mask is None else mask.maximum(m)
            mean, scale = steps.reaching(i, guided)
            z = mean + scale * path.noises[i]  # type: ignore[attr-defined]
            if s.conventions == "consistent":
                z = job.confined(z, path.latents[-2 - i])
            yield Step(i, z, here, base, seen.get("target"), guided, mask=mask)


@dataclass(frozen=True)
class Concept:
    """What is added or taken away.

    Attributes:
        scale: below 0 to take it away.
        quantile: share of the places that each mask leaves out.
        tokens: (B, M) in {0, 1}: the words of it that say where; none for everywhere.
        acts: (B, 1, 1, 1) in {0, 1}: whether there is anything to do for a picture.
    """

    name: str
    text: "kit.Text"
    scale: float
    quantile: float
    tokens: "Tensor"
    acts: "Tensor"


def _concepts(job: "Job[Settings]") -> tuple[Concept, ...]:
    """Those of the settings, or the target prompt."""
    import torch
    s, prompts, plans = job.settings, job.model.prompts, job.plans
    length, published = job.empty.tokens.shape[1], s.conventions == "published"

    def words(prompt: "Prompt") -> range:
        return range(1, len(prompts.tokens(prompt)) - 1)

    def marks(rows: Sequence[Sequence[int]]) -> "Tensor":
        return kit.token_mask(rows, length).to(job.z0.device)

    if s.own:
        return tuple(Concept(f"concept:{c}", job.text(f"concept:{c}", c), scale, s.quantiles.get(c, s.mask_quantile),
                             marks([words(prompts.parse(c))] * len(plans)), torch.ones_like(job.z0[:, :1, :1, :1]))
                     for c, scale in s.own.items())
    new = [words(plan.target) if published else [p for span in plan.edited for p in span.target] for plan in plans]
    acts = [[[[float(published or bool(plan.edited))]]] for plan in plans]
    return (Concept("target", job.target, s.guidance_scale, s.mask_quantile, marks(new), job.z0.new_tensor(acts)),)


def _base(job: "Job[Settings]", z: "Tensor", here: "kit.Level", empty: "kit.Text") -> "kit.Prediction":
    """What noises are found under, and concepts lead away from."""
    w = job.settings.source_guidance_scale
    if job.settings.source_text == "empty":
        return job.predict(z, here, empty)
    if job.settings.conventions == "published":  # the pipeline takes one prompt for the other
        return job.cfg(z, here, empty, job.source, w, "")
    return job.cfg(z, here, job.source, empty, w, "source")


def _seen(job: "Job[Settings]", z: "Tensor", here: "kit.Level", concepts: "Sequence[Concept]") -> "Seen":
    """What is predicted under each concept, and the maps (B, H, N, M) that say where, by its name."""
    if not concepts:
        return {}, {}
    s, branches = job.settings, {concept.name: (z, concept.text) for concept in concepts}
    listens = s.masks in ("both", "attention")
    with kit.record(job.model.sites().at(kit.Where("cross", s.cross_level)) if listens else ()) as tap:
        seen = job.together(here, **branches)
    maps = [m.chunk(len(branches)) for m in tap.pop()]
    return seen, {name: [m[i] for m in maps] for i, name in enumerate(branches)}


def _where(job: "Job[Settings]", concept: Concept, change: "kit.Prediction", maps: "list[Tensor]",
           here: "kit.Level") -> "Tensor":
    """(B, 1, h, w) in {0, 1}: where a concept acts."""
    s, (rows, columns) = job.settings, change.eps.shape[-2:]
    allowed = concept.acts if job.mask is None else concept.acts * job.mask
    m = allowed.expand(-1, 1, rows, columns)
    if maps and s.masks in ("both", "attention"):
        grid = job.model.sites().at(kit.Where("cross", s.cross_level))[0].grid(rows, columns)
        if min(grid) < 2:
            raise SettingsError(f"cross_level is {s.cross_level}: attention there has {grid[0]} x {grid[1]} places, "
                                "too few to say where; give a smaller one")
        look = kit.gaussian_blur(kit.token_attention(maps, concept.tokens, *grid), 3, BLUR)
        words = concept.tokens.any(dim=1)[:, None, None, None]
        m = m * kit.resize(kit.upper(look, concept.quantile) | ~words, rows, columns)
    if s.masks == "difference" or (s.masks == "both" and here.t <= LATE):
        m = m * kit.upper((allowed * change.eps).abs().sum(dim=1, keepdim=True), concept.quantile)
    return m


class Steps:
    """The stochastic steps of one way down; those of second order remember what was predicted last."""

    def __init__(self, job: "Job[Settings]"):
        self.edges, self.second = job.down, job.settings.solver == "second-order"
        self._last: kit.Prediction | None = None

    def reaching(self, i: int, p: "kit.Prediction") -> "tuple[Tensor, float]":
        """Mean and scale of the noise of step `i`; the first and the last are of first order."""
        before, self._last = self._last, p
        here, there = self.edges[i]
        if self.second and before is not None and i + 1 < len(self.edges):
            p = kit.second_order(p, before, self.edges[i - 1][0], here, there)
        return kit.reaching(p, here, there)

