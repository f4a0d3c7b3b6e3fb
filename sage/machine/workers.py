"""Processes that work for another."""

import os
from multiprocessing import parent_process
from multiprocessing.process import BaseProcess
from threading import Thread


def end_with_parent() -> None:
    """Let this process end when the one that began it has, however that ended: as the initializer of a pool's workers.

    A pool whose process is killed leaves workers that wait for their next task for ever, with their memory and locks.
    """
    if (parent := parent_process()) is not None:
        Thread(target=_end_after, args=(parent,), daemon=True).start()


def _end_after(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)
