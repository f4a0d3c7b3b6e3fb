"""The figures that `sage doctor` goes by -> sage/machine/speed.json: with the whole table, or from the one there is.

    python -m benchmarks.speed.carried
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.speed.cells import OURS
from benchmarks.speed.table import Page
from sage.files import written_whole
from sage.machine.estimates import FILE, PROBE

FAMILIES = {"sd14": "1.x", "sd21": "2.x"}  # the bundled model is timed where it is asked after
RATE = f"convolution 3 x 3 of {PROBE.channels}"


def carried(results: Mapping[str, Any]) -> dict[str, Any]:
    """Edits of one picture by networks of known sizes, and how fast the machine convolved, of a whole run's results."""
    page = Page(results)
    edits = [{"family": FAMILIES[s.cell.model], "side": s.cell.size, "device": s.cell.device, "dtype": s.cell.dtype,
              "seconds": float(f"{s.edit:.3g}"), "peak_GiB": round((s.device_peak or s.peak) / 2**30, 1)}
             for (_, name), s in page.summaries.items()
             if name == OURS and s.cell.batch == 1 and s.cell.model in FAMILIES]
    rates = {f"{device} {dtype}": float(f"{found['rates'][RATE]:.3g}")
             for (device, dtype), found in page.machines.items()}
    return {"date": results["date"], "machine": results["machine"]["cpu"], "rates": rates, "edits": edits}


def write(results: Mapping[str, Any]) -> None:
    """Put them where the library finds them."""
    with written_whole(FILE) as file:
        file.write((json.dumps(carried(results), indent=1) + "\n").encode())


if __name__ == "__main__":
    write(json.loads(Path("benchmarks/results/speed.json").read_text()))
