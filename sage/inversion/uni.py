"""Uni-Inv: a way to noise whose steps look ahead, so that sampling nearly retraces it (Jiao et al. 2504.13109, alg. 1).

    z~ = z + step(v_last),   z <- z + step(v(z~, t'))

Each step goes by what the network gives where it ends, which is where the step back will ask it; the look ahead goes by
what it gave last.  One pass a step, and one before the first.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sage import kit

if TYPE_CHECKING:
    from torch import Tensor

    from sage.job import Job

    Predict = Callable[[Tensor, kit.Level], kit.Prediction]


def uni_inversion(job: "Job[Any]", predict: "Predict", first: "kit.Level | None" = None,
                  straight: bool = False) -> "kit.Trajectory":
    """The way to noise along `job.up`.

    Args:
        predict: (latents, level) -> what they are made of.
        first: where the first look ahead is taken; default: as far as the first step goes.
        straight: look ahead along the last step, as the authors' code for diffusions does, which is something else
            where the network predicts v: what it gave is held there.
    """
    z, latents = job.z0, [job.z0]
    for i, (here, there) in enumerate(job.up):
        if i == 0:
            last, seen = here, predict(z, here)
            going = seen
        on = going if straight else carried(job, z, seen, last, here)
        last, seen = there, predict(kit.renoise(on, first if first and i == 0 else there), there)
        going = carried(job, z, seen, there, here)
        z = kit.renoise(going, there)
        latents.append(z)
        job.report("invert", i + 1, len(job.up))
    return kit.Trajectory(origin=None, latents=tuple(latents))  # type: ignore[arg-type]  # the driver says of what


def carried(job: "Job[Any]", z: "Tensor", p: "kit.Prediction", at: "kit.Level",
            here: "kit.Level") -> "kit.Prediction":
    """What `z` at a level is made of by what the network gave at the level `at`."""
    kind = job.model.prediction_type
    return kit.from_output(z, kit.to_output(p, at, kind), here, kind)
