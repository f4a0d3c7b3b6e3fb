"""The same of FLUX.1: configurations and weights that are damaged or lie."""

import json
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage.errors import ModelError, PromptError
from sage.models import loading
from sage.models.flow.loading import load_t5_tokenizer
from sage.prompts.tokens import Prompts
from tests.hardening import files
from tests.hardening.checkpoints import damaged_head, ends_as_a_model, lying, with_hostile_configuration
from tests.hardening.ends import ends_well, tries
from tests.hardening.test_prompts_fuzz import PROMPTS
from tests.models import flux

CONFIGS = ("transformer/config.json", "vae/config.json", "text_encoder/config.json", "text_encoder_2/config.json",
           "scheduler/scheduler_config.json", "tokenizer_2/tokenizer_config.json", "settings.json")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    made = flux.write(tmp_path_factory.mktemp("fuzz") / "model")
    (made.folder / "settings.json").write_text(json.dumps({"plain": {"steps": 3}}))
    return made


@tries(30, 400)
@given(st.sampled_from(CONFIGS), st.data())
def test_a_hostile_configuration_gives_a_model_that_can_edit_or_one_error(tiny, tmp_path_factory, name, data):
    other = with_hostile_configuration(tiny.folder, name, data, tmp_path_factory.mktemp("c"))
    ends_as_a_model("configurations of FLUX.1", other)


@tries(30, 1000)
@given(st.sampled_from(("flux1-tiny", "ae")), st.data())
def test_a_damaged_single_file_gives_a_model_that_can_edit_or_one_error(tiny, tmp_path_factory, name, data):
    path = tiny.single_file(tmp_path_factory.mktemp("w") / "files")
    raw = path.with_name(f"{name}.safetensors").read_bytes()
    broken = data.draw(st.one_of(lying(raw), files.damaged(raw), damaged_head(raw)))
    path.with_name(f"{name}.safetensors").write_bytes(broken)
    ends_as_a_model("single files of FLUX.1", path, tokenizer=tiny.folder)


@tries(20, 1500)
@given(st.sampled_from(("tokenizer.json", "tokenizer.json", "tokenizer_config.json")), st.data())
def test_any_tokenizer_of_t5_gives_ids_in_range_or_one_error(tiny, tmp_path_factory, name, data):
    other = tmp_path_factory.mktemp("t") / "tokenizer_2"
    shutil.copytree(tiny.folder / "tokenizer_2", other)
    raw = (other / name).read_bytes()
    honest = json.loads(raw)
    if name == "tokenizer.json" and data.draw(st.booleans()):
        part = data.draw(st.sampled_from([key for key, value in honest.items() if isinstance(value, dict)]))
        text = json.dumps(honest | {part: "HERE"}).replace('"HERE"', data.draw(files.hostile_json(honest[part])))
    else:
        text = data.draw(st.one_of(files.hostile_json(honest), files.damaged(raw).map(
            lambda raw: raw.decode(errors="replace"))))
    (other / name).write_text(text, errors="surrogatepass")
    made = ends_well("tokenizers of T5", lambda: load_t5_tokenizer(other, flux.T5, 512), ModelError)
    if made is not None:
        prompts = Prompts(*made)
        for text in ("a cat on a mat", data.draw(PROMPTS)):
            prompt = ends_well("tokenizers of T5, prompts", lambda text=text: prompts.parse(text, True), PromptError)
            assert prompt is None or len(prompt.ids) == made[1] and all(0 <= i < flux.T5.vocabulary for i in prompt.ids)


def test_a_token_of_t5_beyond_its_encoder_is_refused(tiny, tmp_path):
    """Of few tokens one can have any number, which would be looked up at the first prompt that has it."""
    words = {"<unk>": 0, "<pad>": 1, "</s>": 2, "a": flux.T5.vocabulary}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": {
        "type": "BPE", "vocab": words, "merges": [], "unk_token": "<unk>"}}))
    with pytest.raises(ModelError, match=f"has {flux.T5.vocabulary + 1} tokens, the text encoder"):
        load_t5_tokenizer(tmp_path, flux.T5, 512)
    (tmp_path / "tokenizer.json").write_bytes(b" " * (2**23 + 1))
    with pytest.raises(ModelError, match="more than 8 MB"):
        load_t5_tokenizer(tmp_path, flux.T5, 512)


LIARS = {"numbers": '{"in_channels": ' + "9" * 5000 + "}", "deep": '{"a":' * 100_000, "text": "\ud800",
         "layers": '{"num_layers": 1000000000}', "wide": '{"attention_head_dim": 1000000000000000000}',
         "tokens": '{"joint_attention_dim": 1000000000000000000}', "axes": '{"axes_dims_rope": [2, 4, 1e308]}'}


@pytest.mark.parametrize("name", LIARS)
def test_no_configuration_takes_time_or_memory(tiny, tmp_path, name):
    other = shutil.copytree(tiny.folder, tmp_path / "model")
    (other / "transformer" / "config.json").write_text(LIARS[name], errors="surrogatepass")
    assert ends_well("configurations of FLUX.1, absurd", lambda: loading.load_model(other, device="cpu"),
                     ModelError) is None
