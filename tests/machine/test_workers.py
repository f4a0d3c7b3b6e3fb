"""A killed pool leaves no process behind."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from sage.machine.workers import end_with_parent


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def pool(initializer=end_with_parent) -> None:
    """Have one worker, say which process it is, and wait for ever."""
    with ProcessPoolExecutor(1, get_context("spawn"), initializer) as workers:
        print(workers.submit(os.getpid).result(), flush=True)
        time.sleep(600)


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="processes are looked for where Linux has them")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_workers_of_a_killed_pool_end(how):
    parent = subprocess.Popen([sys.executable, "-c", "from tests.machine.test_workers import pool\n"
                               "if __name__ == '__main__': pool()"], stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL, text=True)
    worker = int(parent.stdout.readline())
    assert alive(worker)
    parent.send_signal(how)
    parent.wait(60)
    for _ in range(300):
        if not alive(worker):
            return
        time.sleep(0.1)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker lives on")
