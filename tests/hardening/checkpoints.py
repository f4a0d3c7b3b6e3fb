"""Checkpoints that are damaged or lie, and how whoever reads them has to end."""

import json
import shutil
import struct
import warnings
from pathlib import Path

from hypothesis import strategies as st

import sage
from sage.errors import ModelError, NumericsError, SettingsError
from sage.models import loading
from sage.models.describe import describe
from tests import small
from tests.hardening import files
from tests.hardening.ends import ends_well

DTYPES = ("F32", "F16", "BF16", "F64", "F8_E4M3", "I64", "I8", "BOOL", "U8", "C64", "F4", "")
DIMENSIONS = st.one_of(st.integers(0, 99), st.sampled_from((0, 1, 2**31, 2**32, 2**63, 2**64, -1)))


def parts(raw: bytes) -> tuple[dict, bytes]:
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8:8 + length]), raw[8 + length:]


def joined(header: str, data: bytes, length: int | None = None) -> bytes:
    text = header.encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


@st.composite
def lying(draw, raw: bytes) -> bytes:
    """A file whose header says what is not so."""
    header, data = parts(raw)
    names = sorted(header.keys() - {"__metadata__"})
    length, doubled = None, ""
    for _ in range(draw(st.integers(1, 3))):
        name, other = draw(st.sampled_from(names)), draw(st.sampled_from(names))
        if name not in header or other not in header:
            continue
        lie = draw(st.sampled_from(("dtype", "shape", "offsets", "overlap", "drop", "more", "type", "length", "twice")))
        if lie == "dtype":
            header[name]["dtype"] = draw(st.sampled_from(DTYPES))
        elif lie == "shape":
            header[name]["shape"] = draw(st.lists(DIMENSIONS, max_size=5))
        elif lie == "offsets":
            header[name]["data_offsets"] = draw(st.lists(DIMENSIONS, min_size=1, max_size=3))
        elif lie == "overlap":
            header[name]["data_offsets"] = header[other]["data_offsets"]
        elif lie == "drop":
            del header[name]
        elif lie == "more":
            header[draw(st.text(max_size=20))] = header[name]
        elif lie == "type":
            header[name] = draw(files.VALUES)
            if not isinstance(header[name], dict) or not {"dtype", "shape", "data_offsets"} <= header[name].keys():
                break
        elif lie == "twice":
            doubled = f"{json.dumps(name)}:{json.dumps(header[other])},"
        else:
            length = draw(st.sampled_from((0, 1, 2, 7, 2**31, 2**32, 2**62, 2**63, 2**64 - 1, 100_000_001)))
    return joined("{" + doubled + json.dumps(header)[1:], data, length)


def damaged_head(raw: bytes) -> st.SearchStrategy[bytes]:
    """A file of which as many of the first bytes are damaged as its header has."""
    length = int.from_bytes(raw[:8], "little")
    return files.damaged(raw[:length]).map(lambda head: head + raw[length:])


def with_hostile_configuration(honest: Path, name: str, data: st.DataObject, into: Path) -> Path:
    """A model's folder, but for one configuration, which is damaged or says what no model can be."""
    said = (honest / name).read_text()
    text = data.draw(st.one_of(files.hostile_json(json.loads(said)), files.damaged(said.encode()).map(
        lambda raw: raw.decode(errors="replace"))))
    other = into / "model"
    shutil.copytree(honest, other, copy_function=lambda a, b: Path(b).symlink_to(Path(a).resolve()))
    (other / name).unlink()
    (other / name).write_text(text, errors="surrogatepass")
    return other


def ends_as_a_model(what: str, path: Path, **options) -> None:
    """It loads and can be edited with, or it is refused in one line."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = ends_well(what, lambda: loading.load_model(path, device="cpu", **options), ModelError)
    ends_well(f"{what}, described", lambda: describe(path), ModelError)
    if model is not None:
        settings = sage.method("plain").Settings(steps=2, size=16)
        ends_well(f"{what}, edited", lambda: sage.edit(model, small.picture(16, 16), "a cat", "a dog", settings),
                  NumericsError, SettingsError)
