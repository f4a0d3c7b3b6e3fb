"""Weights and configurations that are damaged or lie: a network of finite weights, or one ModelError."""

import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sage
from sage import EditConfig
from sage.errors import ModelError, NumericsError, SettingsError
from sage.models import loading
from sage.models.describe import describe
from sage.models.folders import weight_files
from sage.models.sd import renames
from sage.models.sd.clip import CLIPText
from sage.models.weights import fill, open_weights, renamed
from tests import small
from tests.hardening import files
from tests.hardening.ends import ends_well, tries
from tests.models import tiny

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ("unet/config.json", "vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json")
DTYPES = ("F32", "F16", "BF16", "F64", "F8_E4M3", "I64", "I8", "BOOL", "U8", "C64", "F4", "")
DIMENSIONS = st.one_of(st.integers(0, 99), st.sampled_from((0, 1, 2**31, 2**32, 2**63, 2**64, -1)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.make(tmp_path_factory.mktemp("fuzz") / "model").folder


@pytest.fixture(scope="module")
def raw(folder):
    return (folder / "text_encoder" / "model.safetensors").read_bytes()


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


@tries(80, 3000)
@given(st.data())
def test_a_damaged_file_gives_finite_weights_or_one_error(folder, raw, tmp_path_factory, data):
    length = int.from_bytes(raw[:8], "little")
    broken = data.draw(st.one_of(lying(raw), files.damaged(raw), files.damaged(raw[:length]).map(
        lambda head: head + raw[length:])))
    path = tmp_path_factory.mktemp("w") / "model.safetensors"
    path.write_bytes(broken)
    network = ends_well("safetensors", lambda: fill(
        lambda: CLIPText(tiny.TEXTS["1.x"]), renamed(open_weights([path]), renames.folder_text), "it",
        torch.device("cpu"), torch.float32), ModelError)
    if network is not None:
        assert all(p.isfinite().all() for p in network.parameters())
    ends_well("safetensors as one file", lambda: describe(path), ModelError)


@tries(30, 400)
@given(st.sampled_from(CONFIGS), st.data())
def test_a_hostile_configuration_gives_a_model_that_can_edit_or_one_error(folder, tmp_path_factory, name, data):
    honest = (folder / name).read_text()
    text = data.draw(st.one_of(files.hostile_json(json.loads(honest)), files.damaged(honest.encode()).map(
        lambda raw: raw.decode(errors="replace"))))
    other = tmp_path_factory.mktemp("c") / "model"
    shutil.copytree(folder, other, copy_function=lambda a, b: Path(b).symlink_to(Path(a).resolve()))
    (other / name).unlink()
    (other / name).write_text(text, errors="surrogatepass")
    model = ends_well("configurations", lambda: loading.load_model(other, device="cpu"), ModelError)
    ends_well("configurations, described", lambda: describe(other), ModelError)
    if model is not None:
        config = EditConfig(steps=2, self_level=0, cross_level=0, size=16)
        ends_well("configurations, edited", lambda: sage.edit(
            model, small.picture(16, 16), "a cat", "a dog", config), NumericsError, SettingsError)


@tries(30, 1000)
@given(st.data())
def test_a_hostile_index_opens_nothing_elsewhere(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("i") / "model.safetensors.index.json"
    named = st.one_of(files.VALUES, st.sampled_from(("../../x.safetensors", "/etc/passwd", "a/../b.safetensors", "..",
                                                     "a\\b.safetensors", "\0.safetensors", "ok.safetensors")))
    index = {"weight_map": data.draw(st.one_of(files.VALUES, st.dictionaries(st.text(max_size=5), named, max_size=3)))}
    path.write_text(json.dumps(index))
    found = ends_well("indexes", lambda: weight_files(path.parent, "model", half=False), ModelError)
    assert found is None or all(p.parent == path.parent for p in found)
    if found:
        ends_well("indexes, opened", lambda: open_weights(found), ModelError)


LIARS = {"numbers": '{"in_channels": ' + "9" * 5000 + "}", "deep": '{"a":' * 100_000, "text": "\ud800",
         "huge": '{"a": "' + "x" * 20_000_000 + '"}', "layers": '{"layers_per_block": 1000000000}',
         "wide": '{"cross_attention_dim": 1000000000000000000}', "nan": '{"norm_eps": NaN}'}


@pytest.mark.parametrize("name", LIARS)
def test_no_configuration_takes_time_or_memory(folder, tmp_path, name):
    other = shutil.copytree(folder, tmp_path / "model")
    (other / "unet" / "config.json").write_text(LIARS[name], errors="surrogatepass")
    assert ends_well("configurations, absurd", lambda: loading.load_model(other, device="cpu"), ModelError) is None


def test_a_header_of_any_length_takes_no_memory(tmp_path):
    """In a process that may not have as much memory as the header claims, or as a million names would take."""
    many = ",".join(f'"{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(1_000_000))
    heads = {"many": joined("{" + many + "}", b""), "long": joined("{}", b"", 2**63),
             "most": joined("{}", b"", 2**64 - 1)}
    for name, head in heads.items():
        (tmp_path / f"{name}.safetensors").write_bytes(head)
    code = ("import resource, sys\nfrom pathlib import Path\nfrom sage.errors import ModelError\n"
            "from sage.models.weights import open_weights\n"
            "at = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "for path in Path(sys.argv[1]).iterdir():\n"
            "    try:\n        open_weights([path])\n    except ModelError:\n        print('refused')\n"
            "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - at) >> 10)")
    done = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, capture_output=True, text=True)
    *refused, grown = done.stdout.split()
    assert refused == ["refused"] * 3 and int(grown) < 100, done.stdout + done.stderr
