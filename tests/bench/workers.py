"""What the workers of a cluster make their engines with; they import it by name."""

import os
import signal
import time
from pathlib import Path

from sage.bench.metrics import Extractors
from sage.errors import SettingsError
from tests.bench.world import StubEngine


def make(folder: Path, deaths: int = 0, deadly: str = "", version: int | None = 1, pause: float = 0):
    """An engine that notes who works, and kills its process `deaths` times, at the case `deadly` if one is named."""
    (folder / f"worker-{os.getpid()}").touch()

    def before(cases):
        (folder / f"busy-{os.getpid()}").touch()
        time.sleep(pause)
        if deadly in [case.name for case in cases] or not deadly:
            for i in range(deaths):
                try:
                    (folder / f"death-{i}").touch(exist_ok=False)
                except FileExistsError:
                    continue
                os.kill(os.getpid(), signal.SIGKILL)

    return StubEngine(before=before, version=os.getpid() if version is None else version), Extractors()


def broken():
    raise SettingsError("there is no such model")


def wrong():
    engine = StubEngine()
    engine.make = lambda *args: 1 / 0
    return engine, Extractors()
