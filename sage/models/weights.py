"""Weights on disk -> a network: safetensors only, strict, one tensor at a time.

Files are read with `pread`, not mapped: a mapped file counts twice while its weights are converted, and crashes
the process when another rewrites it.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from sage.errors import ModelError
from sage.files import check_safetensors
from sage.models.memory import free_memory
from sage.models.sd.renames import Rename, Rows, Turned

FLOATS = {"F64", "F32", "F16", "BF16"}
# Norms stay in float32: they are small, and their sums are where half precision goes wrong.
CAST = (nn.Conv2d, nn.Linear, nn.Embedding)

N = TypeVar("N", bound=nn.Module)


@dataclass(frozen=True)
class Stored:
    """One tensor of an open file, not yet read.

    Attributes:
        shape: of what `read` gives.
        rows: from and to, where only some of the stored rows are meant, in this order; () for all.
        turned: the file has rows and columns the other way round.
    """

    path: Path
    file: Any
    key: str
    shape: tuple[int, ...]
    dtype: str
    rows: tuple[tuple[int, int], ...] = ()
    turned: bool = False

    def read(self) -> Tensor:
        """The tensor, on the CPU."""
        value = self._read()
        return value.T.contiguous() if self.turned else value

    def _read(self) -> Tensor:
        try:
            if not self.rows:
                return self.file.get_tensor(self.key)
            stored = self.file.get_slice(self.key)
            return torch.cat([stored[begin:end] for begin, end in self.rows])
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{self.path}: cannot read {self.key}: {error}") from error

    def only(self, rows: tuple[tuple[int, int], ...]) -> "Stored":
        """Some of its rows."""
        shape = (sum(end - begin for begin, end in rows), *self.shape[1:])
        return dataclasses.replace(self, shape=shape, rows=rows)

    def turn(self) -> "Stored":
        """Rows for columns."""
        return dataclasses.replace(self, shape=self.shape[::-1], turned=not self.turned)


KINDS = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


class Held(Stored):
    """One tensor of a network that is loaded: `read` gives it itself, and no copy."""

    @classmethod
    def of(cls, path: Path, key: str, value: Tensor) -> "Held":
        """As what it passes, and where it is from, for errors."""
        return cls(path, value, key, tuple(value.shape), KINDS.get(value.dtype, str(value.dtype)))

    def _read(self) -> Tensor:
        return torch.cat([self.file[begin:end] for begin, end in self.rows]) if self.rows else self.file


def open_weights(paths: Iterable[Path]) -> dict[str, Stored]:
    """Every tensor of some safetensors files, by its stored name; only the headers are read.

    Raises:
        ModelError: a file that is missing, truncated or no safetensors, or a name in two files.
    """
    tensors: dict[str, Stored] = {}
    for path in paths:
        check_safetensors(path, ModelError)
        try:
            file = safe_open(path, framework="pt", backend="pread")
        except (SafetensorError, OSError) as error:
            reason = str(error).removeprefix("Error while deserializing header: ")
            raise ModelError(f"{path} is truncated or no safetensors file ({reason}); copy it again") from error
        for key in file.keys():
            if key in tensors:
                raise ModelError(f"{path}: {key} is also in {tensors[key].path.name}")
            entry = file.get_slice(key)
            tensors[key] = Stored(path, file, key, tuple(entry.get_shape()), entry.get_dtype())
    return tensors


def renamed(tensors: dict[str, Stored], rename: Rename) -> dict[str, Stored]:
    """The same tensors under our names; fused ones taken apart, dropped ones left out."""
    result: dict[str, Stored] = {}
    for key, stored in tensors.items():
        target = rename(key)
        if target is None:
            continue
        if isinstance(target, str):
            parts = {target: stored}
        else:
            parts = {target.name: stored.turn()} if isinstance(target, Turned) else _taken_apart(stored, target)
        if clash := parts.keys() & result.keys():
            raise ModelError(f"{stored.path}: {key} and {result[min(clash)].key} are the same weight")
        result |= parts
    return result


def _taken_apart(stored: Stored, fused: tuple[Rows, ...]) -> dict[str, Stored]:
    """The weights that are stored as one; under its own name, which nobody expects, where the rows do not divide."""
    if not stored.shape or stored.shape[0] % fused[0].of:
        return {stored.key: stored}
    unit = stored.shape[0] // fused[0].of
    rows: dict[str, tuple[tuple[int, int], ...]] = {}
    for part in fused:
        rows[part.name] = (*rows.get(part.name, ()), (part.begin * unit, part.end * unit))
    return {name: stored.only(own) for name, own in rows.items()}


def some(names: Iterable[str], limit: int = 3) -> str:
    """The first few names and the number of the others, for an error's one line."""
    names = sorted(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _fits(stored: Stored, shape: tuple[int, ...]) -> bool:
    # A 1x1 convolution and a linear layer are the same weight; old files store one where we have the other.
    return stored.shape == shape or stored.shape == (*shape, 1, 1)


def check(network: nn.Module, tensors: dict[str, Stored], what: str) -> None:
    """Raise one ModelError that names everything missing, unexpected or of a wrong shape or type."""
    wanted = {name: tuple(p.shape) for name, p in network.named_parameters()}
    faults = []
    if missing := wanted.keys() - tensors.keys():
        faults.append(f"{len(missing)} of {len(wanted)} weights missing ({some(missing)})")
    if extra := tensors.keys() - wanted.keys():
        faults.append(f"{len(extra)} unexpected ({some(tensors[name].key for name in extra)})")
    both = wanted.keys() & tensors.keys()
    if wrong := [n for n in both if not _fits(tensors[n], wanted[n])]:
        shapes = (f"{n}: {list(tensors[n].shape)} instead of {list(wanted[n])}" for n in wrong)
        faults.append(f"{len(wrong)} of another shape ({some(shapes)})")
    if typed := [n for n in both if tensors[n].dtype not in FLOATS]:
        faults.append(f"{len(typed)} not floating-point ({some(f'{n}: {tensors[n].dtype}' for n in typed)})")
    if faults:
        raise ModelError(f"{what} does not fit: {'; '.join(faults)}")


def fill(make: Callable[[], N], tensors: dict[str, Stored], what: str, device: torch.device,
         dtype: torch.dtype) -> N:
    """Build a network without initialising it, and give it its weights, frozen.

    Args:
        make: constructs the network; called on the meta device.
        tensors: every weight under our names, and no other.
        what: where the weights come from, for errors.
        dtype: of convolutions, linear layers and embeddings; norms stay float32.
    Raises:
        ModelError: weights that do not fit, or are not finite.
    """
    with torch.device("meta"):
        network = make()
    check(network, tensors, what)
    for path, module in network.named_modules():
        target = dtype if isinstance(module, CAST) else torch.float32
        for leaf, parameter in list(module.named_parameters(recurse=False)):
            name = f"{path}.{leaf}" if path else leaf
            value = _finite(tensors[name].read(), tensors[name], target)
            value = value.reshape(parameter.shape).to(device, target)
            setattr(module, leaf, nn.Parameter(value, requires_grad=False))
    return network.eval()


def _finite(value: Tensor, stored: Stored, target: torch.dtype) -> Tensor:
    """The value itself; aminmax carries NaN through and needs no second copy of the tensor."""
    low, high = (float(x) for x in torch.aminmax(value))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ModelError(f"{stored.path}: {stored.key} holds NaN or infinite numbers; the file is damaged")
    if max(-low, high) > torch.finfo(target).max:
        raise ModelError(f"{stored.path}: {stored.key} does not fit {target}; load with dtype float32")
    return value


@dataclass(frozen=True)
class Part:
    """One network that can be loaded: how to build it, and its weights under our names."""

    make: Callable[[], nn.Module]
    tensors: dict[str, Stored]
    what: str

    @property
    def numbers(self) -> int:
        """How many there are in its weights."""
        return sum(math.prod(stored.shape) for stored in self.tensors.values())

    def bytes(self, dtype: torch.dtype) -> int:
        """What its weights take in memory."""
        return self.numbers * dtype.itemsize

    def load(self, device: torch.device, dtype: torch.dtype) -> nn.Module:
        """The network, by `fill`."""
        return fill(self.make, self.tensors, self.what, device, dtype)


def check_room(parts: Iterable[Part], name: str, device: torch.device, dtype: torch.dtype) -> None:
    """ModelError for a model that is larger than the memory that is free, before minutes of reading."""
    parts = list(parts)

    def need(of: torch.dtype) -> int:
        return sum(part.bytes(of) for part in parts)

    free = free_memory(device)
    if free is None or need(dtype) <= free:
        return
    half = f"in bfloat16 {_gb(need(torch.bfloat16))}: give dtype bfloat16; " if need(torch.bfloat16) <= free else ""
    raise ModelError(f"{name} needs {_gb(need(dtype))} of memory in {str(dtype).removeprefix('torch.')}, and "
                     f"{_gb(free)} are free on {device}; {half}weights are not read piece by piece, which would take "
                     "minutes a step: use a machine with more memory, or a smaller model")


def _gb(amount: int) -> str:
    return f"{amount / 1e9:.1f} GB"
