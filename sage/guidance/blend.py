"""The blending mask of one edit: where the picture may change, known better step by step."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sage.guidance import masks
from sage.guidance.hooks import Tap, listen, record
from sage.models.sites import QueriesKeys, Sites, Where
from sage.prompts.plan import Plan, token_mask
from sage.prompts.tokens import Span

if TYPE_CHECKING:
    from sage.job import Job

BRANCHES = ("source", "target")


class BlendingMask:
    """Accumulates, over passes and steps, what tells where the picture may change, and gives the mask so far.

    A picture whose plan has no blending phrases may change everywhere.

    Args:
        sites: of the cross-attention that is read; none where the mask is made from the predictions.
        z: (B, C, h, w) latents.
        threshold: share of a picture's maximum above which a place is in the mask.
        union: a mask a prompt, of which the union is taken; or one mask of their summed maps.
        kept: share of the greatest attention to what a plan keeps, above which a place is not in the mask.
        pooled: attention is the greatest of the 3x3 places around each.
    Attributes:
        difference: (B, 1, h, w) the sum over the steps so far of |eps_target - eps_source|, mean over channels.
    """

    def __init__(self, sites: Sites, plans: Sequence[Plan], z: Tensor, threshold: float, union: bool = True,
                 kept: float = 0.3, pooled: bool = True):
        self.sites, self.threshold, self.union, self.share_kept = sites, threshold, union, kept
        self.pooled = pooled
        self.used = any(plan.blend for plan in plans)
        self.free = torch.tensor([plan.blend is None for plan in plans], device=z.device)[:, None, None, None]
        self.grid = sites[0].grid(*z.shape[-2:]) if sites else (1, 1)
        blends, length = [plan.blend or Span((), ()) for plan in plans], len(plans[0].source.ids)
        self.tokens = {"source": token_mask([b.source for b in blends], length).to(z.device),
                       "target": token_mask([b.target for b in blends], length).to(z.device)}
        self.attention = {name: torch.zeros(len(plans), 1, *self.grid, device=z.device) for name in BRANCHES}
        keeps = [plan.kept or Span((), ()) for plan in plans]
        self.kept_tokens = {"source": token_mask([k.source for k in keeps], length).to(z.device),
                            "target": token_mask([k.target for k in keeps], length).to(z.device)}
        self.kept = {name: torch.zeros_like(seen) for name, seen in self.attention.items()
                     if any(plan.kept for plan in plans)}
        self.difference = torch.zeros_like(z[:, :1])

    @classmethod
    def of_job(cls, job: "Job[Any]", z: Tensor, where: Where | None = None, **how: Any) -> "BlendingMask":
        """As a job's settings, of which `Blending` is a group, say.

        Args:
            z: (B, C, h, w) latents.
            where: the attention that is read, where that is not cross-attention at the settings' `cross_level`.
            how: union, kept, pooled.
        """
        s = job.settings
        marks = s.mask_from == "attention" and any(plan.blend for plan in job.plans)
        sites = job.model.sites().at(where or Where("cross", s.cross_level)) if marks else Sites()
        return cls(sites, job.plans, z, s.blend_threshold, **how)

    @contextmanager
    def listen(self, wanted: bool = True, untouched: bool = False) -> Iterator[Tap | None]:
        """Record the attention of the pass inside the context, if it is `wanted` and the mask is made from it.

        Args:
            untouched: hear what maps are made of, so that the pass gives the same to the last bit as if alone.
        """
        if not (self.used and self.sites and wanted):
            yield None
            return
        with (listen if untouched else record)(self.sites) as tap:
            yield tap

    def add(self, tap: Tap | None, *branches: str) -> None:
        """Add what a pass under one prompt, or under both in one batch, has looked at.

        Args:
            branches: the parts of the batch in their order: "source", "target" or others, which are left out.
        """
        if tap is None:
            return
        heard = (m.map() if isinstance(m, QueriesKeys) else m for m in tap.pop())
        maps = [m.detach().chunk(len(branches)) for m in heard]
        for i, name in enumerate(branches):
            if name in BRANCHES:
                of_branch = [m[i] for m in maps]
                self.attention[name] += masks.token_attention(of_branch, self.tokens[name], *self.grid)
                if self.kept:
                    self.kept[name] += masks.token_attention(of_branch, self.kept_tokens[name], *self.grid)

    def add_difference(self, eps: Tensor) -> None:
        """Add what the two prompts' predictions eps (B, C, h, w) differ by (Couairon et al. 2022)."""
        self.difference += eps.abs().mean(dim=1, keepdim=True)

    def at(self, z: Tensor) -> Tensor:
        """(B, 1, h, w) in {0, 1}: where the picture may change."""
        if not self.sites:
            return (masks.threshold(self.difference, self.threshold) | self.free).float()
        source, target = self.attention["source"], self.attention["target"]
        of = (source, target) if self.union else (source + target,)
        mask = reduce(or_, (masks.threshold(seen, self.threshold, self.pooled) for seen in of))
        for seen in self.kept.values():  # "subtracted words": never pooled
            mask = mask & ~masks.threshold(seen, self.share_kept, pooled=False)
        return masks.resize(mask | self.free, *z.shape[-2:])

    def floored(self, floor: float, z: Tensor, inverse: bool = False) -> Tensor | float:
        """The mask, or what it leaves out, raised to `floor`; 1 where the picture may change everywhere."""
        if not self.used:
            return 1.0
        mask = self.at(z)
        return (1 - mask if inverse else mask).clamp(floor, 1).masked_fill(self.free, 1.0)
