"""FireFlow: steps of second order at the price of Euler's, each from the velocity of the one before (2412.07517).

The steps and the sharing are in sage/inversion/midpoint.py.
"""

from sage.inversion import midpoint
from sage.settings import frozen, setting

PUBLISHED = dict(steps=8, guidance_scale=2.0, guidance_by="input", shared_steps=1, first_block=0.68,
                 quantise="truncate")


@frozen
class Settings(midpoint.Settings):
    """Sharing."""

    steps: int = setting(8, "steps of the inversion, and of the sampling, of one pass each after the first", low=1,
                         high=1000)


class FireFlow(midpoint.Midpoint[Settings]):
    """FireFlow."""

    name, title, paper = "fireflow", "FireFlow", "2412.07517"
    about = "inverts a flow in few steps, each from the velocity of the one before, and lends the edit the values"
    good_at = "retracing a picture with a flow in few calls"
    reads = frozenset({"source", "target", "negative", "mask"})
    presets = {"published": PUBLISHED}
    calls = "2 strength N + 2 and 1 a shared step; 3 strength N + 3 and 1 with guidance by two passes"
    reuses = True
