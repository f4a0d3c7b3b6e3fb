"""Measure speed and memory, ours beside the released algorithm's way of computing, and write one table.

Every measurement is a process of its own; rounds take turns, so that both see the same machine.  What is done is kept:
killed and started again, with the same code, it goes on.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.speed import carried, table
from benchmarks.speed.cells import CELLS, UNASKED, Cell
from benchmarks.speed.few import CASES, COMPILED, METHODS
from benchmarks.speed.memory import EDITS, STEPS
from benchmarks.speed.models import MODELS, ROOT
from sage.files import written_whole
from sage.machine.threads import sleep_while_waiting
from sage.models.compiled import installed

RESULTS = Path("benchmarks/results/speed.md")
QUICK = ("stilllife-64-cpu-float32-b1", "sd14-256-cpu-float32-b1")
PROFILED = ("stilllife-64-cpu-float32-b1", "sd14-256-cpu-float32-b1", "sd14-512-cuda-float16-b1")

Job = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    add = parser.add_argument
    add("--only", metavar="NAME", nargs="+", help="what has one of these in its name, left out otherwise or not: "
        "stilllife, sd14-256, sd14-512-cpu-float32-b1, cuda, memory, command, profile, few-sdxl, ...")
    add("--rounds", metavar="N", type=int, help="times each is measured; default: by cell")
    add("--whole", action="store_true", help="time whole edits of 50 steps, where they would be composed of few steps")
    add("--quick", action="store_true", help="one round of the miniature and of SD 1.4 at 256, without profile")
    add("--fresh", action="store_true", help="forget what a killed run has measured")
    add("--list", action="store_true", help="print the names and stop")
    add("--run", type=Path, default=Path("runs/speed"), help="where rows and random weights are kept [runs/speed]")
    add("--out", type=Path, help=f"the table, .md, and beside it .json [{RESULTS}, of a part RUN/speed.md]")
    args = parser.parse_args(argv)
    sleep_while_waiting()  # as the command line: what is started from here inherits it
    cells = chosen(args.only, args.rounds, args.whole, args.quick)
    jobs = list(plan(cells, args.only, args.quick, cuda_here()))
    if args.list:
        print("\n".join(job["name"] for job in jobs))
        return
    out = args.out or (args.run / "speed.md" if args.only or args.quick else RESULTS)
    rows = carry_out(jobs, args.run, args.fresh)
    results = {"machine": table.this_machine(), "date": datetime.now(UTC).date().isoformat(),
               "cells": {cell.name: asdict(cell) for cell in cells}, "rows": rows}
    write(out, results)
    print(out.read_text())


def chosen(only: Sequence[str] | None, rounds: int | None, whole: bool, quick: bool) -> list[Cell]:
    """Every cell, as it is to be measured; what is not has a reason in `why_not`."""
    cells = []
    for cell in CELLS.values():
        if quick:
            cell = replace(cell, rounds=1, why_not="" if cell.name in QUICK else "left out: --quick")
        if only is not None:
            cell = replace(cell, why_not="" if wanted(cell.name, only) else UNASKED)
        cells.append(replace(cell, rounds=rounds or cell.rounds, whole=cell.whole or whole))
    return cells


def wanted(name: str, only: Sequence[str] | None) -> bool:
    return only is None or any(part in name for part in only)


def cuda_here() -> bool:
    import torch
    return torch.cuda.is_available()


def plan(cells: Sequence[Cell], only: Sequence[str] | None, quick: bool, cuda: bool) -> Iterator[Job]:
    """What to run, in order: what is measured in rounds first, the long ones after it."""
    here = [cell for cell in cells if not cell.why_not and (cuda or cell.device == "cpu")]
    for device, dtype in dict.fromkeys((cell.device, cell.dtype) for cell in here):
        yield {"name": f"floor-{device}-{dtype}", "kind": "floor", "device": device, "dtype": dtype,
               "seconds": 0.3 if quick else 1.0}
    for cell in here:
        yield {"name": f"count {cell.name}", "kind": "count", "cell": asdict(cell)}
    short = [cell for cell in here if cell.rounds > 1 or len(here) == 1]
    for group in (short, [cell for cell in here if cell not in short]):
        for turn in range(max((cell.rounds for cell in group), default=0)):
            for cell in group:
                for name in cell.implementations[::-1 if turn % 2 else 1] if turn < cell.rounds else ():
                    yield {"name": f"{cell.name} {name} {turn + 1}", "kind": "edit", "cell": asdict(cell),
                           "implementation": name, "turn": turn}
    if quick:
        return
    for cell in here:
        if cell.name in PROFILED:
            for name in cell.implementations:
                yield {"name": f"profile {cell.name} {name}", "kind": "profile", "cell": asdict(cell),
                       "implementation": name}
    usual = [case.name for case in CASES if not case.asked]
    for case in CASES:
        by_name = any(part in case.name and not any(part in name for name in usual) for part in only or ())
        for turn in range(case.rounds if by_name or not case.asked else 0):
            for name in METHODS[::-1 if turn % 2 else 1]:
                if name.endswith(COMPILED) and (case.asked or not installed()):
                    continue
                job = {"name": f"{case.name} {name} {turn + 1}", "kind": "few", "case": asdict(case), "method": name,
                       "turn": turn}
                if wanted(job["name"], only):
                    yield job
    from benchmarks.speed.ablation import PLAIN, SHORT_CUTS
    for job in (*({"name": f"short cuts of {model}: {upto}", "kind": "ablation", "model": model, "size": size,
                   "upto": upto} for model, size in (("sd14", 256), ("stilllife", 64)) for upto in (PLAIN, *SHORT_CUTS)
                  if model == "stilllife" or "small" not in upto),
                *({"name": f"recommended {turn + 1}", "kind": "recommended", "turn": turn} for turn in range(3)),
                *({"name": f"command {turn + 1}", "kind": "command", "turn": turn} for turn in range(3)),
                {"name": "memory of many edits", "kind": "many", "edits": EDITS},
                *({"name": f"memory of {n} steps", "kind": "steps", "steps": n} for n in STEPS)):
        if wanted(job["name"], only):
            yield job


def carry_out(jobs: Sequence[Job], run: Path, fresh: bool = False) -> list[dict[str, Any]]:
    """The rows of all jobs: those that a killed run left, and those that are measured now."""
    run.mkdir(parents=True, exist_ok=True)
    kept, code = run / "rows.jsonl", fingerprint()
    if fresh:
        kept.unlink(missing_ok=True)
    done = {row["key"]: row for row in read(kept) if row["code"] == code and "failed" not in row["result"]}
    rows, started = [], time.monotonic()
    for i, job in enumerate(jobs, start=1):
        key = json.dumps(job, sort_keys=True)
        row = done.pop(key, None)
        if row is None:
            print(f"[{i}/{len(jobs)}, {(time.monotonic() - started) / 60:.1f} min] {job['name']}", file=sys.stderr,
                  flush=True)
            row = {"key": key, "code": code, "job": job, "result": result_of(job, run / "models")}
            with kept.open("a") as out:
                out.write(json.dumps(row) + "\n")
        rows.append({"job": job, "result": row["result"]})
    # A run that came to its end is not gone on with; what another one left is.
    with written_whole(kept) as out:
        out.write("".join(json.dumps(row) + "\n" for row in done.values()).encode())
    return rows


def read(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file that a kill may have cut short."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def result_of(job: Job, cache: Path) -> dict[str, Any]:
    """What a process of its own measures; {"failed": why} where it does not."""
    needs = job["cell"]["needs"] / (1 if job["implementation"] == "baseline" else 2) if "implementation" in job else 0
    needs = job["case"]["needs"] if job["kind"] == "few" else needs
    if available() < needs:
        return {"failed": f"not tried: it needs about {needs:g} GiB of memory"}
    about = (MODELS[job["cell"]["model"]] if job["kind"] in ("edit", "profile") else
             MODELS[job["case"]["teacher" if job["method"] == "sage" else "student"]] if job["kind"] == "few" else None)
    if about and about.unet and not (cache / about.name).exists():
        write = ("import sys; from pathlib import Path; from benchmarks.speed.models import MODELS; "
                 "MODELS[sys.argv[1]].folder(Path(sys.argv[2]))")
        if subprocess.run([sys.executable, "-c", write, about.name, cache.resolve()], cwd=ROOT).returncode:
            return {"failed": "its weights could not be written"}
    return measured_apart("benchmarks.speed.jobs", json.dumps(job | {"cache": str(cache.resolve())}))


def measured_apart(module: str, *given: str) -> dict[str, Any]:
    """What a module that is run as a process of its own prints in its last line, JSON; {"failed": why} if it fails."""
    ran = subprocess.run([sys.executable, "-m", module, *given], cwd=ROOT, capture_output=True, text=True)
    if ran.returncode == 0:
        return json.loads(ran.stdout.splitlines()[-1])
    print(ran.stderr[-3000:], file=sys.stderr)
    if ran.returncode < 0:
        return {"failed": "the process was killed, as when memory runs out"}
    last = [line for line in ran.stderr.splitlines() if line.strip()][-1:]
    return {"failed": last[0].replace(str(ROOT), "")[:120] if last else "no word"}


def available() -> float:
    """GiB of host memory to be had."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return float("inf")
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) / 2**20


def fingerprint() -> str:
    """Of the code that is measured and that measures."""
    digest = hashlib.sha256()
    for path in sorted((*(ROOT / "sage").rglob("*.py"), *Path(__file__).parent.glob("*.py"))):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def write(out: Path, results: dict[str, Any]) -> None:
    with written_whole(out.with_suffix(".json")) as file:
        file.write((json.dumps(results, indent=1) + "\n").encode())
    with written_whole(out) as file:
        file.write(table.render(results).encode())
    if out == RESULTS:
        carried.write(results)


if __name__ == "__main__":
    main()
