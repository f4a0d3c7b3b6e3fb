"""The blending mask of one edit: where the picture may change, known better step by step."""

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor

from sage.config import EditConfig
from sage.guidance import masks
from sage.guidance.hooks import Tap, record, select
from sage.models.sd.model import Backbone
from sage.prompts.plan import Plan
from sage.prompts.tokens import Span


class BlendingMask:
    """Accumulates, over passes and steps, what tells where the picture may change, and gives the mask so far.

    Attributes:
        difference: (B, 1, h, w) the sum over the steps so far of |eps_target - eps_source|, mean over channels.
        history: (B, 1, h, w) the masks that were used, on the CPU.
    """

    def __init__(self, model: Backbone, plans: Sequence[Plan], config: EditConfig, z: Tensor):
        self.config = config
        floors = min(config.reconstruction_mask_floor, config.guidance_mask_floor) < 1
        self.listens = config.mask_from == "attention"
        self.used = any(p.blend for p in plans) and (config.blend_fraction > 0 or floors)
        self.always = floors
        self.difference = torch.zeros_like(z[:, :1])
        self.history: list[Tensor] = []
        if not self.used:
            return
        # A picture without blending phrases may change everywhere.
        self.free = torch.tensor([plan.blend is None for plan in plans], device=z.device)[:, None, None, None]
        self.sites = select(model.sites(), "cross", config.cross_level) if self.listens else []
        self.side = tuple(-(-s // 2**config.cross_level) for s in z.shape[-2:])
        length = len(plans[0].source.ids)
        self.tokens = [torch.zeros(len(plans), length, device=z.device) for _ in range(2)]
        for row, plan in enumerate(plans):
            blend = plan.blend or Span((), ())
            for tokens, positions in zip(self.tokens, (blend.source, blend.target), strict=True):
                tokens[row, list(positions)] = 1.0
        self.attention = [torch.zeros(len(plans), 1, *self.side, device=z.device) for _ in range(2)]

    def listen(self, stack: ExitStack, step: int) -> Tap | None:
        """Record, inside `stack`, the attention of the pass that follows, if the mask has need of it at this step."""
        if self.used and self.listens and (self.always or self.config.blends_at(step)):
            return stack.enter_context(record(self.sites))
        return None

    def add(self, side: int | None, tap: Tap | None) -> None:
        """Add the attention of a pass under the source prompt, 0, or the target prompt, 1, or of both in one batch."""
        if tap is None:
            return
        maps = [m.detach() for m in tap.pop()]
        for i in (0, 1) if side is None else (side,):
            of_side = [m.chunk(2)[i] for m in maps] if side is None else maps
            self.attention[i] += masks.token_attention(of_side, self.tokens[i], *self.side)

    def add_difference(self, eps: Tensor) -> None:
        """Add what the two prompts' predictions eps (B, 4, h, w) differ by (Couairon et al. 2022)."""
        self.difference += eps.abs().mean(dim=1, keepdim=True)

    def at(self, z: Tensor) -> Tensor:
        """(B, 1, h, w) in {0, 1}: where the picture may change."""
        source, target = self.attention
        share = self.config.blend_threshold
        if not self.listens:
            return (masks.threshold(self.difference, share) | self.free).float()
        mask = (masks.threshold(source + target, share) if self.config.mask == "sum" else
                masks.threshold(source, share) | masks.threshold(target, share))
        return masks.resize(mask | self.free, *z.shape[-2:])

    def floored(self, floor: float, z: Tensor, inverse: bool = False) -> Tensor | float:
        if not self.used:
            return 1.0
        mask = self.at(z)
        return (1 - mask if inverse else mask).clamp(floor, 1).masked_fill(self.free, 1.0)
