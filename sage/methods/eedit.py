"""EEdit: RF-inversion at a part of its cost, for edits by prompt, by dragging and by a reference (2503.10270).

    up     u <- u + gamma (u_noise - u)    u asked of the network at every inv_skip-th step, else the last one's
    down   u <- u + eta (u_clean - u)      for steps start <= i < stop; attention held between whole steps
           z <- M z + (1 - M) (s z0 + n noise)             while i < mask_timestep, exact at the end
    drag   z[to] <- z*_k[from] before step i while N - i - 1 > t_prime_ratio N;  M is the regions'
           u_clean leads to the picture as if it were moved already; where regions were, as in `regiondrag`

u_noise and u_clean are the straight lines through z and a fixed noise, and through z and the picture, so that a
diffusion follows the same lines.  The released code (@35e95e3) differs in what `published` sets: two time grids that do
not meet, a paste before the step, blurred places at half their coordinates, and the slips of `Slips`.  A composition is
an edit of the paste with its box as the mask (sage compose).
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from sage import kit
from sage.errors import SettingsError
from sage.guidance.moves import Moves, Vacated
from sage.method import Method, Step
from sage.settings import FlowGuidance, PartWay, Picture, Span, as_begun, frozen, setting

if TYPE_CHECKING:
    from torch import Tensor

    from sage.job import Job
    from sage.models.backbone import Backbone, Text
    from sage.prompts.tokens import Prompt, Prompts

RELEASED = dict(steps=28, guidance_scale=7.0, source_guidance_scale=7.0, guidance_by="input", inv_skip=3,
                fresh_threshold=3, reuse="held", whole_by="steps", put_back="before", blur="half", exact=False,
                held_modulation=True, twice_gated=True, held_gates=True, text_offset=False,
                vacated="noise", unnamed=False, encode="sample", seed=42)
PROMPT = RELEASED | dict(grid="released", eta=0.7, gamma=0.7, stop=6, mask_timestep=18, invert_under="target",
                         put_back="after", mask_cells="nearest")
DRAG = RELEASED | dict(grid="released, regions", eta=1.0, gamma=1.0, stop=6, invert_under="empty", region_bonus=1.0)
COMPOSE = RELEASED | dict(grid="released, regions", eta=0.6, gamma=0.6, stop=10, inv_skip=2, cascade_num=5,
                          invert_under="empty", put_back="after", mask_cells="box", size=512, fit="squash")


@frozen
class Inverting(PartWay, FlowGuidance):
    """Inversion."""

    fixes = frozenset({"gamma", "use_rf_inversion", "invert_under", "source_guidance_scale", "reuse", "whole_by",
                       "grid"})

    gamma: float = setting(0.7, "how far the way to noise is drawn to a fixed noise", low=0, high=1)
    use_rf_inversion: bool = setting(True, "invert the picture; no: start from plain noise, and draw to nothing")
    invert_under: str = setting("empty", "what the picture is inverted under: the empty prompt, the source's, or the "
                                "target's", "empty", "source", "target")
    source_guidance_scale: float = setting(1.0, "how strongly that is followed; the empty prompt only by a network "
                                           "that takes guidance as an input", low=0, high=100)
    reuse: str = setting("continued", "what stands at skipped steps: the last prediction, or what the last two lead to",
                         "held", "continued")
    whole_by: str = setting("calls", "what is counted of the inversion for its whole steps: calls of the network, or "
                            "steps, which with inv_skip a multiple of fresh_threshold makes every call a whole one",
                            "calls", "steps")
    grid: str = setting("consistent", "levels of the inversion: those of the way back; or evenly spread times, as the "
                        "original code has them for prompts, or for regions", "consistent", "released",
                        "released, regions")


@frozen
class Regions(Vacated, PartWay, FlowGuidance):
    """Regions."""

    mask_timestep: int = setting(1000, "steps, from the first, after which everything outside the mask is put back: "
                                 "of all of them the background is exact", low=0, high=1000)
    drag_class: str = setting("copy", "where a region was it is made anew from noise, or with cut what was at its new "
                              "place is put", "copy", "cut")
    t_prime_ratio: float = setting(0.5, "drag: share of the steps, at the end, without regions being put anew", low=0,
                                   high=1)
    alpha: float = setting(1.0, "drag: share of noise where a region was", low=0, high=1)
    put_back: str = setting("after", "outside is put back after a step, at its level; before it, a level too clean; or "
                            "drawn straight to the picture by every step, as if eta were 1 there (arXiv 2512.22323)",
                            "after", "before", "drawn")
    blur: str = setting("cells", "drag: the places that are noised: those of the region, or at half their coordinates",
                        "cells", "half")
    mask_cells: str = setting("half", "places of the mask: those at least half white, those whose first pixel is, or "
                              "those from where its box begins to before where it ends", "half", "nearest", "box")
    exact: bool = setting(True, "after the last step everything outside is the picture's own latents, if it was put "
                          "back until then")


@frozen
class Slipping(Picture):
    """Cache, as released."""

    cache: str = setting("eedit", "what of the network is computed at every step: everything, or with eedit the most "
                         "of it only every few steps", "none", "eedit")
    use_cache: bool = setting(True, "hold attention between whole steps; no: every step is whole, and steps of the "
                              "inversion are skipped all the same")
    cache_type: str = setting("ours_predefine", "places to compute are drawn before the way begins, or step by step, "
                              "which are the same if the network is asked at each", "ours_predefine", "ours_cache")
    region_bonus: float = setting(2.0, "how much more often the region's places are drawn", low=0, high=100)
    text_offset: bool = setting(True, "places of single blocks are counted behind the text; no: from its start")
    twice_gated: bool = setting(False, "what attention gave the text is held as gated, and gated once more")
    held_gates: bool = setting(False, "what single blocks gave is held as gated: places that are not computed keep the "
                               "gate of when they were")
    held_modulation: bool = setting(False, "between whole steps double blocks have the modulation of the last one")

    def whole(self, step: int, steps: int) -> bool:
        """As of `Cached`, if it is used."""
        return not self.use_cache or super().whole(step, steps)


@frozen
class Settings(Inverting, Regions, Slipping):
    """Control."""

    @property
    def taken(self) -> int:
        """How many of the steps are taken, each way."""
        return super().taken if self.grid == "consistent" else as_begun(self.strength, self.steps)

    eta: float = setting(0.7, "how far the way back is drawn to the picture", low=0, high=1, search=Span(0.4, 1.0))
    start: int = setting(0, "the first step back that is drawn to the picture", low=0, high=1000)
    stop: int = setting(6, "the first that no longer is: the more, the more is kept", low=0, high=1000)
    fwd_skip: int = setting(1, "the network is asked at every so many steps of the way back, and at the last; what "
                            "stands between them is what `reuse` says", low=1, high=1000)


class EEdit(Method[Settings]):
    """Efficient editing by inversion."""

    name, title, paper = "eedit", "EEdit", "2503.10270"
    about = "edits by prompt, by dragging and by a reference, asking a flow's network for a third of its work"
    good_at = "dragging and references on flows, and keeping the picture at few calls"
    reads = frozenset({"source", "target", "negative", "mask", "moves", "points"})
    presets = {"published": PROMPT, "published-drag": DRAG, "published-composition": COMPOSE}
    published = {"drag": "published-drag", "compose": "published-composition"}
    calls = ("strength N / inv_skip + 2 strength N, of which one in fresh_threshold is whole; half of the latter with "
             "guidance as an input where nothing is moved")
    strength = "eta"

    def defaults(self, model: "Backbone") -> Settings:
        return Settings(steps=28, inv_skip=3, fresh_threshold=3, guidance_scale=3.5)

    # ---- the way to noise

    def inversion(self, settings: Settings) -> str:
        return "eedit"

    def draws(self, settings: Settings) -> bool:
        return True

    def follows_target(self, settings: Settings) -> bool:
        return settings.invert_under == "target"

    def inverted_under(self, settings: Settings, source: "Prompt", prompts: "Prompts") -> "Prompt":
        return source if settings.invert_under == "source" else prompts.parse("")

    def edges(self, model: "Backbone", settings: Settings, size: tuple[int, int]) -> tuple["kit.Edges", "kit.Edges"]:
        up, down = kit.part_way(super().edges(model, settings, size), settings.taken)
        if settings.grid == "consistent" or not down:
            return up, down
        if model.prediction_type != "flow":
            raise SettingsError(f"grid is {settings.grid}: those times, among the published settings, are of a "
                                f"rectified flow such as flux-dev, and {model.name} is no rectified flow")
        count = len(down) + (settings.grid != "released")  # the regions' code counts the trailing zero too
        return kit.upwards(tuple(model.schedule.level(k / count) for k in range(count))), down

    def invert(self, job: "Job[Settings]") -> "kit.Trajectory":
        s, z, latents, last = job.settings, job.z0, [job.z0], len(job.up) - 1
        asked = [i for i in range(len(job.up)) if i % s.stride == 0 or i == last] if s.use_rf_inversion else []
        if s.whole_by == "steps":  # those of the way back, of whose last ones there may be none here
            begin_cache(job, job.up, [s.whole(i, s.steps) for i in range(len(job.up))])
        else:
            begin_cache(job, [job.up[i] for i in asked], [s.whole(n, len(asked)) for n in range(len(asked))])
        continued, around = kit.Continued(job.model.prediction_type == "flow", s.reuse == "held"), job.noise(0, 0)
        # Without inversion the noise is that of the outside, but not in the original code for regions.
        noise = job.noise(1) if s.use_rf_inversion or s.grid == "released, regions" else around
        for i, (here, there) in enumerate(job.up):
            if not s.use_rf_inversion:
                p = kit.Prediction(job.z0, noise.expand_as(job.z0))
            elif i in asked:
                p = self._followed(job, z, here)
                continued.add(p, here)
            else:
                p = continued.at(z, here, there)
            if s.gamma and s.use_rf_inversion:
                p = (1 - s.gamma) * p + s.gamma * kit.with_noise(z, noise, here)
            z = kit.renoise(p, there)
            latents.append(z)
            job.report("invert", i + 1, len(job.up))
        if not s.use_rf_inversion and job.down:
            latents[-1] = kit.renoise(kit.Prediction(job.z0, noise.expand_as(job.z0)), job.down[0][0])
        return kit.Trajectory(origin=None, latents=tuple(latents))  # type: ignore[arg-type]  # the driver says of what

    def _followed(self, job: "Job[Settings]", z: "Tensor", level: "kit.Level") -> "kit.Prediction":
        s = job.settings
        text: Text = {"empty": job.empty, "source": job.source, "target": job.target}[s.invert_under]
        w = s.source_guidance_scale if text is not job.empty or job.model.distilled else 1.0
        return job.cfg(z, level, text, job.empty, w, "inverted")

    # ---- the way back

    def edit(self, job: "Job[Settings]", path: "kit.Trajectory") -> Iterator[Step]:
        s, noise = job.settings, job.noise(0, 0)
        counted = s.steps if s.whole_by == "steps" else len(job.down)
        begin_cache(job, job.down, [s.whole(i, counted) for i in range(len(job.down))])
        moves = Moves(job, 0)
        z, confined = self._begun(job, moves, path.noise), bool((moves.free == 0).any())
        clean = moves.moved if moves.around else path.latents[0]
        flow, last = job.model.prediction_type == "flow", len(job.down) - 1
        continued = kit.Continued(flow, s.reuse == "held")
        for i, (here, there) in enumerate(job.down):
            if len(job.down) - i - 1 > int(len(job.down) * s.t_prime_ratio):
                z = moves.put(z, path.latents[max(-1 - i, -len(path.latents))])
            if i % s.fwd_skip == 0 or i == last:
                target, told = _seen(job, z, here, moves), here
                continued.add(target, here)
            else:
                target = continued.at(z, here, there)
                told = told if flow and s.reuse == "held" else here
            guided = target
            outside = confined and i < s.mask_timestep
            kept = kit.renoise(kit.Prediction(job.background, noise), there) if outside else z
            if outside and s.put_back == "before":
                z = moves.confined(z, kept)
                guided = kit.from_output(z, kit.to_output(target, here, _kind(job)), here, _kind(job))
            if s.use_rf_inversion and s.start <= i < s.stop and s.eta:
                line = (_through(z, here, clean, job.down[-1][1]) if told is here else  # in the released code the time
                        kit.from_output(z, (z - clean) / told.noise, here, "flow"))  # stands still with the network
                guided = (1 - s.eta) * guided + s.eta * line
            if outside and s.put_back == "drawn":
                inside = moves.free > 0
                guided = guided * inside + _through(z, here, clean, job.down[-1][1]) * ~inside
            z = kit.renoise(guided, there)
            if outside and s.put_back == "after":
                z = moves.confined(z, kept)
            if outside and s.exact and i == last:
                z = moves.confined(z, job.background)
            yield Step(i, z, here, target=target, guided=guided, mask=moves.free if confined else None)

    def _begun(self, job: "Job[Settings]", moves: Moves, z: "Tensor") -> "Tensor":
        """The latents from which sampling starts: where regions were, blurred, or what lies around them."""
        if moves.around and job.down:
            return moves.begun(z, job.down[0][0])
        return (moves.halved() if job.settings.blur == "half" else moves).vacated(z)


def _seen(job: "Job[Settings]", z: "Tensor", here: "kit.Level", moves: Moves) -> "kit.Prediction":
    """What the latents are made of under the target prompt; where something was left, under the empty one."""
    w = job.settings.guidance_scale
    if not moves.unnamed:
        return job.cfg(z, here, job.target, job.empty, w)
    if job.asks_once:
        vacant = job.cfg(z, here, job.empty, job.empty, w, "negative")
        return moves.where_vacant(vacant, job.cfg(z, here, job.target, job.empty, w))
    both = job.together(here, negative=(z, job.empty), target=(z, job.target))
    return moves.where_vacant(both["negative"], kit.classifier_free(both["negative"], both["target"], w))


def begin_cache(job: "Job[Settings]", edges: "Sequence[kit.Edge]", whole: "Sequence[bool]") -> None:
    """A cache for one way, with the slips that the settings ask for."""
    s = job.settings
    online, slip = s.cache_type == "ours_cache", not s.text_offset
    slips = kit.Slips(s.held_modulation, s.twice_gated, s.held_gates, offset=slip, cut=slip and online,
                      nearest=s.mask_cells == "nearest", bonus=s.region_bonus)
    job.start_cache(tuple(edges), whole, slips, online)


def _through(z: "Tensor", here: "kit.Level", clean: "Tensor", end: "kit.Level") -> "kit.Prediction":
    """The line through `z` and the picture's latents, which a diffusion has at a level of a little noise.

        z = s x0 + n eps,   clean = s_e x0 + n_e eps
    """
    across = here.noise * end.signal - here.signal * end.noise
    x0, eps = here.noise * clean - end.noise * z, end.signal * z - here.signal * clean
    return kit.Prediction(x0 / across, eps / across)


def _kind(job: "Job[Settings]") -> str:
    return "flow" if job.model.prediction_type == "flow" else "epsilon"
