"""Memory of the machine: what an edit may have of it, and how it is kept."""

import ctypes
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from sage.models.savings import Savings as Savings

# From glibc's malloc.h: no allocation by mmap, and no memory given back below this many free bytes.
M_MMAP_MAX, M_TRIM_THRESHOLD = -4, -1
KEPT = 2**31 - 1


@cache
def keep_freed_memory() -> bool:
    """Let this process keep up to 2 GiB of the memory it frees; whether that could be done.

    glibc takes each large tensor from the system and gives it back, and the system clears every page of it each time:
    a fifth of the time of a UNet's forward pass on a CPU.  Only glibc has this setting.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, KEPT))


@dataclass(frozen=True)
class Needs:
    """Bytes that one picture takes on the device, beyond the weights.

    Attributes:
        autoencoder: to encode or decode it.
        network: for a denoising pass, and the way back of its gradient.
        attention: what is recorded at one step, of a kind and level.
    """

    autoencoder: int
    network: int
    attention: dict[tuple[str, int], int]


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be had on a device, None where that cannot be told."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    limits = [_number(Path("/proc/meminfo"), "MemAvailable:", 1024)]
    group = Path("/sys/fs/cgroup")
    most, used = _number(group / "memory.max"), _number(group / "memory.current")
    if most is not None and used is not None:
        limits.append(max(0, most - used))
    return min((limit for limit in limits if limit is not None), default=None)


def _number(path: Path, key: str = "", unit: int = 1) -> int | None:
    try:
        text = path.read_text().partition(key)[2] if key else path.read_text()
        return int(text.split()[0]) * unit
    except (OSError, ValueError, IndexError):
        return None


def on_host(t: Tensor) -> Tensor:
    """A copy on the host, which a GPU can read while the host goes on; what lies there already is left."""
    if t.device.type == "cpu":
        return t
    return torch.empty(t.shape, dtype=t.dtype, pin_memory=t.is_cuda).copy_(t)


def release(device: torch.device) -> None:
    """Give memory that nothing holds back to the device."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
