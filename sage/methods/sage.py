"""SAGE: self-attention guidance for image editing (arXiv 2505.09571).

    invert   z0 -> z_T under the source prompt, recording attention maps A_ref
    sample   eps = eps_source + w (eps_target - eps_source)
             z  <- DDIM(z, eps) - scale decay grad_z mean|A - A_ref|
             z  <- M z + (1 - M) z_inverted                     M by attention, by differences, or by hand

docs/method.md gives each line its place in the paper, and every point where paper and released code differ.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import cached_property, partial, reduce
from operator import add
from typing import TYPE_CHECKING, Any

from sage import kit
from sage.errors import NumericsError
from sage.inversion import exact
from sage.inversion.uni import uni_inversion
from sage.method import Method, Step
from sage.settings import AUTO, Blending, Guidance, Phrases, Picture, Retry, Solver, Span, Words, frozen, setting

if TYPE_CHECKING:
    from torch import Tensor

    from sage.job import Job
    from sage.models.backbone import Backbone
    from sage.prompts.plan import Plan
    from sage.prompts.tokens import Prompt, Prompts

RELEASED = dict(decay="released", grid="released", blend_latents="noisier", mask="sum", blend_match="words",
                reweight_passes="all", middle="taken", fit="squash", quantise="truncate", seed=8888)


@frozen
class Inversion(exact.Implicit):
    """Inversion."""

    inversion: str = setting("ddim", "the way to noise: DDIM's, as in the paper, which is Euler's for a flow; its step "
                             "solved for its end, so that sampling under the source prompt leads back along it; or "
                             "with a look ahead (Uni-Inv), which nearly does so at the same price", "ddim",
                             "fixed-point", "uni")

    def fixed(self) -> dict[str, Any]:
        own = exact.Implicit.names() if self.inversion == "fixed-point" else ()
        return super().fixed() | {name: getattr(self, name) for name in own}


@frozen
class Reconstruction(Solver):
    """Reconstruction."""

    reconstruction: str = setting("self", "what keeps the unmentioned: gradient of the loss on self-attention maps, on "
                                  "cross-attention maps, on the predicted clean latents; replacement of self-attention "
                                  "maps; or nothing", "self", "cross", "latent", "replace", "none")
    reconstruction_scale: float = setting(200.0, "step size of the reconstruction gradient at every guided step: with "
                                          "more steps take less", low=0, search=Span(1, 300, log=True))
    loss_gain: float = setting(500.0, "factor on the loss; with reconstruction_scale the whole step size", low=0)
    step_limit: float = setting(0.0, "largest change of the latents by the gradient in one step, root mean square; 0 "
                                "for none", low=0, search=(0.0, 0.01, 0.03))
    map_loss: str = setting("l1", "distance between current and recorded maps", "l1", "l2")
    self_level: int = setting(1, "halvings of the latents at which self-attention maps are compared", low=0, high=8)
    pairing: str = setting("transition", "the recorded maps a sampling step is held to: those of the inversion step "
                           "that it undoes, or those of the level it starts from", "transition", "level")
    spare: str = setting("none", "places left out of the loss on self-attention maps: none, those that look at words "
                         "which the target prompt drops, or at any that it changes", "none", "removed", "edited")
    guided_steps: int = setting(41, "steps, from the first, that are guided by reconstruction", low=0, high=1000)
    decay: str = setting("linear", "weight of guided step i of N: linear 1 - i/N, none 1, released 1 - i/(N + 1)",
                         "linear", "none", "released")

    def decay_weight(self, step: int) -> float:
        """Weight of the reconstruction gradient at sampling step `step`; 0 from `guided_steps` on."""
        if step >= self.guided_steps:
            return 0.0
        return {"linear": 1 - step / self.steps, "none": 1.0, "released": 1 - step / (self.steps + 1)}[self.decay]

    def strength(self, step: int) -> float:
        """What the gradient is multiplied by at sampling step `step`."""
        return self.reconstruction_scale * self.loss_gain * self.decay_weight(step)

    def compared_with(self, step: int) -> int | None:
        """The inversion step whose maps sampling step `step` is held to, None where it is held to none.

        By level, the first sampling step has the very latents that its maps would be of: the loss is zero, and what L1
        makes of rounding would be its gradient.
        """
        if self.pairing == "transition":
            return self.steps - 1 - step
        return self.steps - step if step else None

    def guided(self, step: int) -> bool:
        """Whether a gradient is taken at sampling step `step`: none where its weight is zero."""
        return (self.reconstruction in ("self", "cross", "latent") and self.strength(step) > 0
                and self.compared_with(step) is not None)


@frozen
class Replacement(Words, Solver):
    """Attention."""

    replace: Phrases = setting(AUTO, "phrases whose cross-attention is carried over: auto (what differs between the "
                               "prompts), none, or SOURCE,TARGET")
    replace_fraction: float = setting(0.1, "share of the steps, from the first, with replacement", low=0, high=1)

    @property
    def replace_steps(self) -> int:
        """Sampling steps with cross-attention replacement."""
        return min(int((self.steps + 1) * self.replace_fraction), self.steps)


@frozen
class Released(Picture):
    """Released code."""

    fixes = frozenset({"grid"})

    noise_fraction: float = setting(0.0, "fresh noise mixed into the inverted latents", low=0, high=1)
    grid: str = setting("consistent", "noise levels: the same both ways, or as diffusers 0.21.4 infers them",
                        "consistent", "released")
    blend_latents: str = setting("same", "recorded latents to blend in: of the same level, or one level noisier",
                                 "same", "noisier")
    mask: str = setting("union", "mask: union of a mask per prompt, or one mask of their summed maps", "union", "sum")
    reweight_passes: str = setting("target", "passes that are reweighted: the target's, or all, inversion included",
                                   "target", "all")
    middle: str = setting("left out", "attention in the middle of the network: left out; or taken at its level, as in "
                          "the released code, which tells layers by their size", "left out", "taken")
    reconstruction_mask_floor: float = setting(1.0, "below 1: the gradient times 1 - mask, at least this", low=0,
                                               high=1)
    guidance_mask_floor: float = setting(1.0, "below 1: the guidance scale times the mask, at least this", low=0,
                                         high=1)

    @property
    def floors(self) -> bool:
        """Whether the mask also weighs guidance or gradient, and is wanted at every step."""
        return min(self.reconstruction_mask_floor, self.guidance_mask_floor) < 1


@frozen
class Settings(Guidance, Reconstruction, Inversion, Replacement, Blending, Retry, Released):
    """The settings of SAGE; the defaults are those for Stable Diffusion 1.x at 512 pixels.

    At guided step i the latents lose reconstruction_scale x loss_gain x decay(i) x the gradient of the mean loss,
    whatever the device and precision.

    Raises:
        SettingsError: a value of the wrong type or out of its range, named with what is allowed.
    """

    @classmethod
    def published(cls, **changes: Any) -> "Settings":
        """The released SAGE code on diffusers 0.21.4, on CUDA; on a CPU it used loss_gain=300.

        Args:
            changes: settings to be otherwise.
        Raises:
            SettingsError: a setting that does not exist, or a wrong value.
        """
        return cls.from_dict({**RELEASED, **changes})

    def blends_at(self, step: int) -> bool:
        """Whether sampling step `step` is followed by blending."""
        if self.grid == "released":
            return step < self.blend_fraction * self.steps  # the product as it is: 0.55 x 100 is above 55
        return super().blends_at(step)

    def where(self, kind: str) -> "kit.Where":
        """The sites whose "self"- or "cross"-attention is read."""
        return kit.Where(kind, self.self_level if kind == "self" else self.cross_level,
                         place="all" if self.middle == "taken" else "")


EditConfig = Settings  # by which the library knows them


class SAGE(Method[Settings]):
    """Self-attention guidance."""

    name, title, paper = "sage", "Self-attention guidance", "2505.09571"
    about = "holds the picture by the gradient of the distance between self-attention maps; strict about what is kept"
    good_at = "doing what is asked at little harm elsewhere: ahead of all else that starts from DDIM's inversion"
    reads = frozenset({"source", "target", "mask"})
    presets = {"published": RELEASED}
    keep = "reconstruction_scale"
    beside = ("fixed-point", "uni")
    calls = ("3 N, 4 N + 1 with uni, or N rounds + 3 N + 1, some 7 N, with fixed-point; and a way back through the "
             "network at each guided step")

    def defaults(self, model: "Backbone") -> Settings:
        """SD 1.x at 512 and 2.1-base as published, SD 2.1 at 768 as its authors' demo."""
        levels = [site.level for site in model.sites() if site.place != "mid"] or [0]
        if model.sample_size >= 768 and max(levels) >= 2:
            return Settings(self_level=2, cross_level=2, reconstruction_scale=50.0)
        return Settings(self_level=min(1, max(levels)), cross_level=min(2, max(levels)))

    def plan(self, prompts: "Prompts", source: "Prompt", target: "Prompt", settings: Settings) -> "Plan":
        from dataclasses import replace
        plan = super().plan(prompts, source, target, settings)
        spans, notes = kit.replaced(prompts, plan, settings.replace)
        return replace(plan, replace=spans, notes=(*notes, *plan.notes))

    def notes(self, settings: Settings, plan: "Plan") -> tuple[str, ...]:
        if not (plan.replace and settings.replace_fraction and not settings.replace_steps):
            return plan.notes
        return (*plan.notes, f"cross-attention replacement is off: {settings.replace_fraction:g} of {settings.steps} "
                             "steps is not one; give a larger replace_fraction or none for replace")

    # ---- the way to noise

    def inversion(self, settings: Settings) -> str:
        return "uni, in full" if settings.inversion == "uni" else settings.inversion

    def wants(self, settings: Settings) -> tuple["kit.Wanted", ...]:
        s, steps = settings, range(settings.steps)
        compared = frozenset(k for i in steps if (k := s.compared_with(i)) is not None and k < s.steps
                             and (s.reconstruction == "replace" or s.guided(i)))
        undone = frozenset(s.steps - 1 - i for i in range(s.replace_steps)) if s.replace is not None else frozenset()
        everywhere = frozenset(steps) if s.spare != "none" else frozenset[int]()
        wanted = (kit.Wanted(s.where("self"),
                             compared if s.reconstruction in ("self", "replace") else frozenset()),
                  kit.Wanted(s.where("cross"),
                             undone | everywhere | (compared if s.reconstruction == "cross" else frozenset())))
        return tuple(want for want in wanted if want.steps)

    def follows_target(self, settings: Settings) -> bool:
        return settings.reweight_passes == "all" and bool(settings.reweight)

    def random(self, settings: Settings) -> bool:
        return self.draws(settings) or settings.noise_fraction > 0

    def edges(self, model: "Backbone", settings: Settings, size: tuple[int, int]) -> tuple["kit.Edges", "kit.Edges"]:
        if settings.grid == "consistent":
            return super().edges(model, settings, size)
        return kit.of_timesteps(model, "inferred", "grid is released")(settings.steps, settings.spacing)

    def invert(self, job: "Job[Settings]") -> "kit.Trajectory":
        around: Callable[[], AbstractContextManager[None]] = nullcontext
        if job.settings.reweight_passes == "all" and job.factors is not None:
            around = partial(kit.reweighted, job.model.sites(), job.factors)
        wants = self.wants(job.settings)
        if job.settings.inversion == "ddim":
            return kit.ddim_inversion(job, job.source, wants, around=around)

        def predict(z: "Tensor", level: "kit.Level") -> "kit.Prediction":
            with around():
                return job.predict(z, level, job.source)

        if job.settings.inversion == "uni":
            return kit.heard_along(job, predict, uni_inversion(job, predict), wants)
        settled = exact.fixed_point_inversion(job, predict)
        exact.note_unsettled(job, settled)
        return kit.heard_along(job, predict, settled, wants)

    def reconstructing(self, model: "Backbone", path: "kit.Trajectory") -> AbstractContextManager[None]:
        settings, target = path.config, path.origin.target
        if target is None or not isinstance(settings, Settings):
            return nullcontext()
        plan = self.plan(model.prompts, path.origin.source[0], target[0], settings)
        factors = kit.token_factors([plan], len(plan.target.ids))
        return nullcontext() if factors is None else kit.reweighted(model.sites(), factors.to(path.noise.device))

    # ---- the way back

    def edit(self, job: "Job[Settings]", path: "kit.Trajectory") -> Iterator[Step]:
        s, passes = job.settings, _Passes(job, path)
        blend, blends = passes.blend, passes.blend.used and (s.blend_fraction > 0 or s.floors)
        z = path.noise if s.noise_fraction == 0 else kit.mixed_with_noise(path.noise, job.noise(), s.noise_fraction)
        for i, (here, there) in enumerate(job.down):
            source, target, g, loss = passes.at(i, z, here)
            blend.add_difference(target.eps - source.eps)
            w: float | Tensor = s.guidance_scale
            if s.guidance_mask_floor < 1:
                w = w * blend.floored(s.guidance_mask_floor, z)
            guided = source + w * (target - source)
            z, m = kit.renoise(guided, there), None
            if g is not None:
                if s.reconstruction_mask_floor < 1:
                    g = g * blend.floored(s.reconstruction_mask_floor, z, inverse=True)
                g = kit.limited(passes.gain * s.strength(i) * g, passes.gain * s.step_limit)
                z = z - g
            if blends and s.blends_at(i):
                m = blend.at(z)
                z = m * z + (1 - m) * path.latents[s.steps - i if s.blend_latents == "noisier" else s.steps - 1 - i]
            z = job.confined(z, path.latents[s.steps - 1 - i])
            yield Step(i, z, here, source, target, guided, g, loss, m)

    def compares(self, settings: Settings) -> str:
        compared = {"self": "self-attention maps", "cross": "cross-attention maps",
                    "latent": "predicted clean latents"}.get(settings.reconstruction)
        distance = {"l1": "mean distance", "l2": "mean squared distance"}[settings.map_loss]
        return f"{distance} of {compared} from those recorded" if compared else ""

    def gentler(self, settings: Settings) -> Settings:
        w = settings.guidance_scale
        return settings.but(guidance_scale=(w + min(w, 1)) / 2, reconstruction_scale=settings.reconstruction_scale / 2)


class _Passes:
    """What a sampling step asks of the network: the prediction under each prompt, and the gradient of the loss.

        target pass   cross-attention replaced and reweighted
        source pass   queries and keys heard, to be compared with those of the inversion; differentiated

    Where a step wants no gradient and changes no attention, both passes are one batch.
    """

    def __init__(self, job: "Job[Settings]", path: "kit.Trajectory"):
        s = job.settings
        self.job, self.path, self.s = job, path, s
        self.gain = job.gain([s.strength(i) if s.guided(i) else 0.0 for i in range(s.steps)])
        sites = job.model.sites()
        self.replaces = any(plan.replace for plan in job.plans)
        self.selfs, self.crosses = s.where("self"), s.where("cross")
        heard = {want.where: path.of(want) for want in SAGE().wants(s)} if isinstance(path, kit.Recorded) else {}
        self.heard_self, self.heard_cross = heard.get(self.selfs, ()), heard.get(self.crosses, ())
        self.self_sites = sites.at(self.selfs) if s.reconstruction in ("self", "replace") else kit.Sites()
        self.cross_sites = sites.at(self.crosses) if self.replaces or s.reconstruction == "cross" else kit.Sites()
        self.blend = kit.BlendingMask.of_job(job, path.noise, self.crosses, union=s.mask == "union")

    def at(self, step: int, z: "Tensor", level: "kit.Level") -> tuple["kit.Prediction", "kit.Prediction",
                                                                      "Tensor | None", tuple[float, ...] | None]:
        """The predictions under the source and the target prompt, the gradient of the loss, and its value a picture.

        Raises:
            NumericsError: the gradient is not finite, in float32 neither.
        """
        s, job, blend = self.s, self.job, self.blend
        marking = s.floors or s.blends_at(step)
        if not (self._guided(step) or self._replaces(step) or job.factors is not None or s.reconstruction == "replace"):
            return *self._in_one(z, level, marking), None, None
        with ExitStack() as stack:
            if self._replaces(step):
                undone = self.heard_cross[s.steps - 1 - step]
                stack.enter_context(kit.rewrite_columns(self.cross_sites, undone or (), *self._carried))
            tap = stack.enter_context(blend.listen(marking))
            if job.factors is not None:
                stack.enter_context(kit.reweighted(job.model.sites(), job.factors))
            target = job.predict(z, level, job.target, "target")
        blend.add(tap, "target")
        source, g, loss, tap = self._source(step, z, level, marking)
        if g is not None and not g.isfinite().all():
            with job.model.full_precision():
                source, g, loss, tap = self._source(step, z, level, marking)
            if not g.isfinite().all():
                raise NumericsError(f"the reconstruction gradient at step {step + 1} is not finite, in float32 too: "
                                    "nothing was written; try a smaller reconstruction_scale")
        blend.add(tap, "source")
        return source, target, g, loss

    def _in_one(self, z: "Tensor", level: "kit.Level", marking: bool) -> tuple["kit.Prediction", "kit.Prediction"]:
        with self.blend.listen(marking) as tap:
            both = self.job.together(level, source=(z, self.job.source), target=(z, self.job.target))
        self.blend.add(tap, "source", "target")
        return both["source"], both["target"]

    def _source(self, step: int, z: "Tensor", level: "kit.Level", marking: bool) -> tuple[Any, ...]:
        import torch
        s, job, held, guided = self.s, self.job, self.s.compared_with(step), self._guided(step)
        z = z.clone().requires_grad_(guided)
        with torch.set_grad_enabled(guided), ExitStack() as stack:
            if s.reconstruction == "replace" and held is not None:
                stack.enter_context(kit.rewrite_maps(self.self_sites, self.heard_self[held] or ()))
            tap = stack.enter_context(self.blend.listen(marking))
            if job.factors is not None and s.reweight_passes == "all":
                stack.enter_context(kit.reweighted(job.model.sites(), job.factors))
            compared = {"self": self.self_sites, "cross": self.cross_sites}.get(s.reconstruction, kit.Sites())
            heard = stack.enter_context(kit.listen(compared if guided else kit.Sites(), last=True))
            seen = job.predict(z, level, job.source, "source")
        source = seen.detach()
        if not guided or held is None:
            return source, None, None, tap
        if s.reconstruction == "latent":
            current = [seen.x0]
            losses, slopes = kit.latent_slopes(seen.x0, self.path.latents[0], s.map_loss)
        else:
            pairs = heard.pop()
            current = [t for pair in pairs for t in pair]
            reference = (self.heard_self if s.reconstruction == "self" else self.heard_cross)[held]
            losses, slopes = kit.map_slopes(pairs, reference or (), s.map_loss, self._spared)
            del pairs
        del seen
        used = [(t, slope) for t, slope in zip(current, slopes, strict=True) if t.requires_grad]  # not a text's keys
        g = kit.gradient([t for t, _ in used], [slope for _, slope in used], z)
        return source, g, tuple(losses.tolist()), tap

    def _guided(self, step: int) -> bool:
        return self.s.guided(step) and self.job.in_full(step)

    def _replaces(self, step: int) -> bool:
        return self.replaces and step < self.s.replace_steps

    @cached_property
    def _carried(self) -> tuple["Tensor", "Tensor"]:
        """(B, M, M) and (B, M): which columns of the source's maps become which of the target's, and which stay."""
        import torch
        length = self.job.target.tokens.shape[1]
        carry, keep = zip(*(kit.replacement(plan.replace, length) for plan in self.job.plans), strict=True)
        return torch.stack(carry).to(self.path.noise.device), torch.stack(keep).to(self.path.noise.device)

    @cached_property
    def _spared(self) -> "Tensor | None":
        """(B, N, N) weights of the entries of self-attention maps: 0 where either place is left out of the loss."""
        s, z = self.s, self.path.noise
        if s.spare == "none" or s.reconstruction != "self":
            return None
        sites = self.job.model.sites().at(self.crosses)
        total = reduce(add, (pair.map().mean(dim=1) for pairs in self.heard_cross for pair in pairs or ()))  # (B, N, M)
        tokens = kit.token_mask([[p for span in plan.edited if s.spare == "edited" or not span.target
                                  for p in span.source] for plan in self.job.plans], total.shape[-1]).to(z.device)
        looks = (total / len(self.heard_cross) * tokens[:, None]).sum(dim=-1)
        spared = kit.threshold(looks.reshape(-1, 1, *sites[0].grid(*z.shape[-2:])), s.blend_threshold)
        kept = 1 - kit.resize(spared, *self.self_sites[0].grid(*z.shape[-2:])).flatten(1)  # (B, N)
        return kept[:, :, None] * kept[:, None]
