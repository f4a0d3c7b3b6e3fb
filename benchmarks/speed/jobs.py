"""What a process of its own measures, by the name that its parent calls it by; a row is one line of JSON."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.speed.cells import WHOLE, Cell
from benchmarks.speed.models import MODELS, ROOT
from sage.machine.allocator import keep_freed_memory

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


def ablation(job: Job) -> Any:
    from benchmarks.speed.ablation import measure
    return measure(job["model"], job["size"], Path(job["cache"]), job["upto"])


def recommended(job: Job) -> Any:
    """Edits of 50 steps by the miniature as it recommends, once loaded."""
    import sage
    keep_freed_memory()
    about = MODELS["stilllife"]
    model = sage.load_model("stilllife", device="cpu")
    config, seconds = sage.method("sage").recommended(model).but(steps=WHOLE, retries=0), []
    for _ in range(6):
        start = time.perf_counter()
        sage.edit(model, about.picture(64), about.source, about.target, config)
        seconds.append(time.perf_counter() - start)
    return {"seconds": seconds[1:], "guided": config.guided_steps}


def few(job: Job) -> Any:
    from benchmarks.speed.few import Few, measure
    return measure(Few(**job["case"]), job["method"], Path(job["cache"]))


def command(job: Job) -> Any:
    """The whole of an edit by the miniature from the shell."""
    about = MODELS["stilllife"]
    with TemporaryDirectory() as folder:
        arguments = ["edit", "examples/mug.png", "--source", about.source, "--target", about.target, "--model",
                     "stilllife", "--steps", str(WHOLE), "--retries", "0", "--out", f"{folder}/out.png"]
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "sage", *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL)
        return {"seconds": time.perf_counter() - start}


KINDS = {"edit": edit, "floor": floor, "count": count, "profile": profile, "many": many, "steps": steps,
         "command": command, "few": few, "ablation": ablation, "recommended": recommended}


def main() -> None:
    """The job as JSON in the first argument; its row as the last line of what is printed."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    job = json.loads(sys.argv[1])
    print(json.dumps(KINDS[job["kind"]](job)))


if __name__ == "__main__":
    main()
