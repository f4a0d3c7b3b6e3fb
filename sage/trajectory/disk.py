"""A trajectory -> a file, and back to the last bit: `save_trajectory`, `load_trajectory`.

    8 bytes   length of the header
    header    JSON: the label, then type, shape and place of every tensor         (the safetensors format)
    tensors   one after the other; each is brought to the host only while it is written

Reading goes through the safetensors library; writing is done here, as the library would copy everything into memory.
"""

import json
import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sage import pictures
from sage.errors import ModelError, SettingsError
from sage.files import written_whole
from sage.method import method
from sage.models.backbone import Backbone
from sage.models.sites import Where
from sage.models.weights import Stored, open_weights, some
from sage.pictures.metadata import made_by
from sage.trajectory.kinds import KINDS, Frame, Origin, Trajectory, Wanted, mapped, named
from sage.trajectory.label import KEY, VERSION, Label, check_place, read_label

DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
ATTENTION = ("heard.", "self.", "cross.")  # the tensors of it; the latter two in files of version 1
ASIDE = {"text", "factors", "attention"}  # in files of version 1, and worked out anew today


def save_trajectory(trajectory: Trajectory, path: str | Path, model: Backbone, *, name: str = "",
                    truncate: bool = False, prediction_type: str | None = None) -> Path:
    """Write a trajectory, whole or not at all.

    Args:
        path: ends in .safetensors.
        model: that made it.
        name: of the picture's file, for people.
        truncate: whether prompts could be cut.
        prediction_type: where the user overrode the checkpoint's own word.
    Raises:
        SettingsError: another ending, or a place that cannot be written to.
    """
    path, of = Path(path), trajectory.origin
    check_place(path)
    tensors, orders, same = _laid_out(trajectory)
    wants = tuple(want.where._asdict() | {"steps": sorted(want.steps)} for want in trajectory.wants)
    label = Label(VERSION, trajectory.kind, _valid(model.name), of.model, prediction_type, of.inversion, of.method,
                  of.settings, of.source, of.target, truncate, of.pictures, of.picture_size, _valid(name),
                  len(trajectory.latents) - 1, wants, orders, same, trajectory.notes, made_by(model),
                  checksum(tensors.values()))
    header = _header(label, tensors)
    try:
        with written_whole(path) as out:
            out.write(len(header).to_bytes(8, "little") + header)
            for tensor in tensors.values():
                out.write(_bytes(tensor))
    except OSError as error:
        raise SettingsError(f"{path} cannot be written ({error.strerror})") from error
    return path


def _laid_out(trajectory: Trajectory) -> tuple[dict[str, Tensor], dict[str, list[int]], dict[str, str]]:
    """Every tensor by its name, its dimensions as they lie in memory; those orders; and what is there already."""
    tensors, orders, same = dict[str, Tensor](), dict[str, list[int]](), dict[str, str]()
    seen: dict[tuple[Any, ...], str] = {}
    for name, t in sorted(named(trajectory)):
        place = (t.data_ptr(), t.shape, t.stride(), t.dtype)
        if place in seen:
            same[name] = seen[place]
            continue
        seen[place] = name
        order = sorted(range(t.dim()), key=list(zip((-s for s in t.stride()), (-n for n in t.shape),
                                                    strict=True)).__getitem__)
        if order != [*range(t.dim())] and t.permute(order).is_contiguous():
            orders[name], t = order, t.permute(order)
        tensors[name] = t
    return tensors, orders, same


def load_trajectory(path: str | Path, model: Backbone, trusted: str = "") -> Trajectory:
    """Read a trajectory for the model that made it; it is the same to the last bit.

    The recorded attention lies on the model's device, or on the host where the model saves memory so.

    Args:
        trusted: path/to/file.py:Class of the user's own method, the only one of the kind that a file may name.
    Raises:
        SettingsError: missing, damaged, no trajectory, or of another model.
    """
    path = Path(path)
    label = read_label(path, trusted)
    if label.fingerprint != model.fingerprint():
        raise SettingsError(f"{path} is a trajectory of another model, {label.model} in "
                            f"{str(label.made.get('dtype'))[:20]}: invert again with this one")
    try:
        blank = _blank(label, model)
    except SettingsError as error:
        raise SettingsError(f"{path} was made with settings that this model cannot have: {error}") from error
    try:
        stored = open_weights([path])
        names: Names = _version_1(blank, stored) if label.version == 1 else {
            name: (label.same.get(name, name), ()) for name, _ in named(blank)}
        _check(path, stored, blank, names, label)
        tensors, checked = {}, 0
        for key in sorted(stored):
            tensor = stored[key].read()
            checked = checksum([tensor], checked)
            if not all(math.isfinite(x) for x in torch.aminmax(tensor)):
                raise SettingsError(f"{path}: {key} holds NaN or infinite numbers; invert again")
            host = model.savings.references and key.startswith(ATTENTION)
            tensors[key] = tensor if host else tensor.to(model.device)
    except ModelError as error:
        raise SettingsError(str(error)) from error
    if checked != label.crc32:
        raise SettingsError(f"{path} is damaged: its numbers are not those that were written; invert again")

    def filled(name: str, shape: Tensor) -> Tensor:
        key, known = names[name]
        order = known or label.orders.get(key, ())
        return tensors[key].permute(_inverse(order)) if order else tensors[key]

    return mapped(blank, filled)


def _blank(label: Label, model: Backbone) -> Trajectory:
    """A trajectory as its label describes it, without numbers.

    Raises:
        SettingsError: a kind that is not known, or settings that the model cannot have.
    """
    kind, settings, by = KINDS.get(label.kind), label.settings, method(label.method)
    if kind is None:
        raise SettingsError(f"there are no trajectories of the kind {label.kind!r}")
    size = pictures.working_size(*label.picture_size, getattr(settings, "size", None) or model.sample_size,
                                 model.pixel_multiple, getattr(settings, "fit", "keep"))
    shape = model.latent_shape(size)
    if label.steps != by.path_steps(model, settings, shape[1:]):
        raise SettingsError(f"{label.steps} steps are not those of its settings")
    origin = Origin(label.fingerprint, label.inversion, label.method, settings, label.source, label.target,
                    label.pictures, label.picture_size)
    text = model.embed(label.source[:1])
    if label.version == 1:
        wants = by.wants(settings.but(spare="none"))  # whose attention those files hold in another form
    else:
        wants = tuple(Wanted(Where(w["kind"], w["level"], tuple(w["blocks"]), w["place"]), frozenset(w["steps"]))
                      for w in label.wants)
    frame = Frame(len(label.source), shape, text, label.steps, wants, model.sites())
    return replace(kind.blank(origin, frame), notes=label.notes)


Names = dict[str, tuple[str, tuple[int, ...]]]  # of each tensor: its name in the file, and the order of its dimensions


def _version_1(blank: Trajectory, stored: dict[str, Stored]) -> Names:
    """Where a file of version 1 has the tensors: the keys of a text are in it once."""
    names: Names = {}
    for name, _ in named(blank):
        part, *rest = name.split(".")
        if part == "latents":
            names[name] = name, ()
            continue
        want, k, site, what = rest
        kind = blank.wants[int(want)].where.kind
        key = f"{kind}.{k}.{site}.{what}"
        if key not in stored and kind == "cross" and what == "keys":
            earlier = (f"cross.{i}.{site}.keys" for i in reversed(range(int(k))))
            key = next((other for other in earlier if other in stored), key)
        names[name] = key, (0, 2, 1, 3)
    return names


def _inverse(order: Sequence[int]) -> list[int]:
    return [list(order).index(i) for i in range(len(order))]


def checksum(tensors: Iterable[Tensor], start: int = 0) -> int:
    """CRC-32 of the bytes of some tensors, going on from that of others."""
    for tensor in tensors:
        start = zlib.crc32(_bytes(tensor), start)
    return start


def _header(label: Label, tensors: dict[str, Tensor]) -> bytes:
    header, at = dict[str, Any](__metadata__={KEY: label.text()}), 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape),
                        "data_offsets": [at, at + tensor.nbytes]}
        at += tensor.nbytes
    text = json.dumps(header).encode()
    return text + b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes


def _valid(name: str) -> str:
    """A file's name, which may hold bytes that are no text."""
    return name.encode(errors="replace").decode()


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def _check(path: Path, stored: dict[str, Stored], blank: Trajectory, names: Names, label: Label) -> None:
    """SettingsError that names what is missing, not expected, or of a wrong shape or type."""
    shapes: dict[str, tuple[int, ...]] = {}
    faults = []
    for name, t in named(blank):
        key, known = names[name]
        order = known or label.orders.get(key, ())
        if order and len(order) != t.dim():
            raise SettingsError(f"{path}: what the trajectory says about the order of {key} is damaged")
        shape = tuple(t.shape[i] for i in order) if order else tuple(t.shape)
        if shapes.setdefault(key, shape) != shape:
            raise SettingsError(f"{path}: {name} cannot be {key}: invert again")
    if missing := shapes.keys() - stored.keys():
        faults.append(f"{len(missing)} tensors missing ({some(missing)})")
    if extra := stored.keys() - shapes.keys() - (ASIDE if label.version == 1 else set()):
        faults.append(f"{len(extra)} unexpected ({some(extra)})")
    both = stored.keys() & shapes.keys()
    if wrong := [name for name in both if stored[name].shape != shapes[name]]:
        said = (f"{n}: {list(stored[n].shape)} instead of {list(shapes[n])}" for n in wrong)
        faults.append(f"{len(wrong)} of another shape ({some(said)})")
    if typed := [n for n in stored if stored[n].dtype not in (
            ("F32",) if n.startswith("latents") else DTYPES.values())]:
        faults.append(f"{len(typed)} of another type ({some(f'{n}: {stored[n].dtype}' for n in typed)})")
    if faults:
        raise SettingsError(f"{path} does not hold the trajectory that it says: {'; '.join(faults)}")
