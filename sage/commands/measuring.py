"""What `sage bench`, its comparison of methods and `sage score` share: cases, engine, judges, the last word."""

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sage.bench.cases import WORDINGS, Benchmark
from sage.bench.metrics import Extractors
from sage.bench.rivals import TRIALS
from sage.bench.runner import Engine
from sage.bench.scoring import DONE, Line
from sage.bench.stilllife import FIRST_SEED, SIDE, TUNING_SEED, write_stilllife
from sage.display.progress import Progress
from sage.errors import ModelError, SettingsError
from sage.machine.allocator import keep_freed_memory
from sage.machine.threads import sleep_while_waiting

if TYPE_CHECKING:
    from sage.models.backbone import Backbone

TUNING_SPAN = FIRST_SEED - TUNING_SEED  # as many tuning cases of a kind are not among those reported
BENCHMARK, TABLES, NONE, BOTH = "benchmark", "tables.json", "none", "both"


def still_lifes(args: argparse.Namespace, folder: str | Path, each: int, bar: Progress, first_seed: int,
                prompts: str) -> Benchmark:
    """The rendered benchmark, made if it is not there; SettingsError for numbers that make no sense."""
    check_sizes(args.side, each)
    wordings = WORDINGS if prompts == BOTH else (prompts,)
    return write_stilllife(folder, -(-each // len(wordings)), args.side, args.workers or 1, bar, first_seed, wordings)


def check_sizes(side: int, each: int) -> None:
    """SettingsError for pictures of a side, or cases of each kind, that cannot be rendered."""
    if not 11 <= side <= 4096:
        raise SettingsError(f"--side is {side}: must be from 11 to 4096")
    if not 1 <= each <= TUNING_SPAN:
        raise SettingsError(f"--each is {each}: must be from 1 to {TUNING_SPAN}")


def make_engine(benchmark: Benchmark, model: str, device: str | None, dtype: str | None, threads: int | None,
                extractors: str, models: Mapping[str, str] | None = None) -> tuple[Engine, Extractors]:
    """The engine with its model and the networks that judge; on a cluster called in each worker.

    Args:
        models: what the names of further models stand for, which rows name; any other is a model's own.
    """
    keep_freed_memory()  # in each worker of a cluster too
    sleep_while_waiting()
    import torch

    import sage
    from sage.bench.engine import ModelEngine
    if threads:
        torch.set_num_threads(threads)
    networks = judges(benchmark, extractors, device)

    def load(name: str) -> "Backbone":
        where = (models or {}).get(name, name)
        try:
            return sage.load_model(where, device=device, dtype=dtype)
        except ModelError as error:
            raise ModelError(f"{name}: {error} (--models {name}=FOLDER says where it is)") from error

    return ModelEngine(sage.load_model(model, device=device, dtype=dtype), load), networks


def judges(benchmark: Benchmark, where: str = NONE, device: str | None = None) -> Extractors:
    """The networks for a benchmark: those of its protocol if asked for, and the bundled encoder for still lifes.

    Args:
        where: "hub", a folder, or "none".
    """
    published, ours = Extractors(), Extractors()
    if where != NONE and benchmark.protocol:
        from sage.bench.extractors import load_extractors
        published = load_extractors(benchmark.protocol, where, device)
    if any(case.attributes for case in benchmark.cases):
        from sage.bench.encoder import bundled, load_encoder
        ours = load_encoder().extractors() if bundled() else ours
    if published == Extractors():
        return ours
    return replace(published, attributes=ours.attributes, versions={**published.versions, **ours.versions})


def said(value: object) -> str:
    """A fact of a run, for people."""
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)


def command_line(args: argparse.Namespace) -> str:
    """What to type for the same figures; of paths only the names."""
    words = ["sage", "bench", args.benchmark]
    for name, default in (("each", None), ("quick", False), ("tuning", False), ("side", SIDE), ("prompts", None),
                          ("ask", None), ("config", None), ("experiment", None), ("trials", TRIALS),
                          ("extractors", NONE), ("model", None), ("models", None), ("device", None), ("dtype", None),
                          ("batch", None), ("threads", None)):
        value = getattr(args, name, default)
        if value is True:
            words.append(f"--{name}")
        elif value != default:
            words += [f"--{name}", *_words(value)]
    return shlex.join(words)


def _words(value: object) -> list[str]:
    if isinstance(value, dict):
        return [f"{name}={Path(where).name}" for name, where in value.items()]
    return value if isinstance(value, list) else [Path(str(value)).name]


def status_of(lines: Sequence[Line]) -> int:
    """The exit status, once it is said what has failed."""
    failed = [line for line in lines if line.status != DONE]
    for line in failed[:5]:
        print(f"sage: {line.configuration}, case {line.case}: {line.reason}", file=sys.stderr)
    if failed:
        print(f"sage: {len(failed)} of {len(lines)} results failed", file=sys.stderr)
    return 1 if failed else 0
