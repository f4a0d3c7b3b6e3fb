"""Whatever is tried ends soon: what waits for a pipe, or works without end, is broken off and fails its test."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def soon(seconds: float = 20) -> Iterator[None]:
    """Context that ends in an AssertionError if it is not left in time."""
    def late(*_):
        raise AssertionError(f"not done in {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
