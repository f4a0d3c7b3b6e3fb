"""What each short cut is worth: from everything the long way, one more at a time.

Every row is a process of its own, since memory once kept is kept.  What a row lacks is put out of action from outside,
as the tests do that hold the short cuts to the plain way.
"""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.speed.cells import OURS
from benchmarks.speed.measure import IMPLEMENTATIONS, Clock, Host, weights
from benchmarks.speed.models import MODELS
from sage import kit
from sage.guidance import hooks
from sage.methods import sage as method
from sage.models import layers, sites
from sage.models.sd.model import StableDiffusion


def _two_passes(self: Any, z: torch.Tensor, level: Any, marking: bool) -> tuple:
    made = []
    for branch, text in (("target", self.job.target), ("source", self.job.source)):
        with self.blend.listen(marking) as tap:
            made.append(self.job.predict(z, level, text, branch))
        self.blend.add(tap, branch)
    return made[1], made[0]


# Each with what puts it out of action.
SHORT_CUTS: dict[str, Callable[[ExitStack], None]] = {
    "what is freed is kept": lambda out: out.enter_context(
        patch("benchmarks.speed.measure.keep_freed_memory", lambda: False)),
    "large products by oneDNN": lambda out: out.enter_context(patch.object(layers, "PRODUCT", None)),
    "no map is formed that nobody asks for": lambda out: out.enter_context(
        patch.object(sites.Site, "tapped", property(lambda site: True))),
    "no graph past the last compared site": lambda out: out.enter_context(
        patch.object(kit, "listen", lambda sites, last=False: hooks.listen(sites))),
    "text and time prepared once": lambda out: (
        out.enter_context(patch.object(StableDiffusion, "prepare", lambda model, text, guidance=None: text)),
        out.enter_context(patch.object(StableDiffusion, "_time", lambda model, t: torch.tensor(float(t))))),
    "both prompts in one batch": lambda out: out.enter_context(patch.object(method._Passes, "_in_one", _two_passes)),
    "convolutions packed (small models)": lambda out: out.enter_context(patch("sage.models.latent.SMALL", 0)),
}
PLAIN = "everything the long way"


def measure(model: str, size: int, cache: Path, upto: str) -> dict[str, Any]:
    """Seconds of each kind of step and the peak beyond the weights, with the short cuts up to and with `upto`."""
    names = list(SHORT_CUTS)
    used = names[:names.index(upto) + 1] if upto != PLAIN else []
    with ExitStack() as out:
        for name in names:
            if name not in used:
                SHORT_CUTS[name](out)
        about = MODELS[model]
        runs = IMPLEMENTATIONS[OURS](about, about.folder(cache), "cpu", torch.float32)
        held = sum(weights(runs.modules()).values())
        runs.invert(1, size, 1)
        Host.forget()
        clock = Clock("cpu")
        runs.edit(1, size, 6, 3, clock)
        back = clock.steps("edit")
    return {"invert": median(clock.steps("invert")[1:]), "guided": median(back[1:3]), "unguided": median(back[4:]),
            "beyond": max(*clock.peaks.values(), Host.peak()) - held}
