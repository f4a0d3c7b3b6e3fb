"""A trajectory -> a file, and back to the last bit: `save_trajectory`, `load_trajectory`.

    8 bytes   length of the header
    header    JSON: the label, then type, shape and place of every tensor         (the safetensors format)
    tensors   one after the other; each is brought to the host only while it is written

Reading goes through the safetensors library; writing is done here, as the library would copy everything into memory.
"""

import json
import math
import zlib
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from sage.errors import ModelError, SettingsError
from sage.files import written_whole
from sage.inversion import Trajectory
from sage.models.fingerprint import fingerprint
from sage.models.sd.model import StableDiffusion
from sage.models.weights import Stored, open_weights, some
from sage.pictures.metadata import made_by
from sage.trajectory.label import KEY, Label, check_place, read_label
from sage.trajectory.layout import Layout, channels_last, layout, named

DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
RECORDED = ("self", "cross")  # these lie where the model wants them, in the dtype that it computed in


def save_trajectory(trajectory: Trajectory, path: str | Path, model: StableDiffusion, *, name: str = "",
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
    path = Path(path)
    check_place(path)
    tensors = dict(sorted(named(trajectory).items()))
    label = Label(_valid(model.name), fingerprint(model), prediction_type, trajectory.source, truncate,
                  trajectory.config, trajectory.pictures, trajectory.picture_size, _valid(name),
                  channels_last(trajectory), trajectory.notes, made_by(model), checksum(tensors.values()))
    header = _header(label, tensors)
    try:
        with written_whole(path) as out:
            out.write(len(header).to_bytes(8, "little") + header)
            for tensor in tensors.values():
                out.write(_bytes(tensor))
    except OSError as error:
        raise SettingsError(f"{path} cannot be written ({error.strerror})") from error
    return path


def load_trajectory(path: str | Path, model: StableDiffusion) -> Trajectory:
    """Read a trajectory for the model that made it; it is the same to the last bit.

    The recorded attention lies on the model's device, or on the host where the model saves memory so.

    Raises:
        SettingsError: missing, damaged, no trajectory, or of another model.
    """
    path = Path(path)
    label = read_label(path)
    if label.fingerprint != fingerprint(model):
        raise SettingsError(f"{path} is a trajectory of another model, {label.model} in "
                            f"{str(label.made.get('dtype'))[:20]}: invert again with this one")
    try:
        wanted = layout(label, model)
    except SettingsError as error:
        raise SettingsError(f"{path} was made with settings that this model cannot have: {error}") from error
    try:
        stored = open_weights([path])
        _check(path, stored, wanted)
        tensors, checked = {}, 0
        for key in sorted(stored):
            tensor = stored[key].read()
            checked = checksum([tensor], checked)
            if not all(math.isfinite(x) for x in torch.aminmax(tensor)):
                raise SettingsError(f"{path}: {key} holds NaN or infinite numbers; invert again")
            host = model.savings.references and key.startswith(RECORDED)
            tensors[key] = tensor if host else tensor.to(model.device)
    except ModelError as error:
        raise SettingsError(str(error)) from error
    if checked != label.crc32:
        raise SettingsError(f"{path} is damaged: its numbers are not those that were written; invert again")
    return wanted.assemble(label, tensors)


def checksum(tensors: Iterable[Tensor], start: int = 0) -> int:
    """CRC-32 of the bytes of some tensors, going on from that of others."""
    for tensor in tensors:
        start = zlib.crc32(_bytes(tensor), start)
    return start


def _header(label: Label, tensors: dict[str, Tensor]) -> bytes:
    header, at = {"__metadata__": {KEY: label.text()}}, 0
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
    return memoryview(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())


def _check(path: Path, stored: dict[str, Stored], wanted: Layout) -> None:
    """SettingsError that names what is missing, not expected, or of a wrong shape or type."""
    faults = []
    if missing := wanted.shapes.keys() - stored.keys() - wanted.optional:
        faults.append(f"{len(missing)} tensors missing ({some(missing)})")
    if extra := stored.keys() - wanted.shapes.keys():
        faults.append(f"{len(extra)} unexpected ({some(extra)})")
    both = stored.keys() & wanted.shapes.keys()
    if wrong := [name for name in both if stored[name].shape != wanted.shapes[name]]:
        shapes = (f"{n}: {list(stored[n].shape)} instead of {list(wanted.shapes[n])}" for n in wrong)
        faults.append(f"{len(wrong)} of another shape ({some(shapes)})")
    if typed := [n for n in both if stored[n].dtype not in (
            DTYPES.values() if n.startswith(RECORDED) else ("F32",))]:
        faults.append(f"{len(typed)} of another type ({some(f'{n}: {stored[n].dtype}' for n in typed)})")
    if faults:
        raise SettingsError(f"{path} does not hold the trajectory that it says: {'; '.join(faults)}")
