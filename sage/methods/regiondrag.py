"""RegionDrag's rule on edit-friendly noises: regions of the latents are put elsewhere (2407.18247; 2304.06140).

    z_K[to] <- z*_K[from],  and where nothing is put any more  sqrt(1 - a^2) z_K + a noise
    z_k     <- mean(z_{k+1}) + sigma u_k,   u_k moved likewise              the target looks at the source's keys
    z_k[to] <- z*_k[from]   while k > until N;   z_k <- z*_k outside        z*: the latents of the way to noise

The noises are those that give the picture back: where nothing is moved, nothing changes.

This is the rule and not the released code (Visual-AI/RegionDrag), whose network sees the picture itself too, through
an IP-Adapter; docs/eedit.md has all that differs.  There is no preset "published".

Where a region was and nothing is put, the prompt and the source's keys still name what stood there, and of noise alone
it grows again.  Ours (`Vacated`): those places begin as what lies around them, at that level's noise; they are
predicted under the empty prompt; and the source that lends its keys is the picture as if it were moved already:

    z0' = z0, with z0'[from] continued from around by Laplace's equation, then z0'[to] <- z0[from]
    z*'_k = z*_k + s_k (z0' - z0) where a region was, z*'_k[to] = z*_k[from]
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sage import kit
from sage.method import Method, Step
from sage.pictures.regions import cells, matched, touched
from sage.settings import Guidance, PartWay, Picture, frozen, setting, share_of
from sage.settings import Settings as Base

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from sage.job import Job
    from sage.models.backbone import Backbone


@frozen
class Vacated(Base):
    """Regions."""

    regional = frozenset({"vacated", "unnamed"})

    vacated: str = setting("around", "where a region was and nothing is put: what lies around it, made anew from its "
                           "noise, or noise as alpha says, as in the original codes", "around", "noise",
                           search=("around", "noise"))
    unnamed: bool = setting(True, "what comes there is predicted under the empty prompt, since the prompt still names "
                            "what was there", search=(True, False))


@frozen
class Settings(Vacated, Guidance, PartWay, Picture):
    """Regions."""

    until: float = setting(0.2, "share of the way to noise down to which what is moved is put there anew", low=0,
                           high=1)
    drag_class: str = setting("copy", "where a region was, nothing is left, and it is made anew; or with cut what was "
                              "at its new place", "copy", "cut")
    alpha: float = setting(1.0, "share of noise where a region was and noise is put, 1 for noise alone", low=0, high=1)
    margin: int = setting(1, "places around the regions that may change too, where no mask says it", low=0, high=100)
    keys: str = setting("source", "what the edit looks at: the picture as it was, both, or itself alone", "source",
                        "both", "own")


class RegionDrag(Method[Settings]):
    """Regions put elsewhere."""

    name, title, paper = "regiondrag", "RegionDrag's rule on edit-friendly noises", "2407.18247"
    about = "puts regions of the picture elsewhere; without regions to move it is edit-friendly DDPM inversion"
    good_at = "putting things elsewhere, and making them larger or smaller"
    reads = frozenset({"source", "target", "mask", "moves", "points"})
    calls = "3 strength N; 4 strength N with guidance_scale other than 1, or with regions and unnamed"
    strength = "strength"

    def defaults(self, model: "Backbone") -> Settings:
        return Settings(steps=20, strength=0.5, guidance_scale=1.0)

    def inversion(self, settings: Settings) -> str:
        return "ddpm, without guidance"

    def draws(self, settings: Settings) -> bool:
        return True

    def edges(self, model: "Backbone", settings: Settings, size: tuple[int, int]) -> (
            "tuple[kit.Edges, kit.Edges]"):
        return kit.part_way(super().edges(model, settings, size), settings.taken)

    def invert(self, job: "Job[Settings]") -> "kit.Trajectory":
        return kit.noise_inversion(job, lambda z, i: kit.reaching(
            job.predict(z, job.down[i][0], job.source, "source"), *job.down[i]))

    def edit(self, job: "Job[Settings]", path: "kit.Trajectory") -> Iterator[Step]:
        s, moves = job.settings, Moves(job, job.settings.margin)
        selfs = kit.Sites(site for site in job.model.sites() if site.kind == "self") if s.keys != "own" else ()
        z = moves.begun(path.noise, job.down[0][0]) if job.down else path.noise
        for i, (here, there) in enumerate(job.down):
            recorded, left = moves.of_moved(path.latents[-1 - i], here), len(job.down) - 1 - i
            branches = {"source": (recorded, job.source), "target": (z, job.target)}
            if s.guidance_scale != 1 or moves.unnamed:
                branches["negative"] = z, job.empty
            lenders = dict.fromkeys(("target", "negative"), "source")
            with kit.lent(selfs, branches, lenders, own=s.keys == "both"):
                seen = job.together(here, **branches)
            guided = seen["target"] if s.guidance_scale == 1 else kit.classifier_free(
                seen["negative"], seen["target"], s.guidance_scale)
            if moves.unnamed:
                guided = moves.where_vacant(seen["negative"], guided)
            mean, scale = kit.reaching(guided, here, there)
            z = mean + scale * moves.noises(path.noises[i], job.noise(1, i))  # type: ignore[attr-defined]
            if left > share_of(s.until, s.steps):
                z = moves.put(z, path.latents[-2 - i])
            z = moves.confined(z, path.latents[-2 - i])
            yield Step(i, z, here, seen["source"], seen["target"], guided, mask=moves.free)


class Moves:
    """What goes where on the latents, picture by picture.

    Args:
        job: whose settings have `drag_class`, `alpha`, `vacated` and `unnamed`.
        margin: cells around the regions that may change too, where no mask says it.
    Attributes:
        free: (B, 1, h, w) in {0, 1}, where the pictures may change.
        vacant: (B, 1, h, w) bool, where a region was and nothing is put; nowhere if regions change places.
        unnamed: whether there is such a place and it is predicted under the empty prompt.
        moved: (B, C, h, w) clean latents of the picture as if it were moved already, or of the picture itself.
    """

    def __init__(self, job: "Job[Any]", margin: int):
        import torch
        self.s, self.job = job.settings, job
        self.around = self.s.vacated == "around" and self.s.drag_class == "copy"
        rows = [self._of(row) for row in range(len(job.z0))]
        self.pairs = [pairs for pairs, _, _ in rows]
        regions, left = (torch.stack([torch.from_numpy(row[i]) for row in rows])[:, None].to(job.z0) for i in (1, 2))
        free = kit.dilated(torch.maximum(regions, left) if self.around else regions, margin)
        free[[i for i, pairs in enumerate(self.pairs) if not pairs]] = 1.0
        self.free = free if job.mask is None else job.mask
        self.left = (left > 0) & (self.free > 0)
        nothing = torch.zeros_like(self.left)
        self.vacant = self.put(self.left, nothing) if self.s.drag_class == "copy" else nothing
        self.unnamed = self.s.unnamed and bool(self.vacant.any())
        self.floor = kit.harmonic(job.z0, self.left) if self.around else job.z0
        self.moved = self.put(self.floor, job.z0) if self.around else job.z0

    def _of(self, row: int) -> "tuple[list[tuple[np.ndarray, np.ndarray]], np.ndarray, np.ndarray]":
        """Places and where they come from, of each move; all the places of any; and those that something leaves."""
        import numpy as np
        height, width = self.job.z0.shape[-2:]
        size = height, width
        pairs, regions, left = [], np.zeros(size, bool), np.zeros(size, bool)
        for move in self.job.requests[row].moves:
            source, target = (cells(mask, size) for mask in (move.source, move.target))
            pairs.append(matched(source, target))
            regions |= source | target
            # The rim of a thing that covers less than half of a place would be left behind as its outline.
            left |= touched(move.source, size) if self.around else source
        if self.job.requests[row].points:
            to, come = self.job.pairs_of_points(row)
            pairs.append((to, come))
            left[come[:, 0], come[:, 1]] = True
            for place in to, come:
                regions[place[:, 0], place[:, 1]] = True
        return pairs, regions, left

    def put(self, z: "Tensor", of: "Tensor", vacant: "Tensor | None" = None) -> "Tensor":
        """`z` with what `of` has where a region was at its new place.

        Args:
            vacant: (B or 1, C, h, w), what comes where regions were and nothing is put.
        """
        out = z.clone()
        for row, pairs in enumerate(self.pairs):
            if self.s.drag_class == "cut" and self.job.requests[row].points:  # where both meet the old place wins
                for to, come in pairs:
                    out[row][:, to[:, 0], to[:, 1]] = of[row][:, come[:, 0], come[:, 1]]
                    out[row][:, come[:, 0], come[:, 1]] = of[row][:, to[:, 0], to[:, 1]]
                continue
            for to, come in pairs:
                if self.s.drag_class == "cut":  # what was at the new place is put at the old
                    out[row][:, come[:, 0], come[:, 1]] = of[row][:, to[:, 0], to[:, 1]]
                elif vacant is not None:
                    out[row][:, come[:, 0], come[:, 1]] = vacant[row % len(vacant)][:, come[:, 0], come[:, 1]]
            for to, come in pairs:
                out[row][:, to[:, 0], to[:, 1]] = of[row][:, come[:, 0], come[:, 1]]
        return out

    def begun(self, z: "Tensor", level: "kit.Level") -> "Tensor":
        """The latents from which sampling starts, at a level."""
        if not self.around:
            return self.put(self.vacated(z), z)
        noise = self.job.noise(0, 1).expand_as(z)
        return self.where_vacant(kit.renoise(kit.Prediction(self.moved, noise), level), self.put(z, z))

    def of_moved(self, z: "Tensor", level: "kit.Level") -> "Tensor":
        """Recorded latents of a level as if the picture had been moved already; as they are where noise is put."""
        if not self.around:
            return z
        return self.put(z + level.signal * (self.floor - self.job.z0), z)

    def noises(self, noise: "Tensor", fresh: "Tensor") -> "Tensor":
        """The noise of a step, moved likewise, and fresh where something was left."""
        if not self.around:
            return self.put(noise, noise, fresh)
        return self.where_vacant(fresh.expand_as(noise), self.put(noise, noise))

    def where_vacant(self, inside: "Any", outside: "Any") -> "Any":
        """Latents, or a prediction, where something was left, and others elsewhere."""
        import torch
        if isinstance(inside, kit.Prediction):
            return kit.Prediction(self.where_vacant(inside.x0, outside.x0), self.where_vacant(inside.eps, outside.eps))
        return torch.where(self.vacant, inside, outside)

    def vacated(self, z: "Tensor") -> "Tensor":
        """`z` with noise where regions were, as much as alpha says; of regions that change places over what comes."""
        a, noise, out = self.s.alpha, self.job.noise(0, 1).expand_as(z), z.clone()
        for row, pairs in enumerate(self.pairs):
            for to, come in pairs:
                before = z[row][:, to[:, 0], to[:, 1]] if self.s.drag_class == "cut" else z[row][:, come[:, 0],
                                                                                                come[:, 1]]
                out[row][:, come[:, 0], come[:, 1]] = (1 - a**2) ** 0.5 * before + a * noise[row][:, come[:, 0],
                                                                                                come[:, 1]]
        return out

    def halved(self) -> "Moves":
        """The same at half the coordinates."""
        from copy import copy
        half = copy(self)
        half.pairs = [[(to // 2, come // 2) for to, come in pairs] for pairs in self.pairs]
        return half

    def confined(self, z: "Tensor", kept: "Tensor") -> "Tensor":
        """`z` where the pictures may change, elsewhere `kept`."""
        import torch
        return torch.where(self.free > 0, z, kept)

