"""InfEdit: an inversion that is known beforehand, and steps that are consistent (Xu et al. 2312.04965, alg. 2).

    z_s = s x + n e                                          the picture under noise e that is known
    x^ = x + d_x0,   e^ = e + d_eps                          d = prediction(z_t, target) - prediction(z_s, source)
    e' = sqrt(1 - eta) e + sqrt(eta) fresh                   for both; at eta = 1 of a consistency model's sampling
    z_t <- s' x^ + n' (sqrt(1 - eta) e^ + sqrt(eta) fresh)   at the end x^ itself

The target looks through the source's attention, as in prompt-to-prompt.  A third branch, the mutual one, has the layout
of the target and the looks of the source: its queries are the target's, its keys and values the source's.  Where no
changed word is looked at, the target is put back onto it.

With conventions "published" the mask is that of the original code (`OwnMask`), and so is the alignment of words: in a
gap between words that both prompts have, the likest pair of the two sides is aligned as well.  The code differs from
the paper in two more points: where eta is below 1 the picture goes on under the noise of the mutual branch, and not
under the one that is known; and the steps are those of a consistency model, which for 10 of them are the trailing ones.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from sage import kit
from sage.guidance.injection import Carried, Injection, planned
from sage.method import Step, Uninverted
from sage.settings import Blending, Guidance, Picture, Span, Words, frozen, setting, share_of

if TYPE_CHECKING:
    from torch import Tensor

    from sage.job import Job
    from sage.models.backbone import Backbone
    from sage.prompts.plan import Plan
    from sage.prompts.tokens import Prompt, Prompts

Branches = dict[str, "tuple[Tensor, kit.Text]"]
Predictions = dict[str, "kit.Prediction"]
PUBLISHED = dict(steps=10, spacing="trailing", strength=0.7, eta=0.1, guidance_scale=2.0, cross_fraction=0.8,
                 self_fraction=0.4, blend_threshold=0.3, conventions="published", encode="sample")


@frozen
class Settings(Injection, Words, Blending, Guidance, Picture):
    """Strength."""

    strength: float = setting(0.7, "share of the way to noise from which the edit starts: the more, the more may "
                              "change", low=0, high=1, search=Span(0.3, 1.0))
    source_guidance_scale: float = setting(1.0, "how strongly the source prompt is followed", low=0, high=100)
    eta: float = setting(1.0, "share of the noise that is drawn afresh in each step", low=0, high=1)
    mutual: str = setting("yes", "whether what may not change follows the layout of the target, or stays as it is",
                          "yes", "no")
    self_level: int = setting(0, "halvings of the latents from which on self-attention is carried over", low=0, high=8)
    cross_level: int = setting(2, "halvings of the latents at which cross-attention is read for the blending mask",
                               low=0, high=8)
    blend_fraction: float = setting(1.0, "share of the steps after which there is no blending", low=0, high=1)
    conventions: str = setting("consistent", "trailing steps and their windows, alignment of words, the mask of "
                               "attention, and what noise the picture goes on under: consistent, or as in the original "
                               "code", "consistent", "published")

    @property
    def sampled_steps(self) -> int:
        """How many steps there are."""
        return int(self.strength * self.steps) if self.published else share_of(self.strength, self.steps)

    def cross_window(self, start: float, end: float) -> range:
        """The steps with cross-attention carried over; the original code asks what share is done after each."""
        return range(*map(self._done, (start, end))) if self.published else super().cross_window(start, end)

    @property
    def self_window(self) -> range:
        """The steps with self-attention carried over; the original code stops before their share is reached."""
        return range(share_of(self.self_fraction, self.steps) - 1) if self.published else super().self_window

    def _done(self, share: float) -> int:
        """After how many steps no more than a share of them is done."""
        return sum((i + 1) / self.steps <= share for i in range(self.steps))

    def blends_at(self, step: int) -> bool:
        """Whether sampling step `step` is followed by blending; the original code gives out the last as predicted."""
        return (0 < step < self.sampled_steps - 1 if self.published else
                step < share_of(self.blend_fraction, self.sampled_steps))


class InfEdit(Uninverted[Settings]):
    """InfEdit."""

    name, title, paper = "infedit", "InfEdit", "2312.04965"
    about = "edits without inversion in few steps; made for networks that predict the picture well from any noise"
    good_at = "few steps, with networks that predict the picture well from any noise"
    reads = frozenset({"source", "target", "negative", "mask"})
    presets = {"published": PUBLISHED}
    keep = "self_fraction"
    calls = "5 strength N; 4 strength N without the mutual branch"
    strength = "strength"

    def defaults(self, model: "Backbone") -> Settings:
        levels = [site.level for site in model.sites() if site.kind == "cross" and site.place != "mid"] or [0]
        return Settings(cross_level=min(2, max(levels)))

    def worded(self, settings: Settings) -> bool:
        return True

    def plan(self, prompts: "Prompts", source: "Prompt", target: "Prompt", settings: Settings) -> "Plan":
        return planned(super().plan(prompts, source, target, settings), prompts, settings)

    # ---- the way to noise

    def edges(self, model: "Backbone", settings: Settings, size: tuple[int, int]) -> tuple["kit.Edges", "kit.Edges"]:
        up, down = super().edges(model, settings, size)
        if settings.published and settings.spacing == "trailing":
            levels = kit.of_timesteps(model, "consistency")(settings.steps)
            up, down = kit.upwards(levels), kit.downwards(levels)
        return up, (*down[:-1], (down[-1][0], kit.Level(0, 1.0, 0.0)))  # the last step ends at what is predicted

    # ---- the way back

    def edit(self, job: "Job[Settings]", path: "kit.Trajectory") -> Iterator[Step]:
        s, x = job.settings, path.latents[0]
        blend = kit.BlendingMask.of_job(job, x)
        control = Control(job, s.mutual == "yes" and (blend.used or s.published and s.eta < 1))
        own = OwnMask(blend.sites, job, control) if blend.sites and s.published else None
        first = s.steps - s.sampled_steps
        if first == s.steps:
            return
        known = kit.Prediction(x, job.noise(0))
        target = mutual = kit.renoise(known, job.down[first][0])
        for i, (here, there) in enumerate(job.down[first:]):
            branches = control.branches(kit.renoise(known, here), target, mutual)
            with (own.listen(tuple(branches)) if own else nullcontext(),
                  control.at(i + first if s.published else i, branches), blend.listen(wanted=own is None) as tap):
                found = control.guided(job.together(here, **branches))
            blend.add(tap, *branches)
            blend.add_difference(found["target"].eps - found["source"].eps)
            fresh = job.noise(i + 1) if s.eta and there.noise else 0.0
            moved = _renewed(known + (found["target"] - found["source"]), s.eta, fresh)
            aside = _renewed(known + (found["mutual"] - found["source"]), s.eta, fresh)
            known = kit.Prediction(x, aside.eps) if s.published else _renewed(known, s.eta, fresh)
            target, mutual = kit.renoise(moved, there), kit.renoise(aside, there)
            m = None
            if blend.used and s.blends_at(i):
                m = own.at(target, here) if own else blend.at(target)
            if m is not None:
                target = m * target + (1 - m) * mutual
            target = job.confined(target, kit.renoise(known, there))
            yield Step(i, target, here, found["source"], found["target"], moved, mask=job.mask if m is None else m)


def _renewed(p: "kit.Prediction", eta: float, fresh: "Tensor | float") -> "kit.Prediction":
    """With a share of the noise drawn afresh."""
    return kit.Prediction(p.x0, (1 - eta) ** 0.5 * p.eps + eta**0.5 * fresh)


class Control:
    """The branches of a pass, and what attention goes between them.

    Args:
        mutual: whether there is a mutual branch.
    """

    def __init__(self, job: "Job[Settings]", mutual: bool):
        self.job, self.s, self.mutual, self.carried = job, job.settings, mutual, Carried(job)
        self.aligned = [plan.aligned for plan in job.plans]
        if self.s.published and self.s.carry == "refine":
            pairs = zip(job.plans, job.source.tokens, job.target.tokens, strict=True)
            self.aligned = [kit.gaps_paired(plan.aligned, source, target) for plan, source, target in pairs]
            self.carried.align(self.aligned)

    def branches(self, source: "Tensor", target: "Tensor", mutual: "Tensor") -> Branches:
        """Latents and text of a pass, for `Job.together`; with guidance each half has a source and a target."""
        job, w = self.job, self.s.source_guidance_scale
        found: Branches = {}
        if w != 1 or self.s.guidance_scale != 1:
            found |= {"no_source": (source, job.nothing), "no_target": (target, job.empty)}
            found |= {"no_mutual": (mutual, job.nothing)} if self.mutual and w != 1 else {}
        found |= {"source": (source, job.source), "target": (target, job.target)}
        return found | ({"mutual": (mutual, job.source)} if self.mutual else {})

    def guided(self, seen: Predictions) -> Predictions:
        """What each branch is guided to; without a mutual branch the source is in its place."""
        scales = {"source": self.s.source_guidance_scale, "target": self.s.guidance_scale,
                  "mutual": self.s.source_guidance_scale}
        found = {name: kit.classifier_free(seen[f"no_{name}"], seen[name], w) if w != 1 else seen[name]
                 for name, w in scales.items() if name in seen}
        return {"mutual": found["source"], **found}

    def at(self, step: int, branches: Branches) -> AbstractContextManager[Any]:
        """Context around the pass of a step."""
        names, early = tuple(branches), step in self.s.self_window
        stack = self.carried.words_at(step, names)
        lenders = {name: (name, name, name) for name in names}  # of queries, keys, values
        for half in ("", "no_"):
            source, target, mutual = (half + name for name in ("source", "target", "mutual"))
            if early and target in lenders:
                lenders[target] = (source, source, target)
            if mutual in lenders:
                lenders[mutual] = (source if early else target, source, source)
        rows = [tuple(names.index(lender) for lender in lenders[name]) for name in names]

        def mixed(p: "kit.Projection", site: "kit.Site") -> "kit.Projection":
            import torch
            parts = [t.chunk(len(names)) for t in p]
            return kit.Projection(*(torch.cat([part[row[i]] for row in rows]) for i, part in enumerate(parts)))

        if early or self.mutual:
            stack.enter_context(kit.swap(self.carried.selfs, mixed))
        return stack


class OwnMask:
    """The original code's blending mask: where the mutual branch looks at the marked words, summed over the steps.

        M = a f(M_mutual) + (1 - a) M_target        the mutual branch's maps, their tokens those of the target
        m = max over marked tokens of M > max(0.15 / s, threshold), relative to its greatest place, s the signal

    Args:
        sites: of the cross-attention that is read.
        control: whose alignment f is.
    """

    def __init__(self, sites: "kit.Sites", job: "Job[Settings]", control: Control):
        self.sites, self.carried, self.threshold = sites, control.carried, job.settings.blend_threshold
        self.seen = job.z0.new_zeros(())
        marked = [_marked(job, plan, aligned) for plan, aligned in zip(job.plans, control.aligned, strict=True)]
        self.marks = kit.token_mask(marked, len(job.plans[0].target.ids)).to(job.z0.device)
        self.size = sites[0].grid(*job.z0.shape[-2:])

    @contextmanager
    def listen(self, branches: tuple[str, ...]) -> "Iterator[None]":
        """Context around the pass of a step, entered before any that changes its maps."""
        import torch
        with kit.record(self.sites) as tap:
            yield
        maps = [dict(zip(branches, m.detach().float().chunk(len(branches)), strict=True)) for m in tap.pop()]
        refined = [kit.replace_columns(m["target"], m.get("mutual", m["source"]), self.carried.carry, self.carried.keep)
                   for m in maps]
        self.seen = self.seen + torch.cat(refined, dim=1).mean(dim=1)  # (B, N, M)

    def at(self, z: "Tensor", level: "kit.Level") -> "Tensor":
        """(B, 1, h, w) in {0, 1}: where the picture may change; everywhere where no word is marked."""
        look = (self.seen * self.marks[:, None]).amax(dim=2).unflatten(1, self.size)[:, None]
        most = look.amax(dim=(2, 3), keepdim=True)
        mask = (look / most > max(0.15 / level.signal, self.threshold)) | ~self.marks.any(dim=1)[:, None, None, None]
        return kit.resize(mask, *z.shape[-2:])


def _marked(job: "Job[Settings]", plan: "Plan", aligned: "Sequence[int]") -> tuple[int, ...]:
    """The target's tokens that mark where it may change, of a phrase as the original code finds them.

    Args:
        aligned: with pairs that `plan` has not; a token is marked too whose pair in the source is one of the phrase's.
    """
    if not plan.blend or not isinstance(phrases := job.settings.blend, tuple):
        return plan.blend.target if plan.blend else ()
    prompts, source, target = job.model.prompts, plan.source.ids, job.model.prompts.tokens(plan.target)
    phrase = prompts.tokens(prompts.parse(phrases[1]))[1:-1]
    paired = (j for j in range(len(target)) if plan.aligned[j] < 0 <= aligned[j] and source[aligned[j]] in phrase)
    return (*kit.first_places(target, phrase), *paired)
