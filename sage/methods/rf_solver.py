"""RF-Solver: a flow inverted and sampled by steps of second order, attention sharing values (Wang et al. 2411.04746).

The steps and the sharing are in sage/inversion/midpoint.py.
"""

from sage.inversion import midpoint
from sage.settings import frozen, setting

PUBLISHED = dict(steps=15, guidance_scale=2.0, guidance_by="input", shared_steps=3, first_block=0.68,
                 quantise="truncate")


@frozen
class Settings(midpoint.Settings):
    """Sharing."""

    steps: int = setting(15, "steps of the inversion, and of the sampling, of two passes each", low=1, high=1000)
    shared_steps: int = setting(3, "steps back, from the first, whose attention has the picture's values: the more, "
                                "the more is kept", low=0, high=1000, search=(0, 1, 3, 5))


class RFSolver(midpoint.Midpoint[Settings]):
    """RF-Solver."""

    name, title, paper = "rf-solver", "RF-Solver", "2411.04746"
    about = "inverts a flow by a solver of second order, and lends the edit the picture's values in its first steps"
    good_at = "retracing a picture closely with a flow"
    reads = frozenset({"source", "target", "negative", "mask"})
    presets = {"published": PUBLISHED}
    calls = "4 strength N and 2 a shared step; 6 strength N with guidance by two passes"
    reuses = False
