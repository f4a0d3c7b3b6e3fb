"""TurboEdit: a network finds the noise of each of four steps, and the words alone make the edit (Wu et al. 2408.08332).

    x_T+ = 0;   for each anchor t, noisy to clean, t+ the one before:
    e_t ~ N(m, v),   m, v = F(x0, x_t+, t, source)                the inversion network; alg. 1
    x_t = G(s_t x_t+ + n_t e_t, t, source)                        the generator's clean latents
    e_t <- e_t + s_t / n_t (x0 - x_t)                             at the last, `corrections` times; not the paper

    x'_t = G(s_t x'_t+ + n_t e_t, t, c)                           the same noise, other words; alg. 2
    c = source + strength (target - source)                       on the embeddings; below 0 and above 1 too
    x'_t <- m x'_t + (1 - m) x_t                                  where a mask is given, or made from attention

Nothing holds the edit to the picture but the noise, so that a description that names much keeps much: a word that
changes then moves the embedding little.  For short prompts the first steps can be frozen: the target's self-attention
maps are the source's in them.  Further targets add what they differ by from the source, all from one inversion.

The paper says neither whether noise is drawn or the mean taken, nor from which step's attention the mask is made:
`noise` says the one, and of attention the steps so far count, in both prompts.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from sage import kit
from sage.method import Method, Step
from sage.settings import Blending, Phrases, Picture, Solver, Span, frozen, setting

if TYPE_CHECKING:
    from torch import Tensor

    from sage.job import Job
    from sage.models.backbone import Backbone
    from sage.prompts.plan import Plan

# The paper's; a mask, by attention at 16 x 16 above 0.6, is for who wants one.
PUBLISHED = dict(steps=4, strength=1.0, spacing="trailing", noise="drawn", corrections=0, frozen_steps=0, blend=None,
                 mask_from="attention", blend_threshold=0.6, blend_fraction=1.0)

LARGEST = 5.5  # number of a corrected noise: of normal ones one in 26 million is beyond


@frozen
class Settings(Blending, Solver, Picture):
    """Words."""

    fixes = frozenset({"noise", "iterations", "corrections"})

    strength: float = setting(1.0, "how far the embedding goes from the source prompt to the target: 0 stays, 1 gets "
                              "there, more overdoes it, less than 0 does the contrary", low=-10, high=10,
                              search=Span(0.5, 2.0))
    steps: int = setting(4, "steps of the generator: those that it was trained for", low=1, high=1000)
    spacing: str = setting("trailing", "how the steps are spread over the noise levels", "leading", "trailing",
                           "linspace")
    iterations: int = setting(0, "steps that are made of these, from the first: each makes the picture finer; 0 for "
                              "all", low=0, high=1000)
    noise: str = setting("drawn", "noise of a step: drawn as the inversion network says, or its mean", "drawn", "mean")
    corrections: int = setting(0, "times that the noise of the last step is led to where the generator gives the "
                               "picture back, at a call each; the paper has none", low=0, high=100)
    frozen_steps: int = setting(0, "steps, from the first, in which the target has the source's self-attention maps: 1 "
                                "for short prompts", low=0, high=1000)
    cross_level: int = setting(1, "halvings of the latents at which attention is read for the mask", low=0, high=8)
    blend: Phrases = setting(None, "phrases that mark where the picture may change: auto (what differs between the "
                             "prompts), none for everywhere, or SOURCE,TARGET")
    blend_threshold: float = setting(0.6, "attention or difference, relative to its maximum, above which a place is "
                                     "in the mask", low=0, high=1, search=Span(0.2, 0.8))
    blend_fraction: float = setting(1.0, "share of the steps, from the first, with blending", low=0, high=1)
    mask_blur: float = setting(0.5, "deviation of the blur of the mask, in places of the latents", low=0, high=4)


class Turbo(Method[Settings]):
    """TurboEdit."""

    name, title, paper = "turbo", "TurboEdit", "2408.08332"
    about = "edits in four calls after an inversion of eight, by a few-step generator and a network that inverts it"
    good_at = "many strengths and targets from one inversion, at a call a step each"
    reads = frozenset({"source", "target", "edits", "mask"})
    texts = ("edit:",)
    presets = {"published": PUBLISHED}
    calls = ("2 N, and N of the inversion network; 3 N with a mask from attention or differences, or 1 more a frozen "
             "step; 1 a correction; N for a picture from nothing")
    strength = "strength"
    live = True
    of_pictures = Method.of_pictures | {*Blending.names(), "strength", "noise", "frozen_steps", "cross_level",
                                        "mask_blur"}
    generates = True

    def defaults(self, model: "Backbone") -> Settings:
        """Attention is read where it is coarsest, but not of less than 8 places a side: of 16 at 512 pixels."""
        sides = {site.level: min(site.grid(*model.latent_shape((model.sample_size, model.sample_size))[1:]))
                 for site in model.sites() if site.kind == "cross" and site.place != "mid"}
        return Settings(cross_level=max((level for level, side in sides.items() if side >= 8),
                                        default=min(sides, default=0)))

    def fits(self, model: "Backbone") -> str:
        return "" if model.part("inversion") else ("it has no inversion network, a folder `inversion` beside its unet; "
                                                   "stilllife-turbo has, and turbo-ddpm needs none")

    def notes(self, settings: Settings, plan: "Plan") -> tuple[str, ...]:
        if not plan.edited or any(span.target for span in plan.edited):
            return plan.notes
        return (*plan.notes, "what the target leaves out may stay: turbo-ddpm takes it away more often, in twice the "
                             "calls")

    # ---- the way to noise

    def inversion(self, settings: Settings) -> str:
        return "turbo"

    def edges(self, model: "Backbone", settings: Settings, size: tuple[int, int]) -> tuple["kit.Edges", "kit.Edges"]:
        up, down = super().edges(model, settings, size)
        made = settings.iterations or len(down)
        return up[-made:], down[:made]

    def draws(self, settings: Settings) -> bool:
        return settings.noise == "drawn" or super().draws(settings)

    def invert(self, job: "Job[Settings]") -> "kit.Trajectory":
        network: Any = job.model.part("inversion")
        x, given, noises, found = 0 * job.z0, list["Tensor"](), list["Tensor"](), list["Tensor"]()
        for i, (here, _) in enumerate(job.down):
            eps, log_variance = network.noise(job.z0, x, here, job.source)
            if job.settings.noise == "drawn":
                eps = eps + (log_variance / 2).exp() * job.noise(i)
            before = x
            for left in range(job.settings.corrections if i + 1 == len(job.down) else 0, -1, -1):
                noisy = kit.renoise(kit.Prediction(before, eps), here)
                x = job.predict(noisy, here, job.source).x0
                if left:
                    eps = (eps + here.signal / here.noise * (job.z0 - x)).clamp(-LARGEST, LARGEST)
            given.append(noisy)
            noises.append(eps)
            found.append(x)
            job.report("invert", i + 1, len(job.down))
        return kit.Reconstructed(origin=None, latents=(job.z0, *given[::-1]), noises=tuple(noises),  # type: ignore[arg-type]
                                 reconstructions=tuple(found))

    # ---- the way back

    def edit(self, job: "Job[Settings]", path: "kit.Trajectory") -> Iterator[Step]:
        s, text, masked = job.settings, wanted(job), _Mask(job, path.noise)
        selfs = kit.Sites(site for site in job.model.sites() if site.kind == "self")
        x = before = 0 * path.noise
        for i, (here, _) in enumerate(job.down):
            eps, kept, source = path.noises[i], path.reconstructions[i], None  # type: ignore[attr-defined]
            around: AbstractContextManager[Any] = nullcontext()
            if masked.looks or i < s.frozen_steps:
                # Both prompts pass alone, so that where they are equal the latents are, to the last bit.
                with kit.listen(selfs if i < s.frozen_steps else ()) as heard, masked.blend.listen(True, True) as tap:
                    source = job.predict(kit.renoise(kit.Prediction(before, eps), here), here, job.source, "source")
                masked.blend.add(tap, "source")
                if i < s.frozen_steps:
                    around = _lent(selfs, heard.pop())
            with around, masked.blend.listen(untouched=True) as tap:
                target = job.predict(kit.renoise(kit.Prediction(x, eps), here), here, text, "target")
            masked.blend.add(tap, "target")
            x, before = target.x0, kept
            m = masked.at(i, source, target)
            if m is not None:
                x = m * x + (1 - m) * kept
            yield Step(i, x, here, source, target, target, mask=None if m is None else (m > 0).float())

    def generate(self, job: "Job[Settings]") -> Iterator[Step]:
        x = 0 * job.z0
        for i, (here, _) in enumerate(job.down):
            eps = job.noise(i) if i else job.z0
            seen = job.predict(kit.renoise(kit.Prediction(x, eps), here), here, job.target, "target")
            x = seen.x0
            yield Step(i, x, here, target=seen, guided=seen)


def wanted(job: "Job[Settings]") -> "kit.Text":
    """The source prompts, led towards the target and towards every further one, as far as the strength says.

    The further ones can be given as the texts "edit:0", "edit:1" and so on.
    """
    text = job.source.mix(job.target, job.settings.strength)
    for k in range(max(len(request.edits) for request in job.requests)):
        prompts = [job.model.prompts.parse(request.edits[k]) if k < len(request.edits) else plan.source
                   for request, plan in zip(job.requests, job.plans, strict=True)]
        more = job.text(f"edit:{k}", partial(job.model.embed, prompts))
        text = text + (job.source.mix(more, job.settings.strength) - job.source)
    return text


def _lent(sites: "kit.Sites", heard: "list[kit.QueriesKeys]") -> AbstractContextManager[None]:
    """Context in which self-attention has the queries and keys that were heard, and so their maps."""
    given = dict(zip((site.path for site in sites), heard, strict=True))
    return kit.swap(sites, lambda p, site: kit.Projection(*given[site.path], p.values))


class _Mask:
    """Where pictures may change, step by step: by hand, by attention to words, or by what predictions differ by.

    Attributes:
        looks: the source has to be predicted too.
    """

    def __init__(self, job: "Job[Settings]", z: "Tensor"):
        self.job, self.s = job, job.settings
        self.blend = kit.BlendingMask.of_job(job, z, union=False, pooled=False)
        self.looks = self.blend.used

    def at(self, step: int, source: "kit.Prediction | None", target: "kit.Prediction") -> "Tensor | None":
        """(B, 1, h, w) from 0 to 1, or None for everywhere."""
        found = None
        if source is not None and self.looks:
            self.blend.add_difference(target.eps - source.eps)
            found = self.blend.at(target.x0) if self.s.blends_at(step) else None
        mask = self.job.allowed(found)
        if mask is None or not self.s.mask_blur:
            return mask
        half = min(int(2 * self.s.mask_blur + 0.999), min(mask.shape[-2:]) - 1)
        return kit.gaussian_blur(mask, 2 * half + 1, self.s.mask_blur)
