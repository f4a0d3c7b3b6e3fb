"""pix2pix-zero: a direction of text is added, and cross-attention drawn to what it was (Parmar et al. 2302.03027).

    d   = mean E(sentences with the new words) - mean E(the same with the old)
    eps <- eps - grad (lambda_ac L_ac + lambda_kl L_kl)           on the way to noise: let it look like noise
    z   <- z - gamma grad sum |M(z, source + d) - M_ref|^2        at each step of the way back, M_ref without d
    eps = eps(z, source) + w (eps(z, source + d) - eps(z, source))

Both terms of the last line have their own z, as their gradients differ; the first one's goes on.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

from sage import kit
from sage.inversion import anchors
from sage.method import Method, Step
from sage.prompts.directions import direction
from sage.settings import Guidance, Picture, Solver, Span, frozen, setting

if TYPE_CHECKING:
    from torch import Tensor

    from sage.job import Job
    from sage.models.backbone import Backbone

PUBLISHED = dict(steps=50, guidance_scale=7.5, direction="prompts", cross_guidance=0.1,
                 autocorrelation=20.0, divergence=20.0, conventions="published", encode="sample", fit="squash")
AUTHORS = PUBLISHED | dict(guidance_scale=5.0, direction="sentences", conventions="authors")


@frozen
class Settings(Guidance, Solver, Picture):
    """Direction and attention."""

    fixes = frozenset({"autocorrelation", "divergence", "noise_rounds", "noise_shifts", "conventions"})

    inversion: str = setting("ddim", "the branch that lends its attention samples by itself; or it is put back onto "
                             "the inversion after each step, and the edit is moved along", "ddim", "direct")
    direction: str = setting("prompts", "where the edit leads in the text's embedding, if no sentences are given: "
                             "from prompt to prompt, or from the rendered world's sentences with the old words to "
                             "those with the new", "prompts", "sentences")
    cross_guidance: float = setting(0.1, "gamma: step size of the gradient that draws cross-attention to the source's; "
                                    "0 for none", low=0, search=Span(0.001, 1, log=True))
    autocorrelation: float = setting(20.0, "lambda_ac: how strongly the inversion's noise is made unlike itself "
                                     "shifted", low=0)
    divergence: float = setting(20.0, "lambda_kl: how strongly its variance is drawn to 1", low=0)
    noise_rounds: int = setting(5, "rounds of both at each step of the inversion; 0 for none", low=0, high=100,
                                search=(0, 1, 5))
    noise_shifts: int = setting(5, "shifts in each round, drawn at random", low=1, high=100)
    conventions: str = setting("consistent", "noise levels, and the least shift: consistent, or as in its benchmark's "
                               "code; or in its authors', whose inversion leaves out the first step and the last",
                               "consistent", "published", "authors")

    @property
    def shifts(self) -> range:
        """The shifts of a round."""
        return range(self.noise_shifts if self.autocorrelation > 0 else 0)


class Pix2PixZero(Method[Settings]):
    """Zero-shot image-to-image translation."""

    name, title, paper = "pix2pix-zero", "pix2pix-zero", "2302.03027"
    about = "adds a direction from word to word to the source's text, and holds the layout by its cross-attention"
    good_at = "one thing for another in the same layout: next to SAGE on stilllife, at twice its calls"
    reads = frozenset({"source", "target", "sentences"})
    texts = ("direction",)
    presets = {"published": PUBLISHED, "authors": AUTHORS}
    keep = "cross_guidance"
    calls = "6 N, and 2 N ways back through the network"
    beside = ("direct",)

    def fits(self, model: "Backbone") -> str:
        return "" if any(site.kind == "cross" for site in model.sites()) else "it has no cross-attention"

    def draws(self, settings: Settings) -> bool:
        return super().draws(settings) or (settings.noise_rounds > 0 and len(settings.shifts) > 0)

    def edges(self, model: "Backbone", settings: Settings, size: tuple[int, int]) -> tuple["kit.Edges", "kit.Edges"]:
        if settings.conventions == "consistent":
            return super().edges(model, settings, size)
        up, down = kit.of_timesteps(model, "lagging")(settings.steps, settings.spacing)
        return (up[1:-1] if settings.conventions == "authors" else up), down

    # ---- the way to noise

    def inversion(self, settings: Settings) -> str:
        return "regularised"

    def invert(self, job: "Job[Settings]") -> "kit.Trajectory":
        latents = [job.z0]
        for done, (here, there) in enumerate(job.up):
            eps = whitened(job, job.predict(latents[-1], here, job.source).eps, done)
            latents.append(kit.ddim_step(latents[-1], eps, here, there))
            job.report("invert", done + 1, len(job.up))
        return kit.Trajectory(origin=None, latents=tuple(latents))  # type: ignore[arg-type]  # the driver says of what

    # ---- the way back

    def back(self, job: "Job[Settings]", path: "kit.Trajectory") -> "Iterator[Tensor]":
        yield from kit.walk(lambda z, level: job.predict(z, level, job.source), path.noise, job.down)

    def edit(self, job: "Job[Settings]", path: "kit.Trajectory") -> Iterator[Step]:
        s, changed, kind = job.settings, job.source + direction(job), job.model.prediction_type
        if s.inversion == "direct":
            anchors.check_latents(job, path)
        reference = z = path.noise
        for i, (here, there) in enumerate(job.down):
            g, loss, seen = cross_gradient(job, reference, z, here, changed)
            ours, theirs = z - s.cross_guidance * g[0], z - s.cross_guidance * g[1]
            both = job.together(here, source=(ours, job.source), target=(theirs, changed))
            base, other = (kit.to_output(both[name], here, kind) for name in ("source", "target"))
            guided = kit.from_output(ours, base + s.guidance_scale * (other - base), here, kind)
            reference, z = kit.renoise(seen, there), kit.renoise(guided, there)
            if s.inversion == "direct":
                reference, z = path.latents[-2 - i], z + path.latents[-2 - i] - reference
            yield Step(i, z, here, both["source"], both["target"], guided, s.cross_guidance * g[0], loss)

    def compares(self, settings: Settings) -> str:
        return "cross-attention maps, squares summed over places and tokens"


def whitened(job: "Job[Settings]", eps: "Tensor", visit: int) -> "Tensor":
    """What was predicted at a step of the inversion, (B, C, h, w), made more like noise."""
    s = job.settings
    for n in range(s.noise_rounds):
        for m in s.shifts:
            loss = partial(kit.autocorrelation, shift=shifts(job, visit, n, m))
            eps = eps - s.autocorrelation / s.noise_shifts * kit.slope(loss, eps)
        eps = eps - s.divergence * kit.slope(kit.divergence, eps)
    return eps


def shifts(job: "Job[Settings]", *tag: int) -> Callable[[int], int]:
    """Number of rows -> how far noise of so many is shifted, drawn anew each time."""
    least, drawn = int(job.settings.conventions != "published"), count()  # by 0, as there, it is compared with itself
    return lambda rows: job.whole(least, max(rows // 2, least + 1), *tag, next(drawn))


def cross_gradient(job: "Job[Settings]", reference: "Tensor", z: "Tensor", level: "kit.Level", changed: "kit.Text"
                   ) -> "tuple[tuple[Tensor, ...], tuple[float, ...], kit.Prediction]":
    """The slope of L = sum over layers of the mean over both branches and their heads of sum |M - M_ref|^2.

    Returns:
        the gradients (B, C, h, w) at the branches without and with the direction; L, a number a picture; and what the
        reference (B, C, h, w) is made of.
    """
    import torch
    cross = kit.Sites(site for site in job.model.sites() if site.kind == "cross")
    with kit.listen(cross) as tap:
        seen = job.predict(reference, level, job.source)
    held = [kit.QueriesKeys(*(t.repeat(2, 1, 1, 1) for t in pair)) for pair in tap.pop()]  # for each branch
    with torch.enable_grad(), kit.listen(cross, last=True) as tap:
        x = torch.cat([z, z]).requires_grad_()
        job.together(level, source=(x[:len(z)], job.source), target=(x[len(z):], changed))
    current = tap.pop()
    losses, slopes = kit.square_slopes(current, held)
    g = kit.gradient([pair.queries for pair in current], slopes, x) / 2
    return g.chunk(2), tuple((losses.unflatten(0, (2, -1)).sum(dim=0) / 2).tolist()), seen
