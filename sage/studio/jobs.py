"""The bounded queue: one piece of work at a time, in the order of asking; what waits can be watched and ended."""

import secrets
import sys
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Any, Generic, TypeVar

from sage.errors import SageError, SettingsError, out_of_memory
from sage.studio.clock import Cancelled, Clock

T = TypeVar("T")
KEPT = 256  # jobs that have ended, for whoever asks what came of them


class Full(SageError):
    """As many are waiting as may."""


class Job(Generic[T]):
    """One piece of work.

    Attributes:
        who: whose it is.
        kind: "edit", "live", "generate", "variants", "look" or "model".
        clock: how far it is.
        glimpse: what the picture looks like so far, the bytes of a PNG; b"" before the first.
        glimpses: how many there were.
        part, parts: which of how many pieces is made, for work of several.
    """

    def __init__(self, who: str, kind: str, clock: Clock, future: Future[T]):
        self.id, self.who, self.kind, self.clock, self._future = secrets.token_hex(8), who, kind, clock, future
        self.glimpse, self.glimpses, self.asked = b"", 0, time.monotonic()
        self.began, self.part, self.parts = False, 1, 1

    def show(self, png: bytes) -> None:
        """Let `png` be what is seen of it now."""
        self.glimpse, self.glimpses = png, self.glimpses + 1

    @property
    def state(self) -> str:
        """"waiting", "working", "done", "failed" or "cancelled"."""
        if not self._future.done():
            if self.clock.cancelled:
                return "cancelled"
            return "working" if self.began else "waiting"
        if self._future.cancelled() or isinstance(error := self._future.exception(), Cancelled):
            return "cancelled"
        return "failed" if error else "done"

    @property
    def ended(self) -> bool:
        """Whether nothing more will come of it."""
        return self.state not in ("waiting", "working")

    @property
    def error(self) -> str:
        """What went wrong, in one line."""
        return str(self._future.exception()) if self.state == "failed" else ""

    def result(self, timeout: float | None = None) -> T:
        """What came of it, waited for.

        Raises:
            Cancelled: it was ended.
            SageError: it could not be done, and why.
        """
        if self._future.cancelled():
            raise Cancelled
        return self._future.result(timeout)

    def cancel(self) -> None:
        """End it: at once while it waits, at its next step while it works."""
        self.clock.cancel()
        self._future.cancel()


class Jobs:
    """All jobs of a studio.

    Args:
        waiting: how many may wait.
        patience: seconds after which a job that nobody asks about is ended; None for never.
    """

    def __init__(self, waiting: int, patience: float | None = None):
        self.most, self.patience = waiting, patience
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="sage-edit")
        self._jobs: OrderedDict[str, Job[Any]] = OrderedDict()
        self._lock = Lock()

    def do(self, work: Callable[..., T], *arguments: Any) -> T:
        """Work that nobody waits beside: done when it is its turn."""
        return self._worker.submit(_told, work, *arguments).result()

    def submit(self, who: str, kind: str, clock: Clock, work: Callable[[Job[Any]], T]) -> Job[T]:
        """Put a piece of work at the end of the queue.

        Args:
            work: is given its job.
        Raises:
            Full: too many are waiting.
        """
        with self._lock:
            if self.most <= len(waiting := self._waiting()):
                raise Full(f"{len(waiting)} are waiting already, and no more may: try again in a while")
            future: Future[T] = Future()
            job = Job(who, kind, clock, future)
            self._jobs[job.id] = job
            ended = [old for old in self._jobs.values() if old._future.done()]
            for old in ended[:max(0, len(ended) - KEPT)]:
                del self._jobs[old.id]
        if self.patience is not None:
            clock.ends_if(lambda: time.monotonic() - job.asked > self.patience)
        self._worker.submit(self._run, job, work)
        return job

    def _run(self, job: Job[T], work: Callable[[Job[T]], T]) -> None:
        job.began = True
        if not job._future.set_running_or_notify_cancel():
            return
        try:
            job.clock.begin()
            job._future.set_result(_told(work, job))
        except BaseException as error:
            job._future.set_exception(error)

    def find(self, who: str, key: str) -> Job[Any] | None:
        """One of somebody's own jobs, which is not forgotten meanwhile."""
        job = self._jobs.get(key)
        if job is None or job.who != who:
            return None
        job.asked = time.monotonic()
        return job

    def of(self, who: str) -> list[Job[Any]]:
        """Somebody's jobs that have not ended, the oldest first."""
        with self._lock:
            return [job for job in self._jobs.values() if job.who == who and not job.ended]

    def ahead(self, job: Job[Any]) -> int:
        """How many come before a job that waits, with the one that is worked on."""
        with self._lock:
            alive = [other for other in self._jobs.values() if not other.ended]
        return alive.index(job) if job in alive else 0

    @property
    def counts(self) -> dict[str, int]:
        """How many are working and waiting, and how many may wait."""
        with self._lock:
            working = sum(job.state == "working" for job in self._jobs.values())
            return {"working": working, "waiting": len(self._waiting()), "most": self.most}

    def _waiting(self) -> list[Job[Any]]:
        return [job for job in self._jobs.values() if job.state == "waiting"]

    def close(self) -> None:
        """End everything."""
        for job in list(self._jobs.values()):
            job.cancel()
        self._worker.shutdown(cancel_futures=True)


def _told(work: Callable[..., T], *arguments: Any) -> T:
    """Whatever goes wrong is one line for the visitor."""
    try:
        return work(*arguments)
    except (SageError, Cancelled):
        raise
    except Exception as error:
        if out_of_memory(error):
            raise SettingsError("out of memory: try a smaller size") from None
        traceback.print_exception(error, file=sys.stderr)
        raise SageError("something went wrong on the server, and was written to its log") from None
