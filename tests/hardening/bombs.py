"""Opens every file of a folder in a process of bounded memory, and says how each ended: JSON on stdout."""

import json
import resource
import sys
import time
from pathlib import Path

from sage import pictures
from sage.errors import PictureError

MEMORY = 2 * 2**30


def peak() -> int:
    """The most memory that this program has held, in KiB; getrusage counts what the process was before it, too."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:  # not Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(status.partition("VmHWM:")[2].split()[0])


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
            ends[f"{path.name} {read.__name__}"] = [end, round(time.monotonic() - began, 2), peak() >> 10]
    print(json.dumps(ends))
