"""The pool that is a Ray cluster: Ray Data over the batches of a run, with workers that each hold one model.

The batches travel with their pictures and the results come back with theirs, so workers need no folder in common; only
the process that runs the benchmark writes, as it does alone.  A worker that is lost is started again with its batch.
"""

import logging
import os
import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from sage.bench.configs import Configuration
from sage.bench.files import BenchmarkError
from sage.bench.machine import machine
from sage.bench.metrics import Extractors
from sage.bench.runner import Engine, Result, Work, do
from sage.bench.scoring import FAILED, Line
from sage.errors import SageError, SettingsError

TRIES = 3  # of a batch whose worker is lost, each in a new process

Make = Callable[[], tuple[Engine, Extractors]]
Row = dict[str, Any]


def connect() -> None:
    """Join the cluster that RAY_ADDRESS or `ray start` on this machine says, or else start one of this machine alone.

    Raises:
        BenchmarkError: no Ray, or no cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data  # noqa: F401
    except ImportError as error:
        raise BenchmarkError(f"the engine ray needs the extra cluster: pip install 'sage-edit[cluster]' ({error})") \
            from error
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):  # the run has its own bar; its logs are in Ray's folder
            handler.setLevel(logging.ERROR)
    if ray.is_initialized():
        return
    try:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    except (OSError, RuntimeError, ValueError) as error:  # ConnectionError is an OSError
        raise BenchmarkError(f"no cluster: {_last_line(error)}") from error


class RayPool:
    """A pool of workers on the cluster to which this process is connected.

    Args:
        make: makes engine and extractors; called once in each worker.
        configurations: those that `configure` will be asked for.
        workers: how many; one for each GPU of the cluster if None, or one where it has none.
        threads: CPUs that each worker takes.
        gpu: whether each worker takes a GPU; where there is one if None.
    Raises:
        SageError: what `make` raises, or a cluster too small.
    """

    def __init__(self, make: Make, configurations: Sequence[Configuration], workers: int | None = None,
                 threads: int = 1, gpu: bool | None = None):
        import ray
        has = ray.cluster_resources()
        gpus = int(has.get("GPU", 0))
        gpu = gpus > 0 if gpu is None else gpu
        self.make, self.workers = make, workers or (max(gpus, 1) if gpu else 1)
        self.needs = {"num_cpus": threads, "num_gpus": int(gpu)}
        if self.workers < 1 or self.workers * threads > has.get("CPU", 0) or gpu and self.workers > gpus:
            each = f"{threads} CPUs{' and a GPU' if gpu else ''}"
            raise SettingsError(f"{self.workers} workers with {each} each are more than the cluster's "
                                f"{has.get('CPU', 0):g} CPUs and {gpus} GPUs")
        about = ray.remote(max_retries=TRIES - 1, **self.needs)(_about)
        try:
            found = pickle.loads(ray.get(about.remote(make, list(configurations))))
        except ray.exceptions.RayError as error:
            raise BenchmarkError(f"no worker could be started: {_last_line(error)}") from error
        if isinstance(found, Exception):
            raise found
        self.about, self.configured, self.identity, self.networks, self.kind = found

    def describe(self) -> dict[str, Any]:
        return self.about

    def configure(self, configuration: Configuration) -> dict[str, Any]:
        return self.configured[configuration.name]

    def judges(self) -> str:
        return self.identity

    def versions(self) -> dict[str, str]:
        return self.networks

    def machine(self) -> str:
        return f"a cluster, {self.workers} times: {self.kind}"

    def results(self, works: Iterable[Work]) -> Iterator[Result]:
        """The results of works as they come; of a batch that ended each of its workers, failures."""
        import ray
        rows = [{"number": i, "work": pickle.dumps(work)} for i, work in enumerate(works)]
        tries = ray.remote(num_cpus=0)(_Tries).remote()
        data = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            _Worker, fn_constructor_args=(self.make, self.about, self.identity, tries), batch_size=1,
            batch_format="numpy", **self.needs,
            # A worker that is lost takes only one batch with it.
            compute=ray.data.ActorPoolStrategy(size=min(self.workers, len(rows)), max_tasks_in_flight_per_actor=1))
        data.context.enable_progress_bars = data.context.print_on_execution_start = False
        try:
            for block in data.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0):
                for packed in block["result"]:
                    result = pickle.loads(packed)
                    if isinstance(result, Exception):
                        raise result
                    yield result
        except ray.exceptions.RayError as error:
            raise BenchmarkError(f"the cluster failed: {_last_line(error)}") from error


class _Tries:
    """An actor that counts the beginnings of each batch, which the workers that it ends cannot."""

    def __init__(self):
        self.begun: Counter[int] = Counter()

    def begin(self, number: int) -> int:
        self.begun[number] += 1
        return self.begun[number]


def _about(make: Make, configurations: list[Configuration]) -> bytes:
    """What a pool tells of its workers, or why there can be none; in a worker."""
    found: Any
    try:
        engine, extractors = make()
        found = (engine.describe(), {c.name: engine.configure(c) for c in configurations}, extractors.identity(),
                 dict(extractors.versions), machine(engine.describe().get("device", "cpu")))
    except SageError as error:
        found = error
    return pickle.dumps(found)


class _Worker:
    """An actor of the pool.  Errors go back as rows: what it raised would be taken for a loss."""

    def __init__(self, make: Make, about: dict[str, Any], identity: str, tries: Any):
        self.tries = tries
        self.error: Exception | None = None
        try:
            self.engine, self.extractors = make()
            found = self.engine.describe()
            differ = [name for name in about if found.get(name) != about[name]]
            differ += ["extractors"] if self.extractors.identity() != identity else []
            if differ:
                raise BenchmarkError(f"the workers differ in {', '.join(differ)}: give all machines of the cluster the "
                                     "same versions, weights and kind of device")
        except Exception as error:
            self.error = _portable(error)

    def __call__(self, batch: Row) -> Iterator[Row]:
        import ray
        try:
            if self.error:
                raise self.error
            work = pickle.loads(batch["work"][0])
            lost = ray.get(self.tries.begin.remote(int(batch["number"][0]))) > TRIES
            for result in _failures(work) if lost else do(work, self.engine, self.extractors):
                yield {"result": [pickle.dumps(result)]}
        except Exception as error:
            yield {"result": [pickle.dumps(_portable(error))]}


def _failures(work: Work) -> Iterator[Result]:
    """What is said of a batch that ends its workers; what was only to be judged anew stays as it was."""
    for c, missing, stale in work.tasks:
        yield from (Result(line) for line, _ in stale)
        for case in work.cases:
            if case.name in missing:
                yield Result(Line(c.name, case.name, case.kind, FAILED, reason=f"the worker was lost, {TRIES} times"))


def _portable(error: Exception) -> Exception:
    return error if isinstance(error, SageError) else RuntimeError(f"in a worker: {type(error).__name__}: {error}")


def _last_line(error: BaseException) -> str:
    """What matters of an error of Ray, which begins with a traceback."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else type(error).__name__
