"""Edit-friendly DDPM inversion: the noises of stochastic sampling that hold the picture (2304.06140).

    z_k = s_k z0 + n_k eps_k                               each level drawn by itself, so that noises hold structure
    u_k = (z_{k-1} - mean(z_k, source)) / sigma_k          the noise that leads from one to the next
    z_{k-1} <- mean(z_k, target) + sigma_k u_k             the same noises, from a level below, another prompt

mean and sigma are those of DDIM at eta = 1 (Song et al. 2010.02502, eq. 12).  With attention carried over, as in the
benchmark of Ju et al. 2310.01506, the target looks through the maps of the source, whose latents are those recorded.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sage import kit
from sage.errors import SettingsError
from sage.guidance.injection import Carried, Injection, planned
from sage.inversion import anchors
from sage.method import LOSS, Method, Step
from sage.settings import Guidance, Picture, Preserved, Solver, Span, frozen, setting, share_of

if TYPE_CHECKING:
    from torch import Tensor

    from sage.job import Job
    from sage.models.backbone import Backbone
    from sage.prompts.plan import Plan
    from sage.prompts.tokens import Prompt, Prompts

PUBLISHED = dict(steps=100, strength=0.64, source_guidance_scale=3.5, guidance_scale=15.0, conventions="published",
                 cross_fraction=0.6, self_fraction=0.2, self_level=2, reweight_steps="window", fit="crop",
                 quantise="truncate")
BENCHMARK = PUBLISHED | dict(steps=50, strength=0.76, source_guidance_scale=1.0, guidance_scale=7.5, carry="replace",
                             cross_fraction=0.4, self_fraction=0.6)


@frozen
class Settings(Injection, Guidance, Preserved, Solver, Picture):
    """Noise."""

    fixes = frozenset({"source_guidance_scale", "eta", "conventions"})

    strength: float = setting(0.76, "share of the way to noise from which sampling starts: the more, the more may "
                              "change", low=0, high=1, search=Span(0.3, 1.0))
    source_guidance_scale: float = setting(1.0, "how strongly the source prompt is followed where the noises are found",
                                           low=0, high=100)
    eta: float = setting(1.0, "share of DDPM's noise in each step", low=0.01, high=1)
    carry: str = setting("none", "whose attention the target takes: none; that of the tokens that both prompts have; "
                         "or word by word of prompts with equally many", "none", "refine", "replace")
    self_level: int = setting(2, "halvings of the latents from which on self-attention is carried over", low=0, high=8)
    conventions: str = setting("consistent", "levels, windows of steps and the last noise, which is left out: "
                               "consistent, or as in the original code", "consistent", "published")

    @property
    def sampled_steps(self) -> int:
        """How many steps of sampling there are."""
        return share_of(self.strength, self.steps)


class DDPM(Method[Settings]):
    """Edit-friendly DDPM inversion."""

    name, title, paper = "ddpm", "Edit-friendly DDPM inversion", "2304.06140"
    about = "keeps structure by the noises that the picture itself would need; other seeds make other edits of it"
    good_at = "well-formed changes: of the methods compared it melts things least"
    reads = frozenset({"source", "target", "mask"})
    presets = {"published": PUBLISHED, "benchmark": BENCHMARK}
    calls = "N + 2 strength N; N + 3 strength N with attention carried over; N more with source_guidance_scale above 1"
    keep = "preserve_scale"
    beside = (LOSS,)
    strength = "strength"

    def defaults(self, model: "Backbone") -> Settings:
        return Settings(preserve_level=min(1, model.sites().deepest("self")))

    def worded(self, settings: Settings) -> bool:
        return settings.carry != "none"

    def plan(self, prompts: "Prompts", source: "Prompt", target: "Prompt", settings: Settings) -> "Plan":
        from dataclasses import replace
        plan = super().plan(prompts, source, target, settings)
        if settings.carry != "none":
            return planned(plan, prompts, settings)
        if not settings.reweight:
            return plan
        return replace(plan, notes=(*plan.notes, "reweight changes nothing: it is of attention that is carried over, "
                                    "as with carry refine"))

    # ---- the way to noise

    def inversion(self, settings: Settings) -> str:
        return "ddpm"

    def draws(self, settings: Settings) -> bool:
        return True

    def edges(self, model: "Backbone", settings: Settings, size: tuple[int, int]) -> tuple["kit.Edges", "kit.Edges"]:
        return anchors.edges(model, settings) or super().edges(model, settings, size)

    def invert(self, job: "Job[Settings]") -> "kit.Trajectory":
        from dataclasses import replace
        s = job.settings

        def step(z: "Tensor", i: int) -> "tuple[Tensor, float]":
            seen = job.cfg(z, job.down[i][0], job.source, job.empty, s.source_guidance_scale, "source")
            return _reaching(seen, *job.down[i], s)

        path = kit.noise_inversion(job, step)
        if s.published:
            return replace(path, noises=(*path.noises[:-1], 0 * path.noises[-1]))
        return path

    # ---- the way back

    def edit(self, job: "Job[Settings]", path: "kit.Trajectory") -> Iterator[Step]:
        s, cross = job.settings, any(site.kind == "cross" for site in job.model.sites())
        if s.carry != "none" and not cross:
            raise SettingsError(f"carry is {s.carry}: {job.model.name} has no cross-attention to carry over")
        carried = None if s.carry == "none" else Carried(job)
        first = s.steps - s.sampled_steps
        preservation = kit.Preservation(job, s.sampled_steps)
        z = path.latents[s.sampled_steps]
        for i, (here, there) in enumerate(job.down[first:]):
            source, target, recorded = None, None, path.latents[s.sampled_steps - i]
            if carried is None:
                guided = job.cfg(z, here, job.target, job.empty, s.guidance_scale)
            else:
                branches = {"negative": (z, job.empty), "source": (recorded, job.source), "target": (z, job.target)}
                with carried.at(i, branches):
                    seen = job.together(here, **branches)
                source, target = seen["source"], seen["target"]
                guided = kit.classifier_free(seen["negative"], target, s.guidance_scale)
            mean, scale = _reaching(guided, here, there, s)
            pull = preservation.pull(i, here, recorded, z)
            z = mean + scale * path.noises[first + i] - pull  # type: ignore[attr-defined]
            z = job.confined(z, path.latents[s.sampled_steps - 1 - i])
            yield Step(i, z, here, source, target, guided, mask=job.mask)


def _reaching(p: "kit.Prediction", here: "kit.Level", there: "kit.Level", s: Settings) -> "tuple[Tensor, float]":
    """Mean and scale of the noise; the original code has eta in the place of its square under the root."""
    share = s.eta**0.5 if s.published else s.eta
    mean, scale = kit.reaching(p, here, there, share)
    return mean, scale * s.eta / share
