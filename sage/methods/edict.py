"""EDICT: two coupled latents, each stepped by what is predicted for the other, so that every step can be undone.

    x1 = a x + b eps(y),    y1 = a y + b eps(x1)           a DDIM step each; which one comes first alternates
    x' = p x1 + (1 - p) y1, y' = (1 - p) x' + p y1         mixed, lest they part             (Wallace et al. 2211.12446)

Inversion is the same solved backwards, for any prompt and any guidance.  The target can be given the source's attention
at the same latents, as in prompt-to-prompt; that belongs to the paper's code.
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Any

from sage import kit
from sage.errors import SettingsError
from sage.inversion import exact
from sage.method import Method, Step
from sage.settings import Picture, Span, frozen, setting, share_of

if TYPE_CHECKING:
    from torch import Tensor

    from sage.job import Job
    from sage.models.backbone import Backbone
    from sage.prompts.plan import Plan
    from sage.prompts.tokens import Prompt, Prompts

PUBLISHED = dict(steps=50, strength=0.8, mixing=0.93, guidance_scale=3.0, guided_from="empty", attention="own",
                 conventions="published", precision="float64", encode="sample", fit="crop", seed=1)


@frozen
class Settings(exact.TwoStates, Picture):
    """Coupling."""

    fixes = frozenset({"mixing"})

    mixing: float = setting(0.93, "p: what each of the two latents keeps of itself in a step; 1 leaves them apart, and "
                            "with less both ways grow unlike DDIM", low=0.5, high=1, search=Span(0.85, 1.0))
    attention: str = setting("own", "attention of the target: its own; or the source's at the same latents, cross-"
                             "attention where the prompts agree", "own", "source")
    cross_fraction: float = setting(1.0, "share of the steps, from the first, with the source's cross-attention", low=0,
                                    high=1)
    self_fraction: float = setting(1.0, "share of the steps, from the first, with the source's self-attention", low=0,
                                   high=1)


class EDICT(Method[Settings]):
    """Exact diffusion inversion by coupled transformations."""

    name, title, paper = "edict", "EDICT", "2211.12446"
    about = "inverts to rounding by two coupled latents, under guidance too; keeps what the words leave, not a place"
    good_at = "giving the picture back to rounding, guided or not"
    reads = frozenset({"source", "target", "negative"})
    presets = {"published": PUBLISHED}
    calls = "6 strength N; with guided_from=empty 8 strength N, and 10 with the source's attention"

    def worded(self, settings: Settings) -> bool:
        return settings.attention == "source"

    def plan(self, prompts: "Prompts", source: "Prompt", target: "Prompt", settings: Settings) -> "Plan":
        from dataclasses import replace
        return replace(super().plan(prompts, source, target, settings), aligned=kit.paired(source.ids, target.ids))

    def edges(self, model: "Backbone", settings: Settings, size: tuple[int, int]) -> tuple["kit.Edges", "kit.Edges"]:
        up, down = exact.part_way(model, settings, super().edges(model, settings, size))
        if down and down[0][0].signal == 0:
            raise SettingsError(f"the noisiest level of {model.name} has no signal to divide by: give a strength below "
                                "1, or spacing=leading")
        return up, down

    # ---- the way to noise

    def inversion(self, settings: Settings) -> str:
        return "edict"

    def invert(self, job: "Job[Settings]") -> "kit.Trajectory":
        p, latents, pair = job.settings.mixing, [job.z0], [job.z0.double()] * 2
        for i, (here, there) in reversed(list(enumerate(job.down))):
            a, b = kit.affine(here, there)
            pair[1] = (pair[1] - (1 - p) * pair[0]) / p
            pair[0] = (pair[0] - (1 - p) * pair[1]) / p
            with exact.precise(job):
                for k in (1 - i % 2, i % 2):
                    pair[k] = (pair[k] - b * exact.guided(job, pair[1 - k], here, job.source).eps.double()) / a
            latents.append(pair[0].to(job.z0.dtype))
            job.report("invert", len(latents) - 1, len(job.down))
        return kit.Pair(origin=None, latents=tuple(latents), states=tuple(pair))  # type: ignore[arg-type]

    # ---- the way back

    def back(self, job: "Job[Settings]", path: "kit.Trajectory") -> "Iterator[Tensor]":
        for step in self._sampled(job, path, lambda i, z, level: {"guided": exact.guided(job, z, level, job.source)}):
            yield step.z

    def edit(self, job: "Job[Settings]", path: "kit.Trajectory") -> Iterator[Step]:
        if job.settings.attention == "own":
            return self._sampled(job, path, lambda i, z, level: {"guided": exact.guided(job, z, level, job.target)})
        return self._sampled(job, path, Lent(job))

    def _sampled(self, job: "Job[Settings]", path: "kit.Trajectory", predict: Any) -> Iterator[Step]:
        """The steps from both states, by what `predict(step, latents, level)` names: "guided" and what shows it."""
        p, pair = job.settings.mixing, exact.states(path, job.z0)
        for i, (here, there) in enumerate(job.down):
            a, b = kit.affine(here, there)
            with exact.precise(job):
                for k in (i % 2, 1 - i % 2):
                    seen = predict(i, pair[1 - k], here)
                    pair[k] = a * pair[k] + b * seen["guided"].eps.double()
            pair[0] = p * pair[0] + (1 - p) * pair[1]
            pair[1] = (1 - p) * pair[0] + p * pair[1]
            yield Step(i, pair[0].to(job.z0.dtype), here, **seen)


class Lent:
    """What is predicted for the target when it sees through the attention that the source has at the same latents."""

    def __init__(self, job: "Job[Settings]"):
        import torch
        self.job, length = job, job.target.tokens.shape[1]
        self.selfs, self.cross = (kit.Sites(site for site in job.model.sites() if site.kind == kind)
                                  for kind in ("self", "cross"))
        maps = [kit.refinement(plan.aligned, length) for plan in job.plans]
        self.carry, self.keep = (torch.stack(part).to(job.z0.device) for part in zip(*maps, strict=True))

    def __call__(self, step: int, z: "Tensor", level: "kit.Level") -> dict[str, "kit.Prediction"]:
        job, s, z = self.job, self.job.settings, exact.in_precision(self.job, z)
        branches = {"source": (z, job.source), "target": (z, job.target)}
        if s.guided_from == "empty":
            branches = {"negative": (z, job.empty)} | branches
        with self._at(step, branches):
            seen = job.together(level, **branches)
        guided = kit.classifier_free(seen.get("negative", seen["source"]), seen["target"], s.guidance_scale)
        return {"source": seen["source"], "target": seen["target"], "guided": guided}

    def _at(self, step: int, branches: Iterable[str]) -> AbstractContextManager[Any]:
        stack, s, names = ExitStack(), self.job.settings, tuple(branches)
        if step < share_of(s.cross_fraction, len(self.job.down)):
            stack.enter_context(kit.between(self.cross, names, lambda maps, site: {
                "target": kit.replace_columns(maps["target"], maps["source"], self.carry, self.keep)}))
        if step < share_of(s.self_fraction, len(self.job.down)):
            stack.enter_context(kit.between(self.selfs, names, lambda maps, site: {"target": maps["source"]}))
        return stack
