"""SAGE's loss for any editor that has a source branch beside its target branch."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sage.errors import NumericsError
from sage.guidance.hooks import listen
from sage.guidance.losses import gradient, limited, map_slopes
from sage.models.sites import QueriesKeys, Where
from sage.sampling.levels import Level
from sage.sampling.steps import Prediction
from sage.settings import share_of

if TYPE_CHECKING:
    from sage.job import Job


class Preservation:
    """Draws an edit's self-attention maps to those of its source, both under the source prompt (2505.09571, eq. 3).

        z <- z - scale (1 - i / N) grad_z mean|A(z) - A(z_source)|

    Args:
        job: whose settings have the group `Preserved`.
        steps: N, of the way back.
    """

    def __init__(self, job: "Job[Any]", steps: int):
        self.job, self.steps, s = job, steps, job.settings
        self.drawn = share_of(s.preserve_fraction, steps)
        self.gain = job.gain([1 - i / steps if i < self.drawn else 0.0 for i in range(len(job.down))])
        self.sites = job.model.sites().at(Where("self", s.preserve_level)) if s.preserve_scale else ()

    def pull(self, step: int, level: Level, source: Tensor, z: Tensor) -> Tensor | float:
        """What the edit shall lose at sampling step `step`, after it.

        Args:
            source, z: (B, C, h, w) latents of the branches from which the step started, at `level`.
        Returns:
            (B, C, h, w) float32, or 0.0 where nothing is drawn.  Where both branches still are the same there is
            nothing to draw, and of what L1 makes of rounding nothing is wanted.
        Raises:
            NumericsError: the gradient is not finite, in float32 neither.
        """
        return self._pull(step, level, source, z, "")[0]

    def pull_and_source(self, step: int, level: Level, source: Tensor,
                        z: Tensor) -> tuple[Tensor | float, Prediction | None]:
        """The same, and what `z` is made of under the source prompt where the gradient came by it; else None."""
        return self._pull(step, level, source, z, "source")

    def _pull(self, step: int, level: Level, source: Tensor, z: Tensor,
              branch: str) -> tuple[Tensor | float, Prediction | None]:
        s = self.job.settings
        if not self.sites or step >= self.drawn or not self.job.in_full(step) or torch.equal(source, z):
            return 0.0, None
        g, seen = self._gradient(level, source, z, branch)
        if not g.isfinite().all():
            with self.job.model.full_precision():
                g, seen = self._gradient(level, source, z, branch)
            if not g.isfinite().all():
                raise NumericsError(f"the preservation gradient at step {step + 1} is not finite, in float32 too: "
                                    "nothing was written; try a smaller preserve_scale")
        return limited(self.gain * s.preserve_scale * (1 - step / self.steps) * g, self.gain * s.preserve_limit), seen

    def _gradient(self, level: Level, source: Tensor, z: Tensor, branch: str) -> tuple[Tensor, Prediction]:
        with listen(self.sites) as tap:
            self.job.predict(source, level, self.job.source)
            reference = [QueriesKeys(*(t.detach() for t in pair)) for pair in tap.pop()]
        z = z.detach().clone().requires_grad_()
        with torch.enable_grad(), listen(self.sites, last=True) as tap:
            seen = self.job.predict(z, level, self.job.source, branch).detach()
            pairs = tap.pop()
        _, slopes = map_slopes(pairs, reference)
        return gradient([t for pair in pairs for t in pair], slopes, z), seen
