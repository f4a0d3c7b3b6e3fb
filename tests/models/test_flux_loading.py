"""Both layouts of FLUX.1 load to the same numbers; everything a user can get wrong is one ModelError that names it."""

import json
import shutil
import socket
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.loaders import single_file_utils
from safetensors.torch import load_file, save_file

from sage.commands import main as cli
from sage.errors import ModelError, SettingsError
from sage.models import known
from sage.models import weights as reading
from sage.models.describe import describe
from sage.models.flow import loading as flow
from sage.models.flow.model import Flux
from sage.models.flow.singlefile import names
from sage.models.flow.transformer import FluxParams
from sage.models.loading import load_model
from sage.models.sd.model import StableDiffusion
from sage.models.weights import open_weights, renamed
from sage.sampling.levels import FlowParams, Level
from tests.models import bfl, flux, oracle, tiny

SCHNELL = ("schnell", False)


@pytest.fixture(scope="module", params=(("dev", True), SCHNELL))
def model(request, tmp_path_factory):
    name, guidance = request.param
    return flux.write(tmp_path_factory.mktemp(name) / "tiny-flux", guidance)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return flux.write(tmp_path_factory.mktemp("one") / "tiny-flux")


@pytest.fixture
def broken(one, tmp_path):
    """A copy to break."""
    return Path(shutil.copytree(one.folder, tmp_path / "broken"))


def weights(folder: Path, part: str) -> Path:
    return folder / part / f"{flux.PARTS[part]}.safetensors"


def refusal(path, **options) -> str:
    """The one line that a user gets."""
    with pytest.raises(ModelError) as caught, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load_model(path, device="cpu", **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def loaded(path, **options) -> Flux:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = load_model(path, device="cpu", **options)
    assert isinstance(model, Flux)
    return model


@torch.no_grad()
def assert_same_as(oracles: flux.Tiny, model: Flux, tolerance: float = 1e-5) -> None:
    """All four networks, by what they compute."""
    g = torch.Generator().manual_seed(0)
    z, x = torch.randn(1, 16, 4, 6, generator=g), torch.rand(1, 3, 8, 12, generator=g)
    prompt = model.prompts.parse("a cat on a mat")
    text = model.embed([prompt])
    assert text.tokens.shape == (1, flux.TOKENS, 48) and text.pooled.shape == (1, 24)
    clip = model._clip_prompts.parse("a cat on a mat")
    end = clip.ids.index(model._clip_prompts.tokenizer.eos_token_id)
    guidance = torch.tensor([2.0]) if model.distilled else None
    wanted = oracle.velocity(oracles.transformer, z, torch.tensor([0.7]), text.tokens, text.pooled, guidance)
    found = model.predict(z, Level(0.7, 0.3, 0.7), model.prepare(text, 2.0))
    pairs = ((text.tokens, oracles.t5(torch.tensor([prompt.ids])).last_hidden_state),
             (text.pooled, oracles.text(torch.tensor([clip.ids])).last_hidden_state[:, end]),
             (found.velocity, wanted), (found.x0, z - 0.7 * wanted),
             (model.encode(x), (oracles.vae.encode(x).latent_dist.mean - 0.1159) * 0.3611),
             (model.decode(z), oracles.vae.decode(z / 0.3611 + 0.1159).sample))
    for ours, theirs in pairs:
        assert ((ours - theirs).norm() / theirs.norm()).item() <= tolerance


# Layouts

def test_folder(model):
    ours = loaded(model.folder)
    assert_same_as(model, ours)
    guidance = ours.distilled
    assert ours.transformer.params == replace(flux.PARAMS, guidance=guidance)
    assert (ours.name, ours.sample_size, ours.pixel_multiple, ours.prompts.max_length) == ("tiny-flux", 64, 8, 24)
    assert ours.schedule.params == FlowParams(dynamic=guidance, shift=3.0 if guidance else 1.0)
    assert not any(p.requires_grad for n in ours.networks() for p in n.parameters())
    assert not any(n.training for n in ours.networks())


def test_single_file_beside_its_companions(model, tmp_path):
    path = model.single_file(Path(shutil.copytree(model.folder, tmp_path / "all")))
    shutil.rmtree(path.parent / "transformer")
    shutil.rmtree(path.parent / "vae")
    ours = loaded(path)
    assert_same_as(model, ours)
    assert ours.schedule.params == FlowParams(dynamic=ours.distilled)
    assert ours.fingerprint() != loaded(model.folder).fingerprint()  # the side of its training is not in the file


def test_single_file_whose_companions_are_named_or_fetched(one, tmp_path, monkeypatch):
    path = one.single_file(tmp_path / "alone")
    monkeypatch.setenv("SAGE_WEIGHTS", str(tmp_path / "weights"))
    message = refusal(path)
    assert "text_encoder_2" in message and "sage fetch flux-schnell" in message
    assert_same_as(one, loaded(path, tokenizer=one.folder))
    shutil.copytree(one.folder, tmp_path / "weights" / "flux-schnell")
    assert_same_as(one, loaded(path))
    (path.parent / "ae.safetensors").unlink()  # the companion's own then serves
    assert_same_as(one, loaded(path))
    assert loaded(path).sample_size == 64
    with pytest.warns(UserWarning, match="heads are 32 wide.*4, 14, 14"):
        load_model(path, device="cpu")


def test_prefixed_single_file(one, tmp_path):
    path = one.single_file(tmp_path / "alone")
    state = load_file(path)
    path.unlink()
    save_file({f"model.diffusion_model.{key}": value for key, value in state.items()}, path)
    assert_same_as(one, loaded(path, tokenizer=one.folder))


def test_shards_and_embeddings_that_are_stored_twice(one, broken):
    for part, network in (("transformer", one.transformer), ("text_encoder_2", one.t5)):
        network.save_pretrained(broken / "sharded", max_shard_size="100KB")
        shutil.rmtree(broken / part)
        (broken / "sharded").rename(broken / part)
        assert len(list((broken / part).glob("*-of-*.safetensors"))) > 1
    (broken / "text_encoder_2" / "model.safetensors.index.json").unlink()
    save_file({**(state := {k: v.contiguous() for k, v in one.t5.state_dict().items()
                            if k != "encoder.embed_tokens.weight"}),
               "encoder.embed_tokens.weight": state["shared.weight"].clone()}, weights(broken, "text_encoder_2"))
    assert_same_as(one, loaded(broken))


def test_half_precision(one):
    half = loaded(one.folder, dtype="bfloat16")
    assert half.transformer.x_embedder.weight.dtype == half.t5.shared.weight.dtype == torch.bfloat16
    norms = [p.dtype for name, p in half.transformer.named_parameters() if "attn.norm_" in name]
    assert norms and set(norms) == {torch.float32}
    assert_same_as(one, half, tolerance=0.05)
    with half.full_precision():
        z, text = torch.ones(1, 16, 4, 4), half.embed([half.prompts.parse("a cat")])
        assert half.predict(z, Level(0.5, 0.5, 0.5), text).x0.dtype == torch.float32


def test_rows_of_fused_weights_go_where_the_oracle_s_converter_puts_them(tmp_path):
    """At full width, of which the converter knows nothing else, with one column for thousands."""
    params = FluxParams(depth=1, depth_single=1)
    with torch.device("meta"):
        shapes = bfl.transformer(oracle.flux(params).state_dict())
    g = torch.Generator().manual_seed(0)
    stored = {key: torch.randn(value.shape[0], *(1,) * (value.ndim - 1), generator=g) for key, value in shapes.items()}
    save_file(stored, tmp_path / "narrow.safetensors")
    ours = {key: of.read() for key, of in renamed(open_weights([tmp_path / "narrow.safetensors"]),
                                                  names(params)).items()}
    theirs = single_file_utils.convert_flux_transformer_checkpoint_to_diffusers(stored)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_smaller_model_with_one_text_encoder(one, broken):
    """Its tokens are the encoder's, as its pooled text is."""
    shutil.rmtree(broken / "text_encoder_2")
    assert "48 wide, the text encoder gives 24" in refusal(broken)
    narrow = oracle.shaken(oracle.flux(replace(flux.PARAMS, context_width=24)))
    shutil.rmtree(broken / "transformer")
    narrow.save_pretrained(broken / "transformer")
    ours = loaded(broken)
    text = ours.embed([ours.prompts.parse("a cat")])
    assert ours.t5 is None and text.tokens.shape == (1, 77, 24)
    assert torch.equal(text.pooled[0], text.tokens[0, len(ours.prompts.tokens(ours.prompts.parse("a cat"))) - 1])


def test_recommended_settings(one, broken):
    ours = loaded(one.folder)
    assert ours.recommends["generate/plain"] == {"steps": 28, "guidance_scale": 3.5}
    (broken / "settings.json").write_text(json.dumps({"generate/plain": {"steps": 7}}))
    assert loaded(broken).recommends == {"generate/plain": {"steps": 7}}


# What it is

def test_describe(model, tmp_path, capsys):
    facts = describe(model.folder)
    assert facts["layout"] == "diffusers folder" and facts["prediction_type"] == "flow"
    assert facts["parameters"]["transformer"] == sum(p.numel() for p in model.transformer.parameters())
    assert facts["parameters"].keys() == {"transformer", "vae", "text", "t5"} and facts["picture side"] == 64
    path = model.single_file(tmp_path / "alone")
    alone = describe(path)
    assert alone["parameters"]["transformer"] == facts["parameters"]["transformer"]
    for place in (model.folder, path):
        assert cli.main(["info", str(place)]) == 0
        assert "small flow" in capsys.readouterr().out


def test_known_names(one, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SAGE_WEIGHTS", str(tmp_path))
    for name, said in (("flux-schnell", ("33.7 GB", "Apache 2.0")),
                       ("flux-dev", ("33.7 GB", "Non-Commercial", "once its licence is accepted at",
                                     "huggingface.co/black-forest-labs/FLUX.1-dev"))):
        message = refusal(name)
        assert f"`sage fetch {name}`" in message and all(words in message for words in said)
        assert cli.main(["info", name]) == 0 and said[1] in capsys.readouterr().out
    shutil.copytree(one.folder, tmp_path / "flux-dev")
    assert loaded("black-forest-labs/FLUX.1-dev").name == "flux-dev"
    assert known.installed("flux-dev") == tmp_path / "flux-dev" and known.installed("flux-schnell") is None


# What is not whole, not supported, or too large

@pytest.mark.parametrize("file", (
    "scheduler/scheduler_config.json", "transformer/config.json", "vae/config.json", "text_encoder/config.json",
    "text_encoder_2/config.json", "tokenizer/vocab.json", "tokenizer_2/tokenizer.json",
    *(f"{part}/{base}.safetensors" for part, base in flux.PARTS.items())))
def test_missing_file_is_named(broken, file):
    (broken / file).unlink()
    assert refusal(broken) == f"{broken / file} does not exist"


@pytest.mark.parametrize("part", flux.PARTS)
def test_truncated_file(broken, part):
    path = weights(broken, part)
    path.write_bytes(path.read_bytes()[:-1])
    assert str(path) in (message := refusal(broken)) and "truncated" in message


def test_missing_unexpected_and_wrong_weights_are_named(broken):
    def change(state):
        state["strange.weight"] = state.pop("transformer_blocks.1.attn.to_q.weight")
        state["x_embedder.weight"] = torch.zeros(3, 4)
        state["proj_out.bias"] = torch.zeros(64, dtype=torch.int64)

    tiny.rewrite(weights(broken, "transformer"), change)
    message = refusal(broken)
    assert str(broken / "transformer") in message and "1 of" in message
    assert "transformer_blocks.1.attn.to_q.weight" in message and "1 unexpected (strange.weight)" in message
    assert "x_embedder.weight: [3, 4] instead of [64, 64]" in message and "proj_out.bias: I64" in message


def test_weights_that_are_not_finite(broken):
    tiny.rewrite(weights(broken, "text_encoder_2"), lambda s: s["shared.weight"][3].fill_(float("nan")))
    assert "shared.weight" in (message := refusal(broken)) and "NaN" in message


@pytest.mark.parametrize(("part", "values", "named"), (
    ("transformer", {"_class_name": "SD3Transformer2DModel"}, "_class_name"),
    ("transformer", {"patch_size": 2}, "patch_size"),
    ("transformer", {"in_channels": 384}, "Fill"),
    ("transformer", {"in_channels": 48}, "16 channels"),
    ("transformer", {"out_channels": 16}, "out_channels"),
    ("transformer", {"axes_dims_rope": [4, 14, 12]}, "axes"),
    ("transformer", {"axes_dims_rope": [5, 13, 14]}, "axes"),
    ("transformer", {"axes_dims_rope": [16, 16]}, "axes_dims_rope"),
    ("transformer", {"joint_attention_dim": 40}, "tokens 40 wide"),
    ("transformer", {"pooled_projection_dim": 40}, "pooled text 40 wide"),
    ("transformer", {"num_layers": 3}, "missing"),
    ("transformer", {"num_single_layers": 10**9}, "is not built"),
    ("transformer", {"num_attention_heads": 10**12}, "is not built"),
    ("transformer", {"num_attention_heads": 0}, "divide"),
    ("transformer", {"attention_head_dim": "128"}, "attention_head_dim"),
    ("vae", {"use_post_quant_conv": True}, "use_post_quant_conv"),
    ("vae", {"sample_size": 10**9}, "sample_size"),
    ("vae", {"latent_channels": 0}, "in_channels"),
    ("text_encoder_2", {"feed_forward_proj": "relu"}, "feed_forward_proj"),
    ("text_encoder_2", {"num_layers": 10**9}, "is not built"),
    ("text_encoder_2", {"d_kv": -1}, "divide"),
    ("text_encoder_2", {"relative_attention_max_distance": 4}, "relative_attention_max_distance"),
    ("text_encoder_2", {"vocab_size": 20}, "tokens, the text encoder 20"),
    ("scheduler", {"_class_name": "DDIMScheduler"}, "_class_name"),
    ("scheduler", {"use_karras_sigmas": True}, "use_karras_sigmas"),
    ("scheduler", {"max_image_seq_len": 256}, "max_image_seq_len"),
    ("scheduler", {"max_shift": 1e9}, "max_shift")))
def test_unsupported_features_are_named(broken, part, values, named):
    tiny.configure(broken / part / ("scheduler_config.json" if part == "scheduler" else "config.json"), **values)
    assert named in refusal(broken)


def test_damaged_tokenizer(broken):
    (broken / "tokenizer_2" / "tokenizer.json").write_text("{oops")
    assert "no readable tokenizer" in refusal(broken)


@pytest.mark.parametrize(("change", "said"), (
    (lambda s: {k: v for k, v in s.items() if k != "img_in.weight"}, "'img_in.weight' is missing"),
    (lambda s: {k: v for k, v in s.items() if k != "double_blocks.1.txt_mod.lin.bias"}, "1 of"),
    (lambda s: s | {"strange": torch.zeros(1)}, "1 unexpected (strange)"),
    (lambda s: s | {"single_blocks.0.linear1.weight": torch.zeros(449, 64)}, "4 of"),
    (lambda s: s | {"double_blocks.0.img_attn.norm.query_norm.scale": torch.zeros(0)}, "shapes that no FLUX.1"),
    (lambda s: s | {"img_in.weight": torch.zeros(64)}, "shapes that no FLUX.1"),
    (lambda s: s | {"img_in.weight": torch.zeros(64, 384)}, "Fill, Canny and Depth"),
    (lambda s: s | {"double_stream_modulation_img.lin.weight": torch.zeros(1)}, "FLUX.2"),
    (lambda s: s | {"model.diffusion_model.img_in.weight": torch.zeros(1)}, "holds weights twice"),
    (lambda s: {"transformer_blocks.0.x": torch.zeros(1)}, "give the folder")))
def test_single_files_that_are_something_else(one, tmp_path, change, said):
    path = one.single_file(tmp_path / "alone")
    state = change(load_file(path))
    path.unlink()
    save_file(state, path)
    assert said in refusal(path, tokenizer=one.folder)


def test_an_autoencoder_of_another_kind(one, tmp_path):
    path = one.single_file(tmp_path / "alone")
    save_file({"x": torch.zeros(1)}, path.with_name("ae.safetensors"))
    assert "is no autoencoder of FLUX.1" in refusal(path, tokenizer=one.folder)


def test_a_flow_has_one_prediction_type(one):
    with pytest.raises(SettingsError, match="predicts a flow"):
        load_model(one.folder, device="cpu", prediction_type="epsilon")


def test_a_model_larger_than_memory_is_refused_before_it_is_read(one, monkeypatch):
    opened = flow.open_folder(one.folder)
    need = sum(part.bytes(torch.float32) for part in opened.parts.values())
    assert need == sum(p.numel() * 4 for n in loaded(one.folder).networks() for p in n.parameters())
    monkeypatch.setattr(reading, "fill", lambda *args: pytest.fail("weights were read"))
    monkeypatch.setattr(reading, "free_memory", lambda device: need - 1)
    message = refusal(one.folder)
    assert "give dtype bfloat16" in message and "0.0 GB are free on cpu" in message
    monkeypatch.setattr(reading, "free_memory", lambda device: need // 2 - 1)
    message = refusal(one.folder)
    assert "bfloat16" not in message and "more memory" in message


def test_loading_never_touches_the_network(one, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was touched")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    loaded(one.folder)


def test_folders_of_stable_diffusion_stay_what_they_are(tmp_path):
    model = load_model(tiny.make(tmp_path / "tiny").folder, device="cpu")
    assert isinstance(model, StableDiffusion) and not model.distilled and model.family == "sd"
