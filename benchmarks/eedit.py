"""Seconds of an edit by SAGE with the cache, without it, and the released way, side by side.

A short edit is timed step by step in a process of its own, and a whole one of 50 steps is put together from its parts;
rounds take turns, so that all see the same machine.  How long it will take is said first.  What is done is kept: killed
and started again, it goes on.  Speed does not depend on the weights, which are random; what the cache costs in quality
is measured on the bundled model by

    sage bench stilllife --experiment cache --out runs/cache
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.speed.__main__ import available, fingerprint, measured_apart, read
from benchmarks.speed.cells import GUIDED, WHOLE
from benchmarks.speed.models import MODELS
from sage import EditConfig
from sage.bench.files import write_text
from sage.bench.machine import machine, today, versions
from sage.display.progress import Progress
from sage.machine.threads import sleep_while_waiting

RESULTS = Path("benchmarks/results/eedit.md")
BASELINE, DENSE, CACHED = "released", "dense", "cached"
TARGETS = {"float32": 4.0, "bfloat16": 6.0}  # times the released way in float32


@dataclass(frozen=True)
class Cell:
    """What is timed: a model, a side in pixels, a precision.

    Attributes:
        needs: GiB of memory for the released way; a third of that for ours.
    """

    model: str
    side: int
    dtype: str
    needs: float
    rounds: int = 2

    @property
    def name(self) -> str:
        return f"{self.model}-{self.side}-{self.dtype}"

    @property
    def implementations(self) -> tuple[str, ...]:
        return (BASELINE, DENSE, CACHED) if self.dtype == "float32" else (DENSE, CACHED)


CELLS = {cell.name: cell for cell in (
    Cell("sd14", 256, "float32", 10), Cell("sd14", 256, "bfloat16", 10),
    Cell("sd14", 512, "float32", 32, 1), Cell("sd14", 512, "bfloat16", 32, 1),
    Cell("stilllife", 64, "float32", 1, 3))}
TINY = Cell("tiny", 64, "float32", 1, 1)
QUICK = ("sd14-256",)
LOADING, ATTAINED = 20, 0.5  # seconds for a process to begin, and the share of the machine's best that networks reach
BETWEEN = 0.2  # of a whole step's work


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.eedit", description=__doc__)
    add = parser.add_argument
    add("--only", metavar="NAME", nargs="+", help=f"cells with one of these in their names: {', '.join(CELLS)}")
    add("--quick", action="store_true", help="one round of Stable Diffusion 1.4 at 256: minutes on two cores")
    add("--rounds", metavar="N", type=int, help="times each is measured; default: by cell")
    add("--tiny", action="store_true", help="a network of 32 channels instead, in seconds: that all of this runs")
    add("--run", type=Path, default=Path("runs/eedit"), help="where rows and random weights are kept [runs/eedit]")
    add("--out", type=Path, help=f"the table [{RESULTS}; of a part RUN/eedit.md]")
    add("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.one:
        print(json.dumps(measured(cell_of(args.one[0]), args.one[1], args.run / "models")))
        return
    sleep_while_waiting()
    only = args.only or (QUICK if args.quick else None)
    cells = [TINY] if args.tiny else [cell for cell in CELLS.values()
                                      if only is None or any(part in cell.name for part in only)]
    rounds = args.rounds or (1 if args.quick else None)
    with Progress(sys.stderr.isatty(), unit="part", resumes=True) as bar:
        rows = carry_out([replace(cell, rounds=rounds or cell.rounds) for cell in cells], args.run, bar)
    out = args.out or (args.run / "eedit.md" if only or args.tiny else RESULTS)
    write_text(out, report(cells, rows))
    print(out.read_text())


def cell_of(name: str) -> Cell:
    return TINY if name == TINY.name else CELLS[name]


def carry_out(cells: Sequence[Cell], run: Path, report: Progress) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """The rows of each cell and implementation: those that are there of the same code, and those measured now."""
    run.mkdir(parents=True, exist_ok=True)
    kept, code = run / "rows.jsonl", fingerprint()
    done = {(row["cell"], row["implementation"], row["round"]): row for row in read(kept)
            if row["code"] == code and "failed" not in row["result"]}
    jobs = [(cell, name, number) for number in range(max(cell.rounds for cell in cells)) for cell in cells
            for name in cell.implementations[::-1 if number % 2 else 1] if number < cell.rounds]
    left = [(cell, name) for cell, name, number in jobs if (cell.name, name, number) not in done]
    if left:
        print(f"about {estimate(left) / 60:.0f} minutes for {len(left)} measurements, on a machine that does nothing "
              "else", file=sys.stderr, flush=True)
    report("measuring", len(jobs) - len(left), len(jobs))
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for i, (cell, name, number) in enumerate(jobs, start=1):
        row = done.get((cell.name, name, number))
        if row is None:
            row = {"cell": cell.name, "implementation": name, "round": number, "code": code,
                   "result": in_a_process(cell, name, run)}
            with kept.open("a") as out:
                out.write(json.dumps(row) + "\n")
            report("measuring", i, len(jobs))
        found.setdefault((cell.name, name), []).append(row["result"])
    return found


def estimate(jobs: Sequence[tuple[Cell, str]]) -> float:
    """Seconds that measurements will take, by the work that is in them and what this machine does of it in a moment."""
    rates = {dtype: rate(dtype) for dtype in {cell.dtype for cell, _ in jobs}}
    return sum(LOADING + work(cell, name) / (ATTAINED * rates[cell.dtype]) for cell, name in jobs if fits(cell, name))


def rate(dtype: str) -> float:
    """FLOP/s of a linear layer."""
    import torch

    from benchmarks.speed.floor import best
    from benchmarks.speed.measure import DTYPES
    rows, width = 1024, 1280
    x, w = torch.randn(rows, width).to(DTYPES[dtype]), torch.randn(width, width).to(DTYPES[dtype])
    return 2 * rows * width**2 / best(lambda: torch.nn.functional.linear(x, w), "cpu", 0.2)


def work(cell: Cell, implementation: str) -> float:
    """FLOPs of the short edit that is timed; attention and the rest of what is no product are left out."""
    from benchmarks.speed.count import counted as operations
    of = operations(cell.model, cell.side, 1)
    guided, whole = 2 * of["forward"] + of["backward"], 2 * of["forward"]
    once = of["encode"] + of["decode"]
    if implementation == BASELINE:
        return once + 3 * (of["forward"] + guided)
    settings = short(EditConfig(cache="none" if implementation == DENSE else "eedit"))
    each = {"guided": guided, "whole": whole, "between": BETWEEN * whole}
    return once + len(evaluated_of(settings)) * of["forward"] + sum(each[kind] for kind in kinds_of(settings))


def fits(cell: Cell, implementation: str) -> bool:
    """Whether there is memory for a measurement."""
    return available() >= (cell.needs if implementation == BASELINE else cell.needs / 3)


def in_a_process(cell: Cell, implementation: str, run: Path) -> dict[str, Any]:
    """What a process of its own measures, or {"failed": why}."""
    if not fits(cell, implementation):
        return {"failed": f"not tried: it needs about {cell.needs:g} GiB of memory"}
    return measured_apart("benchmarks.eedit", "--one", cell.name, implementation, "--run", str(run.resolve()))


# ---- one measurement


def measured(cell: Cell, implementation: str, models: Path) -> dict[str, Any]:
    """Seconds of the parts of a short edit, and of the whole one that they make.

    The first step of every kind is not counted: it warms up.
    """
    from benchmarks.speed.measure import DTYPES, Baseline, Clock, Ours
    about, dtype = MODELS[cell.model], DTYPES[cell.dtype]
    clock = Clock("cpu")
    if implementation == BASELINE:
        runs = Baseline(about, about.folder(models), "cpu", dtype)
        runs.edit(1, cell.side, 3, 3, clock)
        kinds, calls = ["guided"] * 3, [0, 1, 2]
        whole, asked = {"guided": WHOLE}, WHOLE
    else:
        ours = Ours(about, about.folder(models), "cpu", dtype)
        cache = "eedit" if implementation == CACHED else "none"
        long = ours.config(cell.side, WHOLE, GUIDED).but(cache=cache)
        settings = short(long)
        edited(ours, cell.side, settings, clock)
        kinds, calls = kinds_of(settings), evaluated_of(settings)
        whole, asked = counted(long), len(evaluated_of(long))
    back, up = clock.steps("edit"), clock.steps("invert")
    seconds = {kind: median([s for s, of in list(zip(back, kinds, strict=True))[1:] if of == kind] or [back[0]])
               for kind in dict.fromkeys(kinds)}
    call = median([up[k] for k in calls[1:]])
    total = (clock.steps("encode")[-1] + clock.steps("decode")[-1] + asked * call
             + sum(number * seconds[kind] for kind, number in whole.items()))
    return {"call": call, "steps": seconds, "counts": whole, "calls": asked, "total": total}


def short(config: EditConfig) -> EditConfig:
    """The settings of an edit that has steps of every kind, twice."""
    steps = 2 * config.fresh_threshold + 2
    return config.but(steps=steps, guided_steps=steps - 2, replace_fraction=0.0)


def edited(ours: Any, side: int, config: Any, progress: Any) -> None:
    import sage
    about = ours.about
    sage.edit(ours.model, about.picture(side), about.source, about.target, config, progress)


def kinds_of(config: Any) -> list[str]:
    """What each step of the way back is: guided, whole or between."""
    kinds = []
    for i in range(config.steps):
        whole = config.whole(i, config.steps)
        kinds.append("guided" if whole and config.guided(i) else "whole" if whole else "between")
    return kinds


def counted(config: Any) -> dict[str, int]:
    """How many steps of each kind a whole edit has; where replacement ends, attention is new and a step is whole."""
    kinds = kinds_of(config)
    after = config.replace_steps
    if config.replace is not None and 0 < after < len(kinds) and kinds[after] == "between":
        kinds[after] = "whole"
    return {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}


def evaluated_of(config: Any) -> list[int]:
    from sage.sampling.skipping import evaluated
    return list(evaluated(config.steps, config.stride))


# ---- the table


def report(cells: Sequence[Cell], rows: dict[tuple[str, str], list[dict[str, Any]]]) -> str:
    lines = ["# What the cache saves\n",
             f"SAGE as recommended for Stable Diffusion 1.x, {WHOLE} steps, put together from a short edit; {today()}; "
             f"{machine()}; {versions()}. Baseline: the released code's way of computing over diffusers' networks, in "
             "float32. Parts are medians, seconds.\n",
             "| cell | way | a call of the inversion | guided step | whole step | step between | a whole edit | "
             "against the baseline | wanted |", "|---|---|---|---|---|---|---|---|---|"]
    for cell in cells:
        base = total_of(rows.get((replace(cell, dtype="float32").name, BASELINE), ()))
        for name in cell.implementations:
            found = rows[cell.name, name]
            if failed := [row["failed"] for row in found if "failed" in row]:
                lines.append(f"| {cell.name} | {name} | {failed[0]} | | | | | | |")
                continue
            steps = {kind: median(row["steps"][kind] for row in found) for kind in found[0]["steps"]}
            total = total_of(found)
            against = f"{base / total:.2f} times as fast" if base and name != BASELINE else ""
            wanted = f"{TARGETS[cell.dtype]:g} times" if name == CACHED else ""
            lines.append("| " + " | ".join([
                cell.name, name, f"{median(row['call'] for row in found):.3g} x {found[0]['calls']}",
                *(f"{steps[kind]:.3g} x {found[0]['counts'][kind]}" if kind in steps and kind in found[0]["counts"]
                  else "" for kind in ("guided", "whole", "between")), f"{total:.4g}", against, wanted]) + " |")
    return "\n".join([*lines, ""])


def total_of(rows: Sequence[dict[str, Any]]) -> float | None:
    totals = [row["total"] for row in rows if "total" in row]
    return median(totals) if totals else None


if __name__ == "__main__":
    main()
