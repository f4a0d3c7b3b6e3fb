"""How this process's threads wait for each other: the choice of a program, never of the library.  Imports no torch."""

import os
import sys

POLICY = "OMP_WAIT_POLICY"


def sleep_while_waiting() -> bool:
    """Let OpenMP's threads sleep while they wait, unless the environment says otherwise; whether that comes in time.

    By default they spin for milliseconds after each of the thousands of loops in a pass.  That saves waking them where
    nothing else runs; where something does, they hold the very core that the thread they wait for would need.  OpenMP
    reads the environment once, when torch is imported; processes that are started from here inherit it.
    """
    os.environ.setdefault(POLICY, "PASSIVE")
    return "torch" not in sys.modules
