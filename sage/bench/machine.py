"""What a table has to say of where it was made: no names, only kinds."""

import os
import platform
import re
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from sage import __version__

PACKAGES = ("torch", "transformers", "numpy", "pillow")  # besides sage


def machine(device: str = "cpu") -> str:
    """The GPU, or the CPU and how many of its cores and threads were at hand."""
    import torch
    if device == "cuda" and torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    cores, threads = os.cpu_count() or 1, torch.get_num_threads()
    return f"{_cpu()}, {cores} core{'s' * (cores != 1)}, {threads} thread{'s' * (threads != 1)}"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def peak_memory(device: str = "cpu") -> int | None:
    """The most bytes that this process has had: on the GPU, or resident; None where the system does not tell."""
    if device == "cuda":
        import torch
        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated()
    try:
        found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    except OSError:  # no Linux
        return _resident_at_most()
    return int(found[1]) * 1024 if found else None


def _resident_at_most() -> int | None:
    """The same as the rest of Unix tells it: of this process, on Linux also of what it was before this program."""
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def versions() -> str:
    """Of Python and of what the figures depend on."""
    packages = (f"{name} {metadata.version(name)}" for name in PACKAGES)
    return ", ".join([f"sage {__version__}", f"Python {platform.python_version()}", *packages])


def today() -> str:
    """The date, in UTC."""
    return datetime.now(UTC).date().isoformat()
