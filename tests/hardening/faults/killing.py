"""Processes that are killed at moments of the test's choosing, with a model that is loaded already."""

import os
import random
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch


def started(work: Callable[[], object]) -> int:
    """A process that does `work` and ends, with status 0 if that was well; its id."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        torch.set_num_threads(1)  # a pool of threads does not survive a fork
        out = os.open(os.devnull, os.O_WRONLY)
        os.dup2(out, 1)
        os.dup2(out, 2)
        status = work() or 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def ended(process: int) -> int:
    """Its exit status; that of a signal is negative."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def timed(work: Callable[[], object]) -> float:
    """Seconds that undisturbed work takes, which must end well."""
    began = time.monotonic()
    assert ended(started(work)) == 0
    return time.monotonic() - began


def killed(work: Callable[[], object], after: float) -> bool:
    """Whether a process that does `work` was still at it when it was killed after some seconds."""
    process = started(work)
    time.sleep(after)
    os.kill(process, signal.SIGKILL)
    return ended(process) == -signal.SIGKILL


def moments(seed: int, number: int, within: float) -> list[float]:
    """Random moments of work that takes `within` seconds, one in each of as many equal parts."""
    random_ = random.Random(seed)
    return [(i + random_.random()) * within / number for i in range(number)]


def visible(folder: Path) -> dict[str, bytes]:
    """What lies in a folder under names that anybody looks at."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*"))
            if p.is_file() and not any(part.startswith(".") for part in p.relative_to(folder).parts)}
