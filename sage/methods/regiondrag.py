"""RegionDrag's rule on edit-friendly noises: regions of the latents are put elsewhere (2407.18247; 2304.06140).

    z_K[to] <- z*_K[from],  and where nothing is put any more  sqrt(1 - a^2) z_K + a noise
    z_k     <- mean(z_{k+1}) + sigma u_k,   u_k moved likewise              the target looks at the source's keys
    z_k[to] <- z*_k[from]   while k > until N;   z_k <- z*_k outside        z*: the latents of the way to noise

The noises are those that give the picture back: where nothing is moved, nothing changes.

This is the rule and not the released code (Visual-AI/RegionDrag), whose network sees the picture itself too, through
an IP-Adapter; docs/eedit.md has all that differs.  There is no preset "published".
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sage import kit
from sage.method import Method, Step
from sage.pictures.regions import cells, matched
from sage.settings import Guidance, PartWay, Picture, frozen, setting, share_of

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from sage.job import Job
    from sage.models.backbone import Backbone


@frozen
class Settings(Guidance, PartWay, Picture):
    """Regions."""

    until: float = setting(0.2, "share of the way to noise down to which what is moved is put there anew", low=0,
                           high=1)
    drag_class: str = setting("copy", "where a region was, nothing is left, and it is made anew; or with cut what was "
                              "at its new place", "copy", "cut")
    alpha: float = setting(1.0, "copy: share of noise where a region was, 1 for noise alone", low=0, high=1)
    margin: int = setting(1, "places around the regions that may change too, where no mask says it", low=0, high=100)
    keys: str = setting("source", "what the edit looks at: the picture as it was, both, or itself alone", "source",
                        "both", "own")


class RegionDrag(Method[Settings]):
    """Regions put elsewhere."""

    name, title, paper = "regiondrag", "RegionDrag's rule on edit-friendly noises", "2407.18247"
    about = "puts regions of the picture elsewhere; without regions to move it is edit-friendly DDPM inversion"
    reads = frozenset({"source", "target", "mask", "moves"})
    calls = "N + 2 strength N"
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

    def back(self, job: "Job[Settings]", path: "kit.Trajectory") -> "Iterator[Tensor]":
        yield from path.latents[-2::-1]

    def edit(self, job: "Job[Settings]", path: "kit.Trajectory") -> Iterator[Step]:
        s, moves = job.settings, Moves(job, job.settings.margin)
        selfs = kit.Sites(site for site in job.model.sites() if site.kind == "self") if s.keys != "own" else ()
        z = moves.begun(path.noise)
        for i, (here, there) in enumerate(job.down):
            recorded, left = path.latents[-1 - i], len(job.down) - 1 - i
            branches = {"source": (recorded, job.source), "target": (z, job.target)}
            if s.guidance_scale != 1:
                branches["negative"] = z, job.empty
            lenders = dict.fromkeys(("target", "negative"), "source")
            with kit.lent(selfs, branches, lenders, own=s.keys == "both"):
                seen = job.together(here, **branches)
            guided = seen["target"] if s.guidance_scale == 1 else kit.classifier_free(
                seen["negative"], seen["target"], s.guidance_scale)
            mean, scale = kit.reaching(guided, here, there)
            noise = moves.put(path.noises[i], path.noises[i], job.noise(1, i))  # type: ignore[attr-defined]
            z = mean + scale * noise
            if left > share_of(s.until, s.steps):
                z = moves.put(z, path.latents[-2 - i])
            z = moves.confined(z, path.latents[-2 - i])
            yield Step(i, z, here, seen["source"], seen["target"], guided, mask=moves.free)


class Moves:
    """What goes where on the latents, picture by picture.

    Args:
        job: whose settings have `drag_class` and `alpha`.
        margin: cells around the regions that may change too, where no mask says it.
    Attributes:
        free: (B, 1, h, w) in {0, 1}, where the pictures may change.
    """

    def __init__(self, job: "Job[Any]", margin: int):
        import torch
        self.s, self.job = job.settings, job
        rows = [self._of(row) for row in range(len(job.z0))]
        self.pairs = [pairs for pairs, _ in rows]
        touched = torch.stack([torch.from_numpy(place) for _, place in rows])[:, None].to(job.z0)
        free = kit.dilated(touched, margin)
        free[[i for i, pairs in enumerate(self.pairs) if not pairs]] = 1.0
        self.free = free if job.mask is None else job.mask

    def _of(self, row: int) -> "tuple[list[tuple[np.ndarray, np.ndarray]], np.ndarray]":
        """Places and where they come from, of each move; and all the places of any."""
        import numpy as np
        height, width = self.job.z0.shape[-2:]
        size = height, width
        pairs, touched = [], np.zeros(size, bool)
        for move in self.job.requests[row].moves:
            source, target = (cells(mask, size) for mask in (move.source, move.target))
            pairs.append(matched(source, target))
            touched |= source | target
        if self.job.requests[row].points:
            to, come = self.job.pairs_of_points(row)
            pairs.append((to, come))
            for place in to, come:
                touched[place[:, 0], place[:, 1]] = True
        return pairs, touched

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

    def begun(self, z: "Tensor") -> "Tensor":
        """The latents from which sampling starts."""
        return self.put(self.vacated(z), z)

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

