"""The same of FLUX.1: configurations and weights that are damaged or lie."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sage
from sage.errors import ModelError, NumericsError, SettingsError
from sage.models import loading
from sage.models.describe import describe
from tests import small
from tests.hardening import files
from tests.hardening.ends import ends_well, tries
from tests.hardening.test_checkpoints_fuzz import lying
from tests.models import flux

CONFIGS = ("transformer/config.json", "vae/config.json", "text_encoder/config.json", "text_encoder_2/config.json",
           "scheduler/scheduler_config.json", "tokenizer_2/tokenizer_config.json", "settings.json")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    made = flux.write(tmp_path_factory.mktemp("fuzz") / "model")
    (made.folder / "settings.json").write_text(json.dumps({"plain": {"steps": 3}}))
    return made


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


@tries(30, 400)
@given(st.sampled_from(CONFIGS), st.data())
def test_a_hostile_configuration_gives_a_model_that_can_edit_or_one_error(tiny, tmp_path_factory, name, data):
    honest = (tiny.folder / name).read_text()
    text = data.draw(st.one_of(files.hostile_json(json.loads(honest)), files.damaged(honest.encode()).map(
        lambda raw: raw.decode(errors="replace"))))
    other = tmp_path_factory.mktemp("c") / "model"
    shutil.copytree(tiny.folder, other, copy_function=lambda a, b: Path(b).symlink_to(Path(a).resolve()))
    (other / name).unlink()
    (other / name).write_text(text, errors="surrogatepass")
    ends_as_a_model("configurations of FLUX.1", other)


@tries(30, 1000)
@given(st.sampled_from(("flux1-tiny", "ae")), st.data())
def test_a_damaged_single_file_gives_a_model_that_can_edit_or_one_error(tiny, tmp_path_factory, name, data):
    path = tiny.single_file(tmp_path_factory.mktemp("w") / "files")
    raw = path.with_name(f"{name}.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    broken = data.draw(st.one_of(lying(raw), files.damaged(raw), files.damaged(raw[:length]).map(
        lambda head: head + raw[length:])))
    path.with_name(f"{name}.safetensors").write_bytes(broken)
    ends_as_a_model("single files of FLUX.1", path, tokenizer=tiny.folder)


LIARS = {"numbers": '{"in_channels": ' + "9" * 5000 + "}", "deep": '{"a":' * 100_000, "text": "\ud800",
         "layers": '{"num_layers": 1000000000}', "wide": '{"attention_head_dim": 1000000000000000000}',
         "tokens": '{"joint_attention_dim": 1000000000000000000}', "axes": '{"axes_dims_rope": [2, 4, 1e308]}'}


@pytest.mark.parametrize("name", LIARS)
def test_no_configuration_takes_time_or_memory(tiny, tmp_path, name):
    other = shutil.copytree(tiny.folder, tmp_path / "model")
    (other / "transformer" / "config.json").write_text(LIARS[name], errors="surrogatepass")
    assert ends_well("configurations of FLUX.1, absurd", lambda: loading.load_model(other, device="cpu"),
                     ModelError) is None
