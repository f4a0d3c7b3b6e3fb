"""Weights and configurations that are damaged or lie: a network of finite weights, or one ModelError."""

import json
import shutil
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
from tests.hardening.checkpoints import damaged_head, joined, lying, with_hostile_configuration
from tests.hardening.ends import ends_well, tries
from tests.models import tiny

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ("unet/config.json", "vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.make(tmp_path_factory.mktemp("fuzz") / "model").folder


@pytest.fixture(scope="module")
def raw(folder):
    return (folder / "text_encoder" / "model.safetensors").read_bytes()


@tries(80, 3000)
@given(st.data())
def test_a_damaged_file_gives_finite_weights_or_one_error(folder, raw, tmp_path_factory, data):
    broken = data.draw(st.one_of(lying(raw), files.damaged(raw), damaged_head(raw)))
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
    other = with_hostile_configuration(folder, name, data, tmp_path_factory.mktemp("c"))
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
    code = ("import sys\nfrom pathlib import Path\nfrom sage.errors import ModelError\n"
            "from sage.models.weights import open_weights\nfrom sage.bench.machine import peak_memory\n"
            "at = peak_memory()\n"
            "for path in Path(sys.argv[1]).iterdir():\n"
            "    try:\n        open_weights([path])\n    except ModelError:\n        print('refused')\n"
            "print((peak_memory() - at) >> 20)")
    done = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, capture_output=True, text=True)
    *refused, grown = done.stdout.split()
    assert refused == ["refused"] * 3 and int(grown) < 100, done.stdout + done.stderr
