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
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout
from PIL import Image

from sage import image as pictures
from sage.bench.configs import Configuration
from sage.bench.files import BenchmarkError, inside, write_text
from sage.bench.layout import PICTURES, Benchmark, Case
from sage.bench.metrics import Extractors
from sage.bench.scoring import DONE, FAILED, Line, score
from sage.errors import SageError, SettingsError

RUN, CONFIGURATION, MANIFEST = "run.json", "configuration.json", "manifest"

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Outcome:
    """What an engine made of one case: a picture and the settings to store in it, or the reason why not."""

    picture: Image.Image | None = None
    settings: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()
    reason: str = ""


class Engine(Protocol):
    """What makes results."""

    def describe(self) -> dict[str, Any]:
        """JSON values that change whenever the results could."""

    def configure(self, configuration: Configuration) -> dict[str, Any]:
        """The same of a configuration; SettingsError for one that is not possible."""

    def make(self, configuration: Configuration, cases: Sequence[Case], sources: Sequence[Image.Image],
             truths: Sequence[Image.Image | None]) -> list[Outcome]:
        """The outcomes of a batch, in order."""


def run(benchmark: Benchmark, configurations: Sequence[Configuration], engine: Engine, out: str | Path, *,
        batch: int = 1, shard: tuple[int, int] = (1, 1), extractors: Extractors | None = None,
        progress: Progress | None = None) -> list[Line]:
    """Do what is missing of a run.

    Args:
        batch: cases that are edited together.
        shard: (i, n), 1 <= i <= n: do only every n-th batch, from the i-th.
        progress: called with ("bench", results done, results in all).
    Returns:
        The lines of this shard, in the order of configurations and cases.
    Raises:
        SageError: `out` holds another run, cannot be written to, or the arguments make no sense.
    """
    out, (part, parts), extractors = Path(out), shard, extractors or Extractors()
    if batch < 1 or not 1 <= part <= parts:
        raise SettingsError(f"batch {batch} and shard {part}/{parts}: must be at least 1, and 1/n to n/n")
    folders = [c.folder.lower() for c in configurations]
    if not configurations or len(set(folders)) < len(folders):
        raise SettingsError("give each configuration once, and at least one")
    _claim(out / RUN, {"benchmark": benchmark.mapping_hash(), "cases": len(benchmark.cases), "batch": batch,
                       "engine": engine.describe()})
    for c in configurations:
        _claim(out / c.folder / CONFIGURATION, engine.configure(c))

    starts = range(0, len(benchmark.cases), batch)
    batches = [benchmark.cases[i:i + batch] for i in starts][part - 1::parts]
    with closing(_Log(out / (f"{MANIFEST}.jsonl" if parts == 1 else f"{MANIFEST}-{part}-of-{parts}.jsonl"))) as log:
        done = {key: line for key, line in read_manifests(out).items() if _whole(out, line)}
        wanted = [(c.name, case.name) for c in configurations for cases in batches for case in cases]
        judges = extractors.identity()
        stale = {key for key in wanted if judges and key in done and done[key].judges != judges}
        report = progress or (lambda phase, done, total: None)
        finished = sum(key in done for key in wanted) - len(stale)
        report("bench", finished, len(wanted))
        for cases in batches:
            loaded = None
            for c in configurations:
                missing = {case.name for case in cases if (c.name, case.name) not in done}
                old = [done[c.name, case.name] for case in cases if (c.name, case.name) in stale]
                if not missing and not old:
                    continue
                loaded = loaded or _load(benchmark, cases)
                task = _task(c, cases, loaded)
                lines = _batch(c, *task, missing, engine, benchmark, out, extractors) if missing else ()
                for line in chain(lines, _judged(old, *task, out, extractors)):
                    log.append(line)
                    done[c.name, line.case] = line
                    finished += 1
                    report("bench", finished, len(wanted))
    return [done[key] for key in wanted]


Loaded = dict[str, tuple[Image.Image, Image.Image | None] | str]


def _load(benchmark: Benchmark, cases: Sequence[Case]) -> Loaded:
    """Source and truth of each case, or why they cannot be had."""
    loaded: Loaded = {}
    for case in cases:
        try:
            loaded[case.name] = benchmark.source(case), benchmark.truth(case)
        except SageError as error:
            loaded[case.name] = str(error)
    return loaded


def _task(c: Configuration, cases: Sequence[Case], loaded: Loaded) -> tuple[Sequence[Case], Loaded]:
    """The same cases as a configuration has them: a reconstruction is to leave the source as it is."""
    if c.makes != "reconstruction":
        return cases, loaded
    return [case.unchanged() for case in cases], {
        name: found if isinstance(found, str) else (found[0], found[0]) for name, found in loaded.items()}


def _judged(lines: Iterable[Line], cases: Sequence[Case], loaded: Loaded, out: Path,
            extractors: Extractors) -> Iterator[Line]:
    """Lines of results that are there, scored anew; as they were where that cannot be."""
    by_name = {case.name: case for case in cases}
    for line in lines:
        try:
            result = pictures.open_picture(inside(out, line.picture))
            if isinstance(found := loaded[line.case], str):
                raise BenchmarkError(found)
            scores = score(by_name[line.case], *found, result, extractors)
        except SageError:
            yield line
            continue
        yield replace(line, scores=scores, judges=extractors.identity(), anew=line.anew + 1)


def _batch(c: Configuration, cases: Sequence[Case], loaded: Loaded, missing: set[str], engine: Engine,
           benchmark: Benchmark, out: Path, extractors: Extractors) -> Iterator[Line]:
    """Make a batch; yields the lines of what was missing, each after its picture is written."""
    began = time.monotonic()
    usable = [case for case in cases if not isinstance(loaded[case.name], str)]
    made = engine.make(c, usable, *zip(*(loaded[case.name] for case in usable), strict=True)) if usable else []
    outcomes = dict(zip((case.name for case in usable), made, strict=True))
    seconds = round((time.monotonic() - began) / len(cases), 3)
    for case in cases:
        if case.name not in missing:
            continue
        outcome = outcomes.get(case.name) or Outcome(reason=str(loaded[case.name]))
        line = {"configuration": c.name, "case": case.name, "kind": case.kind, "notes": outcome.notes,
                "seconds": seconds}
        if outcome.picture is None:
            yield Line(status=FAILED, reason=outcome.reason, **line)
            continue
        place = f"{c.folder}/{PICTURES}/{case.stem}.png"
        try:
            scores = score(case, *loaded[case.name], outcome.picture, extractors)
        except SageError as error:
            yield Line(status=FAILED, reason=str(error), **line)
            continue
        settings = outcome.settings
        if settings is not None:
            source = {"name": Path(case.picture).name, "sha256": benchmark.source_hash(case)}
            settings = {**settings, "picture": source}
        pictures.save_picture(outcome.picture, out / place, settings)
        yield Line(status=DONE, picture=place, scores=scores, judges=extractors.identity(), **line)


def _claim(path: Path, wanted: dict[str, Any]) -> None:
    """Write what a folder is for, or refuse if it is for something else."""
    wanted = json.loads(json.dumps(wanted))
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        write_text(path, json.dumps(wanted, indent=1) + "\n")
        return
    except OSError as error:
        raise BenchmarkError(f"{path} cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise BenchmarkError(f"{path} is damaged: remove {path.parent} or give another folder") from error
    if found != wanted:
        differ = [k for k in wanted if not isinstance(found, dict) or found.get(k) != wanted[k]]
        raise BenchmarkError(f"{path.parent} holds another run ({', '.join(differ) or 'more'} differ): give another "
                             "folder, or remove it")


# ---- the manifest


class _Log:
    """Lines that are each written at once, after what an earlier, killed run left unfinished is cut off.

    One process may write; the lock goes with it, however it ends.
    """

    def __init__(self, path: Path):
        self.lock = FileLock(path.with_suffix(".lock"))
        try:
            self.lock.acquire(timeout=0)
            self.file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            text = path.read_bytes()
            if not text.endswith(b"\n"):
                os.ftruncate(self.file, text.rfind(b"\n") + 1)
        except Timeout as error:
            raise BenchmarkError(f"another process is at work on {path}: let it finish, or do another shard") from error
        except OSError as error:
            raise BenchmarkError(f"{path} cannot be written ({error.strerror or error})") from error
        self.path = path

    def append(self, line: Line) -> None:
        try:
            os.write(self.file, (json.dumps(line.as_dict()) + "\n").encode())
            os.fsync(self.file)
        except OSError as error:
            raise BenchmarkError(f"{self.path} cannot be written ({error.strerror or error})") from error

    def close(self) -> None:
        os.close(self.file)
        self.lock.release()


def read_manifests(out: Path) -> dict[tuple[str, str], Line]:
    """The last line of each configuration and case, over the manifests of all shards; damaged lines are left out.

    A result counts for more than a failure that another shard recorded for the same, and one that was judged anew more
    often for more than the others.
    """
    lines: dict[tuple[str, str], Line] = {}
    for path in sorted(out.glob(f"{MANIFEST}*.jsonl")):
        own: dict[tuple[str, str], Line] = {}
        for text in path.read_bytes().split(b"\n"):
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
            and all(v is None or type(v) in (int, float) for v in line.scores.values()))
    return replace(line, notes=tuple(map(str, line.notes))) if good else None


def _whole(out: Path, line: Line) -> bool:
    """Whether a line is of a result that is still there; failures are tried again."""
    return line.status == DONE and inside(out, line.picture).is_file()
