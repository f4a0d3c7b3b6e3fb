"""The same of Stable Diffusion XL: configurations and single files that are damaged or lie."""

import json
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from sage.errors import ModelError
from sage.models import loading
from tests.hardening import files
from tests.hardening.checkpoints import damaged_head, ends_as_a_model, lying, with_hostile_configuration
from tests.hardening.ends import ends_well, tries
from tests.models import tiny

CONFIGS = ("unet/config.json", "vae/config.json", "text_encoder_2/config.json", "scheduler/scheduler_config.json",
           "tokenizer_2/tokenizer_config.json", "model_index.json")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return tiny.make(tmp_path_factory.mktemp("fuzz") / "model", "XL")


@pytest.fixture(scope="module")
def single(made, tmp_path_factory):
    return made.single_file(tmp_path_factory.mktemp("single") / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def lora(made):
    """A file of kohya's for one layer of the UNet and one of a text encoder."""
    g, state = torch.Generator().manual_seed(0), {}
    for name, module in (("lora_unet_mid_block_attentions_0_proj_in", made.unet.mid_block.attentions[0].proj_in),
                         ("lora_te1_text_model_encoder_layers_0_mlp_fc1", torch.nn.Linear(64, 128))):
        out, into = module.weight.shape
        state |= {f"{name}.lora_down.weight": torch.randn(2, into, generator=g), f"{name}.alpha": torch.tensor(1.0),
                  f"{name}.lora_up.weight": torch.randn(out, 2, generator=g)}
    return save(state)


@tries(15, 400)
@given(st.sampled_from(CONFIGS), st.data())
def test_a_hostile_configuration_gives_a_model_that_can_edit_or_one_error(made, tmp_path_factory, name, data):
    other = with_hostile_configuration(made.folder, name, data, tmp_path_factory.mktemp("c"))
    ends_as_a_model("configurations of XL", other)


@tries(15, 1000)
@given(st.data())
def test_a_damaged_single_file_gives_a_model_that_can_edit_or_one_error(made, single, tmp_path_factory, data):
    broken = data.draw(st.one_of(lying(single), damaged_head(single)))
    path = tmp_path_factory.mktemp("w") / "model.safetensors"
    path.write_bytes(broken)
    ends_as_a_model("single files of XL", path, tokenizer=made.folder)


LIARS = {"depths": '{"transformer_layers_per_block": [1, 1, 1000000000]}',
         "sizes": '{"addition_time_embed_dim": 1e308}',
         "added": '{"addition_embed_type": "text_time", "projection_class_embeddings_input_dim": 99999999999999}',
         "kind": '{"addition_embed_type": ["text_time"]}'}


@pytest.mark.parametrize("name", LIARS)
def test_no_configuration_takes_time_or_memory(made, tmp_path, name):
    other = shutil.copytree(made.folder, tmp_path / "model")
    honest = json.loads((other / "unet" / "config.json").read_text())
    (other / "unet" / "config.json").write_text(json.dumps(honest | json.loads(LIARS[name])))
    assert ends_well("configurations of XL, absurd", lambda: loading.load_model(other, device="cpu"),
                     ModelError) is None


@tries(15, 1000)
@given(st.data())
def test_a_damaged_lora_is_merged_or_refused_in_one_line(made, lora, tmp_path_factory, data):
    broken = data.draw(st.one_of(lying(lora), files.damaged(lora), damaged_head(lora)))
    path = tmp_path_factory.mktemp("l") / "style.safetensors"
    path.write_bytes(broken)
    model = ends_well("LoRA files", lambda: loading.load_model(made.folder, device="cpu", lora=path), ModelError)
    assert model is None or all(p.isfinite().all() for network in model.networks() for p in network.parameters())
