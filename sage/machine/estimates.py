"""How long an edit takes on a machine, reckoned from one where it was measured and from how fast both convolve.

An edit by networks of Stable Diffusion's size is convolutions and products for nine tenths of its time.  speed.json
holds what was measured, by `python -m benchmarks.speed`.  Imports no torch.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

FILE = Path(__file__).with_name("speed.json")
STEPS = 50  # of an edit
ALIKE = ("1.x", "2.x")  # families of one size
DISPATCH = 0.02  # seconds in which a network's operations are called once, which a fast GPU waits for


class Probe(NamedTuple):
    """The convolution, 3 x 3 over one picture, whose rate says how fast a machine is."""

    channels: int
    side: int

    @property
    def operations(self) -> int:
        """Multiplications and additions."""
        return 2 * 9 * self.channels**2 * self.side**2


PROBE = Probe(320, 64)


@dataclass(frozen=True)
class Estimate:
    """What an edit would take.

    Attributes:
        memory: bytes at the peak, the weights and on a CPU the libraries among them.
        basis: what it goes by: an edit that was measured, or one of another precision.
    """

    seconds: float
    memory: float
    basis: str


@cache
def figures() -> dict[str, Any]:
    """What was measured."""
    return json.loads(FILE.read_text())


def estimate(family: str, side: int, device: str, dtype: str, rate: float) -> Estimate | None:
    """What an edit of 50 steps of one picture would take, None where nothing like it was measured.

    Args:
        family: such as "1.x".
        side: of the picture, in pixels.
        device: "cpu" or "cuda".
        dtype: "float32", "float16" or "bfloat16".
        rate: operations a second of the probe on this device in this precision.
    """
    found = next((row for row in _like(family, side, device, dtype) if row), None)
    if found is None or rate <= 0:
        return None
    seconds = found["seconds"] * figures()["rates"][f"{found['device']} {found['dtype']}"] / rate
    if device == "cuda" and found["device"] != device:
        return Estimate(max(seconds, 2 * STEPS * DISPATCH), found["peak_GiB"] * 2**30, "never measured on a GPU")
    return Estimate(seconds, found["peak_GiB"] * 2**30, found.get("basis", "measured elsewhere"))


def _like(family: str, side: int, device: str, dtype: str) -> Iterator[dict[str, Any] | None]:
    """What was measured of such an edit, of one on a CPU, of a family of its size, or in another precision."""
    half = "bfloat16" if dtype == "float16" else dtype
    for kind in dict.fromkeys((family, *(ALIKE if family in ALIKE else ()))):
        yield _row(kind, side, device, dtype)
        yield _row(kind, side, "cpu", half)
        yield _translated(kind, side, half)


def _row(family: str, side: int, device: str, dtype: str) -> dict[str, Any] | None:
    wanted = {"family": family, "side": side, "device": device, "dtype": dtype}
    return next((row for row in figures()["edits"] if wanted.items() <= row.items()), None)


def _translated(family: str, side: int, dtype: str) -> dict[str, Any] | None:
    """From the other precision on a CPU, by what it was worth where both were measured."""
    other = "float32" if dtype == "bfloat16" else "bfloat16"
    known = _row(family, side, "cpu", other)
    pairs = ((row, _row(row["family"], row["side"], "cpu", dtype)) for row in figures()["edits"]
             if row["device"] == "cpu" and row["dtype"] == other)
    pair = next(((a, b) for a, b in pairs if b), None)
    if known is None or pair is None:
        return None
    return known | {"dtype": dtype, "basis": f"reckoned from {other}",
                    **{key: known[key] * pair[1][key] / pair[0][key] for key in ("seconds", "peak_GiB")}}
