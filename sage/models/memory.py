"""Memory of the machine: what an edit may have of it."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

PAGE = 4096 if not hasattr(os, "sysconf") else os.sysconf("SC_PAGE_SIZE")
ROOT = Path("/")  # of the files in which the system tells what is free


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
    limits = [_number(ROOT / "proc/meminfo", "MemAvailable:", 1024)]
    group = ROOT / "sys/fs/cgroup"
    most, used = _number(group / "memory.max"), _number(group / "memory.current")
    if most is not None and used is not None:
        # Files that were read or written count as used, but are dropped for whoever needs their memory.
        cached = _number(group / "memory.stat", "\ninactive_file ") or 0
        limits.append(max(0, most - max(0, used - cached)))
    most, pages = _address_space(), _number(ROOT / "proc/self/statm")
    if most is not None and pages is not None:
        limits.append(max(0, most - pages * PAGE))
    return min((limit for limit in limits if limit is not None), default=None)


def whole_memory(device: torch.device) -> int | None:
    """Bytes that a device has in all, as far as this process may have them; None where that cannot be told."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    swap = _number(ROOT / "proc/meminfo", "SwapTotal:", 1024) or 0
    memory = _number(ROOT / "proc/meminfo", "MemTotal:", 1024)
    limits = [None if memory is None else memory + swap, _number(ROOT / "sys/fs/cgroup/memory.max"), _address_space()]
    return min((limit for limit in limits if limit is not None), default=None)


def _address_space() -> int | None:
    """Bytes of addresses that this process may have in all, None where nobody has limited them."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def _number(path: Path, key: str = "", unit: int = 1) -> int | None:
    try:
        text = ("\n" + path.read_text()).partition(key)[2] if key else path.read_text()
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
