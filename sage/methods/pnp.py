"""Plug-and-play: the target is given what the source's decoder has computed (Tumanyan et al. 2211.12572).

    f_target <- f_source                        one residual block's features, the first share of the steps
    Q_target, K_target <- Q_source, K_source    self-attention of the decoder behind it, a shorter share

The source is under the empty prompt, at latents of the inversion or of sampling back from it.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Any

from sage import kit
from sage.errors import SettingsError
from sage.inversion import anchors
from sage.method import Method, Step
from sage.settings import Guidance, Picture, Solver, Span, frozen, setting, share_of

if TYPE_CHECKING:
    from torch import Tensor

    from sage.job import Job
    from sage.models.backbone import Backbone

BRANCHES = ("source", "negative", "target")
PUBLISHED = dict(steps=50, guidance_scale=7.5, conventions="published", feature_fraction=0.8, attention_fraction=0.5,
                 negative_prompt="ugly, blurry, black, low res, unrealistic", quantise="truncate")


@frozen
class Settings(Guidance, Solver, Picture):
    """Injection."""

    fixes = frozenset({"conventions"})

    inversion: str = setting("ddim", "where the source's features come from: latents of sampling back from the "
                             "noise, or those of the inversion itself", "ddim", "direct")
    feature_fraction: float = setting(0.8, "share of the steps with the source's features", low=0, high=1,
                                      search=Span(0.0, 1.0))
    feature_layer: int = setting(4, "residual block of the decoder whose features they are, from 0", low=0, high=100)
    attention_fraction: float = setting(0.5, "share of the steps with the source's queries and keys", low=0, high=1,
                                        search=Span(0.0, 1.0))
    first_block: float = setting(0.5, "share of the network's self-attention that is left alone, from its start", low=0,
                                 high=1)
    negative_prompt: str = setting("", "what guidance leads away from, where the request says nothing of it")
    conventions: str = setting("consistent", "levels and windows of steps: consistent, or as in its benchmark's code",
                               "consistent", "published")

    def window(self, share: float) -> int:
        """How many steps a share of them begins."""
        return int(share * self.steps) if self.conventions == "published" else share_of(share, self.steps)


class PlugAndPlay(Method[Settings]):
    """Plug-and-play features."""

    name, title, paper = "pnp", "Plug-and-play", "2211.12572"
    about = "keeps shapes and layout strictly and lets all looks go"
    good_at = "another style or material in the same shapes"
    reads = frozenset({"source", "target", "negative"})
    texts = ("negative",)
    presets = {"published": PUBLISHED}
    keep = "attention_fraction"
    calls = "5 N; 4 N with direct"
    beside = ("direct",)

    def fits(self, model: "Backbone") -> str:
        return "" if model.features() else "it has no residual blocks"

    def edges(self, model: "Backbone", settings: Settings, size: tuple[int, int]) -> tuple["kit.Edges", "kit.Edges"]:
        return anchors.edges(model, settings) or super().edges(model, settings, size)

    def edit(self, job: "Job[Settings]", path: "kit.Trajectory") -> Iterator[Step]:
        s, given = job.settings, Given(job)
        sources = _sources(job, path)
        own = s.negative_prompt and not any(request.negative for request in job.requests)
        negative = job.text("negative", s.negative_prompt) if own else job.empty
        z = sources[0]
        for i, (here, there) in enumerate(job.down):
            with given.at(i):
                seen = job.together(here, source=(sources[i], job.nothing), negative=(z, negative),
                                    target=(z, job.target))
            guided = kit.classifier_free(seen["negative"], seen["target"], s.guidance_scale)
            z = kit.renoise(guided, there)
            yield Step(i, z, here, seen["source"], seen["target"], guided)


def _sources(job: "Job[Settings]", path: "kit.Trajectory") -> "list[Tensor]":
    """The latents that lend to each step; in the original those of sampling back are a step ahead."""
    if job.settings.inversion == "direct":
        anchors.check_latents(job, path)
        return [*path.latents[:0:-1]]
    back = [path.noise, *kit.walk(lambda z, level: job.predict(z, level, job.source), path.noise, job.down)]
    return back[1:] if job.settings.conventions == "published" else back[:-1]


class Given:
    """What the source's row of the batch gives to the others."""

    def __init__(self, job: "Job[Settings]"):
        self.s, model = job.settings, job.model
        decoder = [feature for feature in model.features() if feature.place == "up"]
        if self.s.feature_layer >= len(decoder):
            raise SettingsError(f"feature_layer is {self.s.feature_layer}: the decoder of {model.name} has "
                                f"{len(decoder)}")
        self.feature = decoder[self.s.feature_layer]
        self.sites = [site for site in model.sites() if site.kind == "self" and site.depth >= self.s.first_block]

    def at(self, step: int) -> AbstractContextManager[Any]:
        """Context around the pass of a step."""
        stack = ExitStack()
        if step < self.s.window(self.s.feature_fraction):
            stack.enter_context(kit.swap_outputs([self.feature], lambda x, place: _to_all(x)))
        if step < self.s.window(self.s.attention_fraction):
            stack.enter_context(kit.swap(self.sites, lambda p, site: p._replace(queries=_to_all(p.queries),
                                                                                keys=_to_all(p.keys))))
        return stack


def _to_all(x: "Tensor") -> "Tensor":
    """The first branch's rows for every branch."""
    return x.chunk(len(BRANCHES))[0].repeat(len(BRANCHES), *[1] * (x.dim() - 1))
