"""Opens every file of a folder in a process of bounded memory, and says how each ended: JSON on stdout."""

import json
import resource
import sys
import time
from pathlib import Path

from sage import pictures
from sage.bench.machine import peak_memory  # getrusage counts what the process was before this program too
from sage.errors import PictureError

MEMORY = 2 * 2**30

if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    ends = {}
    for path in sorted(Path(sys.argv[1]).iterdir()):
        for read in (pictures.open_picture, pictures.read_settings):
            began = time.monotonic()
            try:
                read(path)
                end = "accepted"
            except PictureError as error:
                end = str(error)
            ends[f"{path.name} {read.__name__}"] = [end, round(time.monotonic() - began, 2), (peak_memory() or 0) >> 20]
    print(json.dumps(ends))
