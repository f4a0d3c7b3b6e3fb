"""Regions of the latents that are put elsewhere, and what comes where they were.

Where a region was and nothing is put, the prompt and the source's keys still name what stood there, and of noise alone
it grows again.  Ours (`Vacated`): those places begin as what lies around them, at that level's noise; they are
predicted under the empty prompt; and the source that lends its keys is the picture as if it were moved already:

    z0' = z0, with z0'[from] continued from around by Laplace's equation, then z0'[to] <- z0[from]
    z*'_k = z*_k + s_k (z0' - z0) where a region was, z*'_k[to] = z*_k[from]
"""

from typing import TYPE_CHECKING, Any

from sage import kit
from sage.pictures.regions import cells, matched, touched
from sage.settings import Settings, frozen, setting

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from sage.job import Job


@frozen
class Vacated(Settings):
    """Regions."""

    regional = frozenset({"vacated", "unnamed"})

    vacated: str = setting("around", "where a region was and nothing is put: what lies around it, made anew from its "
                           "noise, or noise as alpha says, as in the original codes", "around", "noise",
                           search=("around", "noise"))
    unnamed: bool = setting(True, "what comes there is predicted under the empty prompt, since the prompt still names "
                            "what was there", search=(True, False))


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
        if not any(self.pairs):
            return z
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

