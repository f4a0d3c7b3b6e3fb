"""`sage bench BENCHMARK --experiment rivals`: arguments -> two benchmarks, a comparison, its pages.

Imports no torch before the arguments are checked.
"""

import argparse
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

from sage.bench import tables
from sage.bench.cases import Benchmark, read_benchmark
from sage.bench.chosen import read_record
from sage.bench.configs import Configuration, configuration
from sage.bench.experiments import MODELS, STUDENT, STUDENTS
from sage.bench.files import MAX_JSON, BenchmarkError, write_text
from sage.bench.machine import today, versions
from sage.bench.report import REPORT, write_report
from sage.bench.rivals import (
    BATCH,
    FEW_POINTS,
    POINTS,
    RIVALS,
    TUNED,
    Experiment,
    Place,
    Protocol,
    as_auto,
    compete,
    in_turn,
    split,
)
from sage.bench.rivals_page import AUTO, RECORD, write_all
from sage.bench.stilllife import FIRST_SEED, FULL, QUICK, TUNING_SEED
from sage.commands.measuring import BENCHMARK, BOTH, TABLES, command_line, make_engine, said, status_of, still_lifes
from sage.display.progress import Progress
from sage.errors import SettingsError
from sage.files import read_plain


def run_rivals(args: argparse.Namespace) -> int:
    """Compare all methods, and write and print what came of it; 1 if any case failed."""
    given = [f"--{name}" for name, value in (("tuning", getattr(args, "tuning", False)),
                                             ("engine ray", args.engine == "ray"), ("shard", args.shard != (1, 1)))
             if value]
    if len(args.experiment) > 1 or given:
        raise SettingsError(f"--experiment {RIVALS} is run alone: leave out "
                            f"{given[0] if given else 'the other experiments'}")
    if args.benchmark == "magicbrush":
        raise SettingsError(f"--experiment {RIVALS} is for stilllife and piebench: MagicBrush's prompts describe "
                            "whole pictures, and say more than an edit asks for")
    if args.benchmark not in ("stilllife", "piebench"):
        raise SettingsError(f"--experiment {RIVALS} is for stilllife and piebench: {args.benchmark} asks for what no "
                            "prompt says")
    beside = _beside(args)
    record = read_record(args.chosen) if args.chosen else None
    out, processors = Path(args.out), os.cpu_count() or 1
    args.batch = args.batch or BATCH
    with Progress(not args.quiet and sys.stderr.isatty(), unit="task", resumes=True) as bar:
        tuning, test = _benchmarks(args, out, bar)
        workers = args.workers or (1 if _on_gpu(args.device) else processors)
        threads = args.threads or max(1, processors // workers)
        make = partial(make_engine, replace(test, cases=test.cases[:1]), args.model, args.device, args.dtype, threads,
                       args.extractors, MODELS | dict(args.models or ()))
        few = len(test.cases) <= QUICK * len(test.kinds)
        place = Place(out, tuning, test, Protocol(0, args.trials, FEW_POINTS if few else POINTS, args.batch),
                      beside)
        found = compete(place, make, workers, bar, record=record, say=_say, so_far=lambda found: _say(
            f"tables, without other strengths and published settings, are in {_written(args, found)[0]}"))
    return _tell(args, found)


def _beside(args: argparse.Namespace) -> tuple[Configuration, ...]:
    """The rows on other models: those asked for, else of the model's student."""
    found = tuple(configuration(name) for name in dict.fromkeys(args.config or STUDENTS.get(args.model, ())))
    if own := next((c.name for c in found if not c.model), None):
        raise SettingsError(f"--config {own}: with --experiment {RIVALS} it is for rows on another model, such as "
                            f"turbo@{STUDENT}; every method is in the table anyway")
    return found


def _benchmarks(args: argparse.Namespace, out: Path, bar: Progress) -> tuple[Benchmark, Benchmark]:
    """What settings are chosen on, and what is reported."""
    if args.benchmark == "stilllife":
        prompts, each = args.prompts or BOTH, args.each or FULL
        test = still_lifes(args, args.data or out / BENCHMARK, each, bar, FIRST_SEED, prompts)
        tuning = still_lifes(args, out / "tuning", TUNED, bar, TUNING_SEED, prompts)
        return (in_turn(tuning) if each <= QUICK else tuning), test
    return split(read_benchmark(args.data), TUNED, QUICK if args.quick else None)


def _say(text: str) -> None:
    print(f"sage: {text}", file=sys.stderr, flush=True)


def _written(args: argparse.Namespace, found: Experiment) -> list[Path]:
    """What there is, for people and for programs; the pages first."""
    out, engine, test, heads = Path(args.out), found.about["engine"], found.place.test, found.heads
    facts = {"date": today(), "machine": found.about["machine"], "command": command_line(args), "versions": versions(),
            "benchmark": args.benchmark, **{name: said(value) for name, value in engine.items()
                                             if name != "versions"},
             **{f"@{name}": said(value) for name, value in found.about["models"].items()}, **found.about["networks"]}
    at_best = tables.Results([line for line in found.lines if line.configuration in heads], test.kinds)
    write_report(out / REPORT, f"Edits of {args.benchmark} by every method", test, at_best, found.roots, facts)
    write_text(out / TABLES, tables.as_json(at_best, found.about["networks"]))
    paths = [*write_all(found, facts), out / REPORT]
    if (auto := as_auto(found, today())) is not None:
        write_text(out / AUTO, auto)
    return paths


def _tell(args: argparse.Namespace, found: Experiment) -> int:
    paths = _written(args, found)
    for name, why in found.unfit.items():
        print(f"sage: note: {name} is left out: {why}", file=sys.stderr)
    shown = read_plain(Path(args.out) / (TABLES if args.json else RECORD), BenchmarkError, MAX_JSON)
    print(shown.decode(), end="", flush=True)
    _say(f"comparison in {paths[0]}, pictures in {paths[-1]}")
    return status_of(found.lines)


def _on_gpu(device: str | None) -> bool:
    import torch
    return device != "cpu" and (device is not None or torch.cuda.is_available())
