"""MasaCtrl: the target looks at the source's keys and values (Cao et al. 2304.08465).

    out_target = softmax(Q_target K_source^T / sqrt(d)) V_source         self-attention, from a step and a block on

With a foreground, places of the target's look at those of the source's alone, and what is behind at what is behind.
Where it is can be given, or is read from attention to words.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Any

from sage import kit
from sage.errors import SettingsError
from sage.inversion import anchors
from sage.method import Method, Step
from sage.pictures.tensors import white
from sage.settings import AUTO, Phrases, Picture, Span, frozen, setting

if TYPE_CHECKING:
    from torch import Tensor

    from sage.job import Job
    from sage.models.backbone import Backbone
    from sage.prompts.plan import Plan
    from sage.prompts.tokens import Prompt, Prompts

Maps = dict[str, "Tensor"]  # (B, H, N, M) by branch
PUBLISHED = dict(steps=50, guidance_scale=7.5, conventions="published", proximal_hold="none", fit="squash",
                 quantise="truncate")
# Of arXiv 2306.05414's code.
PROXIMAL = PUBLISHED | dict(inversion="proximal", source_text="source", negative_empty=1.0, proximal_quantile=0.6,
                            proximal_of="target", fit="crop", quantise="round")


@frozen
class Settings(anchors.Anchored, Picture):
    """Attention."""

    first_step: int = setting(4, "steps that are left to the target alone, for its layout", low=0, high=1000,
                              search=Span(0, 12))
    first_block: float = setting(0.625, "share of the network's self-attention that is left alone, from its start",
                                 low=0, high=1, search=Span(0.0, 0.9))
    keys: str = setting("source", "what the target looks at: the source, or both", "source", "both")
    source_text: str = setting("empty", "what the picture is inverted under: the empty prompt, or the source prompt",
                               "empty", "source", search=("empty", "source"))
    foreground: Phrases = setting(None, "phrases whose places look at each other alone: auto (what differs between the "
                                  "prompts), none, or SOURCE,TARGET")
    foreground_threshold: float = setting(0.1, "attention to them, between its least and its greatest, from which on a "
                                          "place is foreground", low=0, high=1)
    cross_level: int = setting(2, "halvings of the latents at which it is read", low=0, high=8)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.foreground is not None and self.source_text == "empty":
            raise SettingsError("foreground is read from attention to words, and the source branch has none: give "
                                "source_text=source too")


class MasaCtrl(Method[Settings]):
    """Mutual self-attention."""

    name, title, paper = "masactrl", "Mutual self-attention control", "2304.08465"
    about = "gives a new layout the old looks; unable to add what the picture has not"
    good_at = "new poses, views and layouts of the same thing"
    reads = frozenset({"source", "target", "negative", "foregrounds"})
    presets = {"published": PUBLISHED, "proximal": PROXIMAL}
    calls = "4 N; 5 N under the source prompt"
    beside = ("direct",)

    def defaults(self, model: "Backbone") -> Settings:
        levels = [site.level for site in model.sites() if site.kind == "cross" and site.place != "mid"] or [0]
        return Settings(cross_level=min(2, max(levels)))

    def worded(self, settings: Settings) -> bool:
        return settings.foreground is not None

    def plan(self, prompts: "Prompts", source: "Prompt", target: "Prompt", settings: Settings) -> "Plan":
        from dataclasses import replace
        plan, phrases = super().plan(prompts, source, target, settings), settings.foreground
        if phrases is None:
            return plan
        if phrases == AUTO:
            marks = kit.Span(tuple(p for span in plan.edited for p in span.source),
                             tuple(p for span in plan.edited for p in span.target))
        else:
            marks = kit.marked(prompts, source, target, phrases, words=False)
        if not (marks.source and marks.target):
            return replace(plan, notes=(*plan.notes, "there is no foreground: no words of both prompts mark it"))
        return replace(plan, blend=marks)

    # ---- the way to noise

    def inversion(self, settings: Settings) -> str:
        return settings.way + (", empty prompt" if settings.source_text == "empty" else "")

    def edges(self, model: "Backbone", settings: Settings, size: tuple[int, int]) -> tuple["kit.Edges", "kit.Edges"]:
        return anchors.edges(model, settings) or super().edges(model, settings, size)

    def invert(self, job: "Job[Settings]") -> "kit.Trajectory":
        return anchors.invert(job, _text(job))

    def inverted_under(self, settings: Settings, source: "Prompt", prompts: "Prompts") -> "Prompt":
        return prompts.parse("") if settings.source_text == "empty" else source

    # ---- the way back

    def edit(self, job: "Job[Settings]", path: "kit.Trajectory") -> Iterator[Step]:
        held, mutual = anchors.anchor(job, path, _text(job)), Mutual(job)
        source = target = path.noise
        for i, (here, there) in enumerate(job.down):
            branches = mutual.branches(i, held.branches(i, source, target))
            with mutual.at(i, branches):
                found = job.together(here, **branches)
            left, guided = held.guided(found, here)
            source, target = held.hold(i, here, kit.renoise(left, there), kit.renoise(guided, there))
            yield Step(i, target, here, found["source"], found["target"], guided)


def _text(job: "Job[Settings]") -> "kit.Text":
    """What the source branch is under."""
    return job.nothing if job.settings.source_text == "empty" else job.source


class Mutual:
    """The keys and values that the target branch takes from the source branch, each from its half of the batch."""

    def __init__(self, job: "Job[Settings]"):
        s, sites = job.settings, job.model.sites()
        self.job, self.s, self.size = job, s, tuple(job.z0.shape[-2:])
        self.late = kit.Sites(site for site in sites if site.kind == "self" and site.depth >= s.first_block)
        self.given = _given(job)
        self.marked = not self.given and any(plan.blend for plan in job.plans)
        self.cross = sites.at(kit.Where("cross", s.cross_level)) if self.marked else kit.Sites()
        spans = [plan.blend or kit.Span((), ()) for plan in job.plans]
        self.tokens = {name: kit.token_mask([getattr(span, name) for span in spans], len(job.plans[0].source.ids)
                                            ).to(job.z0.device) for name in ("source", "target")}

    def branches(self, step: int, branches: "anchors.Branches") -> "anchors.Branches":
        """Those of a pass, with one more to lend to the half that guidance leads away from, if the source has no such.

        In the original code each half has a source of its own; else that under the source prompt lends to both.
        """
        if (self.s.conventions != "published" or step < self.s.first_step or "no_source" in branches
                or self.s.source_text == "empty" or self.s.inversion in ("negative", "proximal")):
            return branches
        return {"lender": (branches["source"][0], self.job.empty)} | branches

    def at(self, step: int, branches: "anchors.Branches") -> AbstractContextManager[Any]:
        """Context around the pass of a step."""
        stack, names = ExitStack(), tuple(branches)
        if step < self.s.first_step:
            return stack
        lender = next(name for name in ("lender", "no_source", "source") if name in names)
        lenders = {"target": "source", "no_target": lender}
        stack.enter_context(kit.lent(self.late, names, lenders, own=self.s.keys == "both"))
        heard: list[Maps] = []  # of the layers that this pass has come through
        if self.marked:
            def hear(maps: Maps, site: kit.Site) -> Maps:
                heard.append(maps)
                return {}

            stack.enter_context(kit.between(self.cross, names, hear))
        if self.marked or self.given:
            stack.enter_context(kit.between(self.late, names, lambda maps, site: self._apart(maps, site, heard)))
        return stack

    def _apart(self, maps: "Maps", site: "kit.Site", heard: "list[Maps]") -> "Maps":
        """The maps of both halves of the target, foreground and the rest each among themselves."""
        if not (heard or self.given):
            return {}
        seen = {name: self._foreground(name, [m[name] for m in heard], site) for name in ("source", "target")}
        keys = seen["source"].flatten(1)[:, None, None, :]  # (B, 1, 1, M)
        if self.s.keys == "both":
            import torch
            keys = torch.cat([keys, seen["target"].flatten(1)[:, None, None, :]], dim=-1)
        allowed = (seen["target"].flatten(1)[:, None, :, None] == keys).float()
        out = {}
        for name in ("target", "no_target"):
            a = maps[name] * allowed
            total = a.sum(dim=-1, keepdim=True)
            # Who may look nowhere looks everywhere; in the original code everywhere alike.
            elsewhere = maps[name] if self.s.conventions == "consistent" else a.new_tensor(1 / a.shape[-1])
            out[name] = (a / total).where(total > 0, elsewhere)
        return out

    def _foreground(self, name: str, maps: "list[Tensor]", site: "kit.Site") -> "Tensor":
        """(B, 1, h', w') in {0, 1} at a site; all 1 where a picture has no foreground."""
        if self.given:
            import torch
            return torch.cat([kit.resize(places, *site.grid(*self.size)) for places in self.given[name]])
        look = kit.token_attention(maps, self.tokens[name], *self.cross[0].grid(*self.size))
        low, high = look.amin(dim=(2, 3), keepdim=True), look.amax(dim=(2, 3), keepdim=True)
        inside = (look - low >= self.s.foreground_threshold * (high - low))
        return kit.resize(inside, *site.grid(*self.size))


def _given(job: "Job[Settings]") -> "dict[str, list[Tensor]]":
    """By branch the foreground of each picture, (1, 1, H, W) bool, as its request has it; nothing where none has one.

    Raises:
        SettingsError: anything but two pictures.
    """
    import torch
    pairs = [request.foregrounds for request in job.requests]
    if not any(pairs):
        return {}
    if wrong := next((pair for pair in pairs if len(pair) not in (0, 2)), None):
        raise SettingsError(f"there are {len(wrong)} foregrounds: give two pictures, white where the foreground is in "
                            "the picture, and where it shall be in the edit")
    everywhere = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    rows = [[white(image) for image in pair] or [everywhere] * 2 for pair in pairs]
    return {name: [row[i].to(job.z0.device) for row in rows] for i, name in enumerate(("source", "target"))}
