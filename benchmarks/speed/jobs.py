"""The measurements by the names that the parent process calls them by."""

import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.speed.cells import GUIDED, WHOLE, Cell
from benchmarks.speed.models import MODELS, ROOT

Job = dict[str, Any]


def cell_of(job: Job) -> Cell:
    return Cell(**job["cell"])


def edit(job: Job) -> Any:
    from benchmarks.speed.measure import measure
    return measure(cell_of(job), job["implementation"], Path(job["cache"]))


def floor(job: Job) -> Any:
    from benchmarks.speed.floor import machine
    from benchmarks.speed.measure import DTYPES
    return machine(job["device"], DTYPES[job["dtype"]], job["seconds"])


def count(job: Job) -> Any:
    from dataclasses import asdict

    from benchmarks.speed.count import parts
    return {name: asdict(part) for name, part in parts(cell_of(job)).items()}


def profile(job: Job) -> Any:
    from benchmarks.speed.parts import measure
    return measure(cell_of(job), job["implementation"], Path(job["cache"]))


def many(job: Job) -> Any:
    from benchmarks.speed.memory import many
    return many("stilllife", 64, Path(job["cache"]), job["edits"])


def steps(job: Job) -> Any:
    from benchmarks.speed.memory import one
    return one("stilllife", 64, Path(job["cache"]), job["steps"])


def command(job: Job) -> Any:
    """The whole of an edit by the miniature from the shell."""
    about = MODELS["stilllife"]
    with TemporaryDirectory() as folder:
        arguments = ["edit", "examples/mug.png", "--source", about.source, "--target", about.target, "--model",
                     "stilllife", "--steps", str(WHOLE), "--guided-steps", str(GUIDED), "--retries", "0", "--out",
                     f"{folder}/out.png"]
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "sage", *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL)
        return {"seconds": time.perf_counter() - start}


KINDS = {"edit": edit, "floor": floor, "count": count, "profile": profile, "many": many, "steps": steps,
         "command": command}
