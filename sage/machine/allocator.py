"""How this process asks the system for memory: the choice of a program, never of the library.  Imports no torch."""

import ctypes
import sys
from functools import cache

# From glibc's malloc.h: no allocation by mmap, and no memory given back below this many free bytes.
M_MMAP_MAX, M_TRIM_THRESHOLD = -4, -1
KEPT = 2**31 - 1


@cache
def keep_freed_memory() -> bool:
    """Let this process keep up to 2 GiB of the memory it frees, to its end; whether that could be done.

    glibc takes each large tensor from the system and gives it back, and the system clears every page of it each time:
    a fifth of the time of a UNet's forward pass on a CPU.  Only glibc has this setting, and nothing undoes it; so
    `sage.load_model` leaves it alone, and a program that edits on a CPU calls this before it begins.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, KEPT))
