"""Run configurations over a benchmark so that it can be killed at any moment and started again.

    run.json                             what the folder is a run of; another run is refused
    CONFIGURATION/configuration.json     its settings; others of the same name are refused
    CONFIGURATION/annotation_images/     the results, with their settings inside
    manifest*.jsonl                      a line for each result or failure; of several for the same the last counts

A result is written whole, then its line.  Batches are parts of the benchmark that depend on nothing else, neither on
the shard nor on what is there already, and a batch of which anything is missing is computed as a whole: so every
result is the same to the bit however often the run was broken off, and however it was shared out.  Results that were
judged by other networks than those at hand are judged anew, and not made again.
"""

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from PIL import Image

from sage import pictures
from sage.bench.cases import PICTURES, Benchmark, Case
from sage.bench.configs import Configuration
from sage.bench.files import MAX_JSON, BenchmarkError, inside, write_text
from sage.bench.machine import machine
from sage.bench.metrics import Extractors
from sage.bench.scoring import DONE, FAILED, Line, score
from sage.errors import SageError, SettingsError
from sage.files import LONGEST_JOURNAL, Journal, read_plain

RUN, CONFIGURATION, MANIFEST = "run.json", "configuration.json", "manifest"

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Outcome:
    """What an engine made of one case: a picture and the settings to store in it, or the reason why not.

    Attributes:
        calls: how often the network was asked for it, forward.
        gradients: how many of these calls were differentiated.
        seconds: what it took, an inversion that it shares included; None where the engine does not say.
    """

    picture: Image.Image | None = None
    settings: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()
    reason: str = ""
    calls: float = 0
    gradients: float = 0
    seconds: float | None = None


class Engine(Protocol):
    """What makes results."""

    def describe(self) -> dict[str, Any]:
        """JSON values that change whenever the results could."""

    def configure(self, configuration: Configuration) -> dict[str, Any]:
        """The same of a configuration; SettingsError for one that is not possible."""

    def make(self, configuration: Configuration, cases: Sequence[Case], sources: Sequence[Image.Image],
             truths: Sequence[Image.Image | None]) -> list[Outcome]:
        """The outcomes of a batch, in order."""


Pictures = tuple[Image.Image, Image.Image | None, str]  # source, truth, and the source's SHA-256
Loaded = dict[str, Pictures | str]  # by the case's name; or why they could not be read


@dataclass(frozen=True)
class Work:
    """A batch in which something is to be done, with all that it takes to do it anywhere.

    Attributes:
        tasks: for each configuration the names of the cases that it lacks, and the results, each with its picture,
            that are to be judged anew.
        loaded: source, truth and hash of the source's file of each case, or why they cannot be had.
    """

    cases: tuple[Case, ...]
    tasks: tuple[tuple[Configuration, frozenset[str], tuple[tuple[Line, Image.Image | None], ...]], ...]
    loaded: Loaded


@dataclass(frozen=True)
class Result:
    """A line, and what its picture is to be written from if that is new."""

    line: Line
    picture: Image.Image | None = None
    settings: dict[str, Any] | None = None


@runtime_checkable
class Pool(Protocol):
    """What makes and judges results somewhere."""

    def describe(self) -> dict[str, Any]:
        """As an engine's."""

    def configure(self, configuration: Configuration) -> dict[str, Any]:
        """As an engine's."""

    def judges(self) -> str:
        """The identity of the extractors."""

    def versions(self) -> dict[str, str]:
        """What the extractors are, by name."""

    def machine(self) -> str:
        """On what the results are made."""

    def results(self, works: Iterable[Work]) -> Iterator[Result]:
        """The results of works, in any order, some of them perhaps twice."""


class Here:
    """The pool that is this process."""

    def __init__(self, engine: Engine, extractors: Extractors):
        self.engine, self.extractors = engine, extractors
        self.describe, self.configure, self.judges = engine.describe, engine.configure, extractors.identity

    def versions(self) -> dict[str, str]:
        return dict(self.extractors.versions)

    def machine(self) -> str:
        return machine(self.describe().get("device", "cpu"))

    def results(self, works: Iterable[Work]) -> Iterator[Result]:
        for work in works:
            yield from do(work, self.engine, self.extractors)


def run(benchmark: Benchmark, configurations: Sequence[Configuration], engine: Engine | Pool, out: str | Path, *,
        batch: int = 1, shard: tuple[int, int] = (1, 1), extractors: Extractors | None = None,
        progress: Progress | None = None) -> list[Line]:
    """Do what is missing of a run.

    Args:
        engine: makes the results here; a pool makes and judges them.
        batch: cases that are edited together.
        shard: (i, n), 1 <= i <= n: do only every n-th batch, from the i-th.
        progress: called with ("bench", results done, results in all).
    Returns:
        The lines of this shard, in the order of configurations and cases.
    Raises:
        SageError: `out` holds another run, cannot be written to, or the arguments make no sense.
    """
    out, (part, parts) = Path(out), shard
    pool = engine if isinstance(engine, Pool) else Here(engine, extractors or Extractors())
    if batch < 1 or not 1 <= part <= parts:
        raise SettingsError(f"batch {batch} and shard {part}/{parts}: must be at least 1, and 1/n to n/n")
    folders = [c.folder.lower() for c in configurations]
    if not configurations or len(set(folders)) < len(folders):
        raise SettingsError("give each configuration once, and at least one")
    claim(out / RUN, {"benchmark": benchmark.mapping_hash(), "cases": len(benchmark.cases), "batch": batch,
                       "engine": pool.describe()})
    for c in configurations:
        claim(out / c.folder / CONFIGURATION, pool.configure(c))

    starts = range(0, len(benchmark.cases), batch)
    batches = [benchmark.cases[i:i + batch] for i in starts][part - 1::parts]
    path = out / (f"{MANIFEST}.jsonl" if parts == 1 else f"{MANIFEST}-{part}-of-{parts}.jsonl")
    with closing(Journal(path, path.with_suffix(".lock"), BenchmarkError,
                         f"another process is at work on {path}: let it finish, or do another shard")) as log:
        done = {key: line for key, line in read_manifests(out).items() if _whole(out, line)}
        wanted = [(c.name, case.name) for c in configurations for cases in batches for case in cases]
        judges = pool.judges()
        stale = {key for key in wanted if judges and key in done and done[key].judges != judges}
        report = progress or (lambda phase, done, total: None)
        left = {key for key in wanted if key not in done} | stale
        report("bench", len(wanted) - len(left), len(wanted))
        if left:
            for result in pool.results(_works(benchmark, configurations, batches, done, stale, out)):
                key = result.line.configuration, result.line.case
                if key not in left:
                    continue
                if result.picture is not None:
                    pictures.save_picture(result.picture, out / result.line.picture, result.settings)
                log.append(result.line.as_dict())
                done[key] = result.line
                left.remove(key)
                report("bench", len(wanted) - len(left), len(wanted))
    return [done[key] for key in wanted]


def _works(benchmark: Benchmark, configurations: Sequence[Configuration], batches: Iterable[Sequence[Case]],
           done: Mapping[tuple[str, str], Line], stale: set[tuple[str, str]], out: Path) -> Iterator[Work]:
    """The batches in which anything is to be done."""
    for cases in batches:
        tasks = []
        for c in configurations:
            missing = frozenset(case.name for case in cases if (c.name, case.name) not in done)
            old = [done[c.name, case.name] for case in cases if (c.name, case.name) in stale]
            if missing or old:
                tasks.append((c, missing, tuple((line, _open(out, line)) for line in old)))
        if tasks:
            ready, loaded = zip(*(_load(benchmark, case) for case in cases), strict=True)
            yield Work(ready, tuple(tasks), dict(zip((case.name for case in cases), loaded, strict=True)))


def _load(benchmark: Benchmark, case: Case) -> tuple[Case, Pictures | str]:
    """A case with all that it takes, and its pictures, or why they cannot be had."""
    try:
        return benchmark.ready(case), (benchmark.source(case), benchmark.truth(case), benchmark.source_hash(case))
    except SageError as error:
        return case, str(error)


def _open(out: Path, line: Line) -> Image.Image | None:
    try:
        return pictures.open_picture(inside(out, line.picture))
    except SageError:
        return None


def do(work: Work, engine: Engine, extractors: Extractors) -> Iterator[Result]:
    """Make what a batch lacks and judge it, and judge anew what is stale; nothing is written."""
    for c, missing, stale in work.tasks:
        cases, loaded = _task(c, work)
        if missing:
            yield from _made(c, cases, loaded, missing, engine, extractors)
        by_name = {case.name: case for case in cases}
        for line, picture in stale:
            yield Result(_judged(line, picture, by_name[line.case], loaded[line.case], extractors))


def _task(c: Configuration, work: Work) -> tuple[Sequence[Case], Loaded]:
    """The cases as a configuration has them: a reconstruction is to leave the source as it is."""
    if c.makes != "reconstruction":
        return work.cases, work.loaded
    return [case.unchanged() for case in work.cases], {
        name: found if isinstance(found, str) else (found[0], found[0], found[2])
        for name, found in work.loaded.items()}


def _judged(line: Line, picture: Image.Image | None, case: Case, found: Pictures | str, extractors: Extractors) -> Line:
    """The line of a result that is there, scored anew; as it was where that cannot be."""
    if picture is None or isinstance(found, str):
        return line
    try:
        source, truth, _ = found
        scores = score(case, source, truth, picture, extractors)
    except SageError:
        return line
    return replace(line, scores=scores, judges=extractors.identity(), anew=line.anew + 1)


def _made(c: Configuration, cases: Sequence[Case], loaded: Loaded, missing: frozenset[str], engine: Engine,
          extractors: Extractors) -> Iterator[Result]:
    began = time.monotonic()
    read = {name: found for name, found in loaded.items() if not isinstance(found, str)}
    usable = [case for case in cases if case.name in read]
    made = engine.make(c, usable, [read[case.name][0] for case in usable],
                       [read[case.name][1] for case in usable]) if usable else []
    outcomes = dict(zip((case.name for case in usable), made, strict=True))
    seconds = round((time.monotonic() - began) / len(cases), 3)
    for case in cases:
        if case.name not in missing:
            continue
        outcome = outcomes.get(case.name) or Outcome(reason=str(loaded[case.name]))
        line: dict[str, Any] = {"configuration": c.name, "case": case.name, "kind": case.kind, "notes": outcome.notes,
                                "seconds": seconds if outcome.seconds is None else outcome.seconds,
                                "calls": outcome.calls, "gradients": outcome.gradients}
        if outcome.picture is None:
            yield Result(Line(status=FAILED, reason=outcome.reason, **line))
            continue
        source, truth, sha256 = read[case.name]
        try:
            scores = score(case, source, truth, outcome.picture, extractors)
        except SageError as error:
            yield Result(Line(status=FAILED, reason=str(error), **line))
            continue
        settings = outcome.settings
        if settings is not None:
            settings = {**settings, "picture": {"name": Path(case.picture).name, "sha256": sha256}}
        done = Line(status=DONE, picture=f"{c.folder}/{PICTURES}/{case.stem}.png", scores=scores,
                    judges=extractors.identity(), **line)
        yield Result(done, outcome.picture, settings)


def claim(path: Path, wanted: dict[str, Any]) -> None:
    """Write what a folder is for; BenchmarkError if it is for something else."""
    wanted = json.loads(json.dumps(wanted))
    if not os.path.lexists(path):
        write_text(path, json.dumps(wanted, indent=1) + "\n")
        return
    try:
        found = json.loads(read_plain(path, BenchmarkError, MAX_JSON))
    except (ValueError, RecursionError) as error:
        raise BenchmarkError(f"{path} is damaged: remove {path.parent} or give another folder") from error
    if found != wanted:
        raise BenchmarkError(f"{path.parent} holds another run ({', '.join(_differ(found, wanted)) or 'more'} differ): "
                             "give another folder, or remove it")


def _differ(found: Any, wanted: dict[str, Any], within: str = "") -> list[str]:
    """The names of what differs."""
    names = []
    for name, value in wanted.items():
        other = found.get(name) if isinstance(found, dict) else None
        if isinstance(value, dict) and isinstance(other, dict):
            names += _differ(other, value, f"{within}{name} ")
        elif other != value:
            names.append(within + name)
    return names


# ---- the manifest


def read_manifests(out: Path) -> dict[tuple[str, str], Line]:
    """The last line of each configuration and case, over the manifests of all shards; damaged lines are left out.

    A result counts for more than a failure that another shard recorded for the same, and one that was judged anew more
    often for more than the others.
    """
    lines: dict[tuple[str, str], Line] = {}
    for path in sorted(out.glob(f"{MANIFEST}*.jsonl")):
        own: dict[tuple[str, str], Line] = {}
        for text in read_plain(path, BenchmarkError, LONGEST_JOURNAL).split(b"\n"):
            line = _parse(text)
            if line:
                own[line.configuration, line.case] = line
        for key, line in own.items():
            old = lines.get(key)
            if not old or line.status == DONE and (old.status != DONE or line.anew >= old.anew):
                lines[key] = line
    return lines


def _parse(text: bytes) -> Line | None:
    try:
        line = Line(**json.loads(text))
    except (ValueError, TypeError, RecursionError):
        return None
    texts = (line.configuration, line.case, line.status, line.picture, line.reason, line.judges)
    good = (all(isinstance(text, str) for text in texts) and type(line.kind) is type(line.anew) is int
            and isinstance(line.notes, (list, tuple)) and isinstance(line.scores, dict)
            and all(map(_is_number, (line.kind, line.anew, line.calls, line.gradients, line.seconds)))
            and all(v is None or _is_number(v) for v in line.scores.values()))
    return replace(line, notes=tuple(map(str, line.notes))) if good else None


def _is_number(value: Any) -> bool:
    """Whether it is one that means can be made of: JSON has whole numbers beyond every float, and NaN."""
    return type(value) in (int, float) and abs(value) < 2**63


def _whole(out: Path, line: Line) -> bool:
    """Whether a line is of a result that is still there; failures are tried again."""
    return line.status == DONE and os.path.isfile(inside(out, line.picture))
