"""Whether memory grows with the edits that one process makes, and with the steps of one.

    python -m benchmarks.speed --only memory
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.speed.cells import GUIDED, OURS, WHOLE
from benchmarks.speed.measure import IMPLEMENTATIONS, Clock, Host, bytes_of
from benchmarks.speed.models import MODELS

EDITS, SETTLED = 100, 20  # the first edits fill caches and are not counted
STEPS = (10, 20, 50, 100)


def slope(values: list[float]) -> dict[str, float]:
    """Growth by one, by least squares, with its 95 % interval."""
    x, y = np.arange(len(values), dtype=np.float64), np.asarray(values, np.float64)
    a, b = np.polyfit(x, y, 1)
    left = y - (a * x + b)
    error = (left @ left / (len(x) - 2) / ((x - x.mean()) ** 2).sum()) ** 0.5
    return {"slope": float(a), "low": float(a - 1.96 * error), "high": float(a + 1.96 * error)}


def many(model: str, size: int, cache: Path, edits: int = EDITS, steps: int = 10) -> dict[str, Any]:
    """Bytes resident after each of many edits by one process."""
    about = MODELS[model]
    runs = IMPLEMENTATIONS[OURS](about, about.folder(cache), "cpu", torch.float32)
    resident = []
    for _ in range(edits):
        runs.edit(1, size, steps, steps, lambda *step: None)
        resident.append(Host.now())
    return {"steps": steps, "resident": resident, "growth": slope(resident[min(SETTLED, edits // 2):])}


def one(model: str, size: int, cache: Path, steps: int) -> dict[str, Any]:
    """The peak of one edit of so many steps, and the bytes of its references."""
    about = MODELS[model]
    runs = IMPLEMENTATIONS[OURS](about, about.folder(cache), "cpu", torch.float32)
    runs.edit(1, size, 2, 2, lambda *step: None)
    Host.forget()
    guided = round(steps * GUIDED / WHOLE)
    clock = Clock("cpu")
    result = runs.edit(1, size, steps, guided, clock)
    peak = max(*clock.peaks.values(), Host.peak())
    return {"steps": steps, "peak": peak, "references": bytes_of(getattr(result, "trajectory", None))}
