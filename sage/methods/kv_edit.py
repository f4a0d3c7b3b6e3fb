"""KV-Edit: only what the mask holds is computed, and sees the rest as it was on the way to noise (2502.17363).

    up     z0 -> z_T under the source prompt; at every layer the keys and values of the picture are kept
    down   tokens inside the mask alone: their queries meet the keys and values of the text, of each other, and, kept,
           of all places outside; the latents outside are those of the way to noise

So what is outside is exactly the picture, and a step costs as much as the mask is large.  Zhu et al. 2025, sec. 3.2.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import TYPE_CHECKING

from sage import kit
from sage.method import Method, Step
from sage.settings import FlowGuidance, PartWay, Picture, Span, frozen, setting

if TYPE_CHECKING:
    from torch import Tensor

    from sage.job import Job
    from sage.models.backbone import Backbone

    Kept = tuple["kit.KeysValues", ...]

PUBLISHED = dict(steps=28, strength=24 / 28, source_guidance_scale=1.5, guidance_scale=5.5, guidance_by="input",
                 attn_scale=1.0, mask_cells="touched", conventions="published", quantise="truncate")


@frozen
class Settings(FlowGuidance, PartWay, Picture):
    """Keys and values."""

    fixes = frozenset({"source_guidance_scale", "pairing"})

    conventions: str = setting("consistent", "the way back begins at the end of the way to noise, and what changes is "
                               "whole tokens; or as in the original code a step before its end, and in tokens that the "
                               "mask does not fill the rest is put back before every pass, a level too clean",
                               "consistent", "published")
    mask_cells: str = setting("half", "places of the mask: those at least half white, or of which a pixel beside the "
                              "middle is not black", "half", "touched")

    source_guidance_scale: float = setting(1.0, "how strongly the source prompt is followed on the way to noise",
                                           low=0, high=100)
    pairing: str = setting("transition", "the keys and values that a step back sees outside: those of the inversion "
                           "step that it undoes, or of the level it starts from, which takes one more pass",
                           "transition", "level")
    attn_scale: float = setting(0.0, "added to the scores of attention on what is outside: the more, the better what "
                                "is inside goes with it", low=0, high=100)
    renewed: float = setting(0.0, "share of fresh noise in what is inside, to begin with: 1 forgets what was there",
                             low=0, high=1, search=Span(0.0, 1.0))


class KVEdit(Method[Settings]):
    """KV-Edit."""

    name, title, paper = "kv-edit", "KV-Edit", "2502.17363"
    about = "computes what is inside a mask and nothing else; the rest is the picture, exactly; takes a mask"
    good_at = "changing or filling what a mask marks, the rest being left exactly"
    reads = frozenset({"source", "target", "negative", "mask"})
    presets = {"published": PUBLISHED}
    calls = "strength N whole, and 2 strength N of the mask's share"
    strength = "renewed"

    def fits(self, model: "Backbone") -> str:
        return "" if hasattr(model, "computing") else "it computes all places or none; a flow transformer can do fewer"

    # ---- the way to noise

    def inversion(self, settings: Settings) -> str:
        return "keys and values"

    def wants(self, settings: Settings) -> tuple["kit.Wanted", ...]:
        return (kit.Wanted(kit.Where("self"), frozenset(range(settings.taken))),) if settings.taken else ()

    def edges(self, model: "Backbone", settings: Settings, size: tuple[int, int]) -> tuple["kit.Edges", "kit.Edges"]:
        return kit.part_way(super().edges(model, settings, size), settings.taken)

    def invert(self, job: "Job[Settings]") -> "kit.Trajectory":
        s, latents = job.settings, [job.z0]
        kept: list[Kept] = []
        for k, (here, there) in enumerate(job.up):
            seen, found = _kept(job, latents[-1], here)
            latents.append(kit.renoise(seen, there))
            kept.append(found)
            job.report("invert", k + 1, len(job.up))
        if s.pairing == "level" and job.up:
            kept = [*kept[1:], _kept(job, latents[-1], job.up[-1][1])[1]]
        wanted = self.wants(s)
        heard = (tuple(kept),) if wanted else ()
        return kit.Lent(origin=None, latents=tuple(latents), wanted=wanted, heard=heard)  # type: ignore[arg-type]

    # ---- the way back

    def edit(self, job: "Job[Settings]", path: "kit.Trajectory") -> Iterator[Step]:
        s, region, z = job.settings, _Region(job), path.noise
        published = s.conventions == "published" and job.mask is not None
        kept = path.heard[0] if isinstance(path, kit.Lent) and path.heard else ()
        if published and job.down:
            z = path.latents[-2]
        if s.renewed and published:
            anew = kit.renoise(kit.Prediction(path.latents[0], job.noise()), job.down[0][0])
            z = region.confined((1 - s.renewed) * z + s.renewed * anew, z)
        elif s.renewed:
            z = region.confined(kit.mixed_with_noise(z, job.noise(), s.renewed), z)
        for i, (here, there) in enumerate(job.down):
            if published:
                z = job.confined(z, path.latents[-2 - i])
            with region.alone(kept[-1 - i]):  # type: ignore[arg-type]
                guided = target = job.cfg(z, here, job.target, job.empty, s.guidance_scale)
            z = region.confined(kit.renoise(guided, there), path.latents[-2 - i])
            if published and i == len(job.down) - 1:
                z = job.confined(z, path.latents[0])
            yield Step(i, z, here, target=target, guided=guided, mask=region.mask)

    def random(self, settings: Settings) -> bool:
        return self.draws(settings) or settings.renewed > 0


def _kept(job: "Job[Settings]", z: "Tensor", level: "kit.Level") -> "tuple[kit.Prediction, Kept]":
    """What latents are made of under the source prompt, and the keys and values of every layer in that pass."""
    from sage.models.memory import on_host

    def keep(p: "kit.Projection") -> "kit.KeysValues":
        pair = kit.KeysValues(p.keys[-len(z):], p.values[-len(z):])  # what is guided away from comes first
        return kit.KeysValues(*map(on_host, pair)) if job.model.savings.references else pair

    with kit.listen(job.model.sites().at(kit.Where("self")), keep=keep) as tap:
        seen = job.cfg(z, level, job.source, job.empty, job.settings.source_guidance_scale, "source")
    return seen, tuple(tap.pop())


class _Region:
    """Where the pictures change: the tokens that the mask touches, all of them where there is none.

    Attributes:
        mask: (B, 1, h, w) in {0, 1}, whole tokens; None without a mask.
    """

    def __init__(self, job: "Job[Settings]"):
        from torch.nn.functional import adaptive_max_pool2d, interpolate
        self.job, self.sites, self.mask = job, job.model.sites().at(kit.Where("self")), job.mask
        if job.mask is None:
            for row in range(len(job.z0)):
                job.note(row, "no mask was given: everything may change, and every place is computed")
            return
        tokens = adaptive_max_pool2d(job.mask, self.sites[0].grid(*job.mask.shape[-2:]))
        self.mask, self.own = interpolate(tokens, job.mask.shape[-2:]), tokens.flatten(1) > 0  # (B, N)
        self.places = self.own.any(dim=0).nonzero()[:, 0]

    def confined(self, z: "Tensor", kept: "Tensor") -> "Tensor":
        """`z` inside, and outside what is kept."""
        return z if self.mask is None else z.where(self.mask > 0, kept)

    def alone(self, kept: "Kept") -> AbstractContextManager[object]:
        """Context around a pass in which the places inside are computed, and see what was kept of the others."""
        if self.mask is None:
            return nullcontext()
        of = {site.path: pair for site, pair in zip(self.sites, kept, strict=True)}
        # Where the pictures of a batch have masks of their own, what is inside another's is computed in vain.
        inside = self.own[:, None, self.places, None]

        def among(fresh: "Tensor", known: "Tensor") -> "Tensor":
            rows = len(fresh) // len(known)
            whole = known.to(fresh).repeat(rows, 1, 1, 1)
            whole[:, :, self.places] = fresh.where(inside.repeat(rows, 1, 1, 1), whole[:, :, self.places])
            return whole

        stack = ExitStack()
        stack.enter_context(self.job.model.computing(self.places))  # type: ignore[attr-defined]  # it fits
        if scale := self.job.settings.attn_scale:
            stack.enter_context(self.job.model.looking(scale * ~self.own))  # type: ignore[attr-defined]  # likewise
        stack.enter_context(kit.swap(self.sites, lambda p, site: p._replace(
            keys=among(p.keys, of[site.path].keys), values=among(p.values, of[site.path].values))))
        return stack
