"""Every layout loads to the same numbers; everything a user can get wrong is one ModelError that names it."""

import json
import os
import shutil
import socket
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers.loaders import single_file_utils
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from sage.errors import ModelError, SettingsError
from sage.models import known, loading
from sage.models.backbone import Text
from sage.models.describe import describe
from sage.models.folders import load_tokenizer
from sage.models.sd.model import StableDiffusion
from sage.models.sd.singlefile import take_apart
from sage.models.weights import open_weights
from sage.sampling.levels import Level, ScheduleParams
from tests.models import oracle, tiny

CPU = torch.device("cpu")
FP16 = ".fp16"


@pytest.fixture(scope="module", params=("1.x", "2.x"))
def model(request, tmp_path_factory):
    return tiny.make(tmp_path_factory.mktemp(request.param) / "tiny", request.param,
                     "epsilon" if request.param == "1.x" else "v_prediction")


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return tiny.make(tmp_path_factory.mktemp("one") / "tiny")


@pytest.fixture
def broken(one, tmp_path):
    """A copy to break."""
    return Path(shutil.copytree(one.folder, tmp_path / "broken"))


def load(path, **options) -> SimpleNamespace:
    return SimpleNamespace(**loading._load_parts(path, device="cpu", **options))


def refusal(path, **options) -> str:
    """The one line that a user gets."""
    with pytest.raises(ModelError) as caught:
        load(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@torch.no_grad()
def assert_same_as(oracles, loaded, tolerance: float = 1e-5) -> None:
    """All three networks, by what they compute: wrong heads, activations or scales would show."""
    g = torch.Generator().manual_seed(0)
    z, x = torch.randn(1, 4, 4, 6, generator=g), torch.rand(1, 3, 8, 12, generator=g)
    ids = torch.randint(0, 50, (1, 9), generator=g)
    words = oracles.text(ids).last_hidden_state
    for ours, theirs in ((loaded.text(ids), words),
                         (loaded.unet(z, 500, words), oracles.unet(z, 500, encoder_hidden_states=words).sample),
                         (loaded.vae.encode(x), oracles.vae.encode(x).latent_dist.mean * 0.18215)):
        assert ((ours.float() - theirs).norm() / theirs.norm()).item() <= tolerance


# Layouts

def test_folder(model):
    loaded = load(model.folder)
    assert_same_as(model, loaded)
    assert loaded.name == "tiny" and loaded.sample_size == 32 and loaded.schedule == ScheduleParams()
    assert loaded.prediction_type == {"1.x": "epsilon", "2.x": "v_prediction"}[model.family]
    assert loaded.unet.params == tiny.UNETS[model.family]
    assert not any(p.requires_grad for n in (loaded.unet, loaded.vae, loaded.text) for p in n.parameters())
    assert not any(n.training for n in (loaded.unet, loaded.vae, loaded.text))


@pytest.fixture
def borrower(one, tmp_path):
    """A folder whose autoencoder, text encoder and tokenizer are those of `one`, which lies beside it."""
    shutil.copytree(one.folder, tmp_path / "lender")
    folder = tmp_path / "borrower"
    folder.mkdir()
    for part in ("unet", "scheduler"):
        shutil.copytree(one.folder / part, folder / part)
    (folder / "shared.json").write_text(json.dumps(dict.fromkeys(("vae", "text_encoder", "tokenizer"), "lender")))
    return folder


def test_a_folder_takes_parts_of_another_beside_it(one, borrower, tmp_path, monkeypatch):
    assert_same_as(one, load(borrower))
    whole, ours = describe(one.folder), describe(borrower)
    assert ours["parameters"] == whole["parameters"] and ours["bytes"] == whole["bytes"]
    (tmp_path / "link").symlink_to(borrower)
    monkeypatch.chdir(borrower)
    for path in (".", tmp_path / "link"):  # beside it is beside where it lies
        assert_same_as(one, load(path))
    shutil.copytree(one.folder / "vae", borrower / "vae")  # its own comes first
    config = json.loads((borrower / "vae" / "config.json").read_text())
    (borrower / "vae" / "config.json").write_text(json.dumps(config | {"scaling_factor": 0.25}))
    assert load(borrower).vae.params.scaling == 0.25


@pytest.mark.parametrize("named, said", [
    ("gone", "vae is that of gone, which has to lie beside borrower, and "), ("", 'vae is "", which is no name of a '),
    ("..", "which is no name"), ("../lender", "which is no name"), ("/tmp", "which is no name"),
    ("a\nb", "which is no name"), (7, "where str is expected"), ("x" * 5000, "")])
def test_a_folder_that_shares_with_none_is_refused(borrower, named, said):
    (borrower / "shared.json").write_text(json.dumps({"vae": named, "text_encoder": "lender", "tokenizer": "lender"}))
    assert said in refusal(borrower) and len(refusal(borrower)) <= 1000


def test_a_pipe_in_the_place_of_what_says_it_is_not_waited_for(borrower):
    (borrower / "shared.json").unlink()
    os.mkfifo(borrower / "shared.json")
    assert "shared.json" in refusal(borrower)


@pytest.mark.parametrize("dtype", (None, "bfloat16"))
def test_load_model(model, dtype):
    loaded = loading.load_model(model.folder, device="cpu", dtype=dtype)
    assert isinstance(loaded, StableDiffusion) and loaded.dtype == (torch.bfloat16 if dtype else torch.float32)
    z = torch.zeros(1, 4, 4, 4)
    p = loaded.predict(z, Level.of(500, 0.5), Text(torch.zeros(1, 77, 64)))
    x0, eps = p.x0, p.eps
    assert x0.shape == eps.shape == z.shape and x0.dtype == torch.float32


def test_prediction_type_can_be_overridden(one):
    assert load(one.folder, prediction_type="v_prediction").prediction_type == "v_prediction"
    with pytest.raises(SettingsError, match="prediction_type"):
        load(one.folder, prediction_type="sample")


def test_old_names_and_text_without_its_prefix(one, broken):
    def old(state):
        for key in list(state):
            for new, past in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
                if f"attentions.0.{new}." in key:
                    value = state.pop(key)
                    state[key.replace(new, past)] = value[:, :, None, None] if key.endswith("weight") else value

    tiny.rewrite(tiny.weights(broken, "vae"), old)
    one.text.save_pretrained(broken / "text_encoder")  # as transformers 5 names them
    tiny.rewrite(tiny.weights(broken, "text_encoder"),
                 lambda s: s.update({"text_model.embeddings.position_ids": torch.arange(77)[None]}))
    assert_same_as(one, load(broken))


def test_shards(one, broken):
    one.unet.save_pretrained(broken / "sharded", max_shard_size="200KB")
    shutil.rmtree(broken / "unet")
    (broken / "sharded").rename(broken / "unet")
    assert len(list((broken / "unet").glob("*-of-*.safetensors"))) > 2
    assert_same_as(one, load(broken))


def test_half_precision_files_are_taken_for_half_precision_only(one, broken):
    for part in tiny.parts(broken):
        state = {key: value.half() for key, value in load_file(tiny.weights(broken, part)).items()}
        save_file(state, tiny.weights(broken, part, FP16))
    tiny.rewrite(tiny.weights(broken, "unet", FP16), lambda s: s["conv_out.bias"].fill_(7))
    assert load(broken).unet.conv_out.bias[0] != 7
    half = load(broken, dtype="float16")
    assert half.unet.conv_out.bias[0] == 7
    assert half.unet.conv_out.bias.dtype == half.text.text_model.embeddings.token_embedding.weight.dtype == torch.half
    norms = [m.weight.dtype for n in (half.unet, half.vae, half.text) for m in n.modules()
             if isinstance(m, (torch.nn.GroupNorm, torch.nn.LayerNorm))]
    assert set(norms) == {torch.float32}
    for part in tiny.parts(broken):  # and where only one kind is there, it is used
        tiny.weights(broken, part).unlink()
    assert load(broken, dtype=torch.float32).unet.conv_out.bias[0] == 7


def test_single_file(model, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = load(model.single_file(tmp_path / "model.safetensors"), tokenizer=model.folder / "tokenizer")
    assert_same_as(model, loaded)
    assert loaded.name == "model" and loaded.schedule == ScheduleParams()
    pad = {"1.x": "<|endoftext|>", "2.x": "!"}[model.family]
    assert loaded.tokenizer.pad_token_id == json.loads((model.folder / "tokenizer" / "vocab.json").read_text())[pad]


def test_single_file_names_agree_with_the_oracles_converter(model, tmp_path):
    path = model.single_file(tmp_path / "model.safetensors")
    file = take_apart(path, open_weights([path]))
    theirs = single_file_utils.convert_ldm_unet_checkpoint(load_file(path), {**model.unet.config})
    assert theirs.keys() == file.tensors["unet"].keys()
    assert all(torch.equal(theirs[key], stored.read()) for key, stored in file.tensors["unet"].items())
    theirs = single_file_utils.convert_ldm_vae_checkpoint(load_file(path), {**model.vae.config})
    assert theirs.keys() == file.tensors["vae"].keys()
    if model.family == "2.x":
        theirs = single_file_utils.convert_open_clip_checkpoint(
            CLIPTextModel(model.text.config), {k: v for k, v in load_file(path).items() if "resblocks.2." not in k})
        ours = {key: stored.read() for key, stored in file.tensors["text"].items()}
        theirs = {f"text_model.{k.removeprefix('text_model.')}": v for k, v in theirs.items() if "text_proj" not in k}
        assert theirs.keys() == ours.keys() and all(torch.equal(theirs[key], ours[key]) for key in ours)


@pytest.mark.parametrize(("name", "metadata", "prediction"), (
    ("v2-1_512-ema-pruned", None, "epsilon"), ("v2-1_768-ema-pruned", None, "v_prediction"),
    ("mine", {"modelspec.prediction_type": "v"}, "v_prediction"),
    ("768", {"modelspec.prediction_type": "epsilon"}, "epsilon")))
def test_prediction_type_of_a_single_file(tmp_path, name, metadata, prediction):
    model = tiny.make(tmp_path / "tiny", "2.x")
    path = model.single_file(tmp_path / f"{name}.safetensors", metadata)
    with pytest.warns(UserWarning, match=f"{name}.*prediction_type overrides"):
        assert load(path, tokenizer=model.folder).prediction_type == prediction
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the user has spoken, nothing more to say
        assert load(path, tokenizer=model.folder, prediction_type="epsilon").prediction_type == "epsilon"


def test_tokenizer_of_a_single_file_comes_from_a_fetched_model(one, tmp_path, monkeypatch):
    monkeypatch.setenv("SAGE_WEIGHTS", str(tmp_path))
    path = one.single_file(tmp_path / "model.safetensors")
    message = refusal(path)
    assert "brings no tokenizer" in message and "vocab.json" in message and "sage fetch sd-1.4" in message
    shutil.copytree(one.folder, tmp_path / "sd-2.1")
    assert load(path).tokenizer("cat").input_ids[1] == one_tokenizer(one)("cat").input_ids[1]


def one_tokenizer(one):
    return load_tokenizer(one.folder, tiny.TEXTS["1.x"])


# Names

def test_known_names(one, tmp_path, monkeypatch):
    monkeypatch.setenv("SAGE_WEIGHTS", str(tmp_path))
    for name in ("sd-1.5", "runwayml/stable-diffusion-v1-5", "stable-diffusion-v1-5/stable-diffusion-v1-5"):
        message = refusal(name)
        assert "`sage fetch sd-1.5`" in message and "2.1 GB" in message and "RAIL-M" in message
    shutil.copytree(one.folder, tmp_path / "sd-1.5")
    assert load("runwayml/stable-diffusion-v1-5").name == "sd-1.5"


def test_unknown_name_lists_the_known_ones():
    message = refusal("sd-3")
    assert "'sd-3'" in message and all(name in message for name in known.KNOWN)
    assert refusal("stillife").endswith("no folder or file either: did you mean stilllife?")


def test_weights_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("SAGE_WEIGHTS", str(tmp_path))
    assert known.weights_dir() == tmp_path
    monkeypatch.delenv("SAGE_WEIGHTS")
    monkeypatch.setattr(known, "CHECKOUT", tmp_path)
    (tmp_path / "weights").mkdir()
    assert known.weights_dir() == tmp_path / "weights"
    monkeypatch.setattr(known, "CHECKOUT", tmp_path / "site-packages")
    assert known.weights_dir() == Path("weights")


def test_bundled_model_is_found_beside_or_inside_the_package(one, tmp_path, monkeypatch):
    monkeypatch.setenv("SAGE_WEIGHTS", str(tmp_path / "elsewhere"))
    monkeypatch.setattr(known, "CHECKOUT", tmp_path / "checkout")
    monkeypatch.setattr(known, "PACKAGE", tmp_path / "checkout" / "sage")
    assert "git checkout weights/stilllife" in refusal("stilllife")
    for place in (known.PACKAGE, known.CHECKOUT):
        folder = shutil.copytree(one.folder, place / "weights" / "stilllife")
        assert known.find_model("stilllife") == ("stilllife", folder)


def test_revisions_are_commits():
    assert all(len(m.revision) == 40 and m.licence_url for m in known.KNOWN.values() if m.repo)


# Offline

def test_loading_never_touches_the_network(model, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was touched")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    load(model.folder)
    load(model.single_file(tmp_path / "m.safetensors"), tokenizer=model.folder, prediction_type="epsilon")


# What is not whole

@pytest.mark.parametrize("file", (
    "scheduler/scheduler_config.json", "unet/config.json", "vae/config.json", "text_encoder/config.json",
    "tokenizer/vocab.json", "tokenizer/merges.txt", "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"))
def test_missing_file_is_named(broken, file):
    (broken / file).unlink()
    assert refusal(broken) == f"{broken / file} does not exist"


def test_missing_paths(tmp_path):
    assert refusal(tmp_path / "no.safetensors") == f"{tmp_path / 'no.safetensors'} does not exist"
    assert refusal(tmp_path / "nowhere") == f"{tmp_path / 'nowhere'} does not exist"
    assert refusal(tmp_path) == f"{tmp_path} is no model: a diffusers folder has in it a folder unet or transformer"
    assert "missing" in refusal(tmp_path)  # a folder that holds nothing
    (tmp_path / "notes.txt").write_text("hello")
    assert "neither a diffusers folder nor" in refusal(tmp_path / "notes.txt")


@pytest.mark.parametrize("keep", (0, 4, 1000, -1))
def test_truncated_file(broken, keep):
    path = tiny.weights(broken, "unet")
    path.write_bytes(path.read_bytes()[:keep])
    message = refusal(broken)
    assert str(path) in message and "truncated" in message


def test_damaged_header(one, broken, tmp_path):
    path = tiny.weights(broken, "vae")
    data = bytearray(path.read_bytes())
    data[20:24] = b"\0\0\0\0"
    path.write_bytes(bytes(data))
    assert "no safetensors file" in refusal(broken)
    page = tmp_path / "page.safetensors"
    page.write_text("<!doctype html><title>Sign in</title>" * 9)
    assert "no safetensors file" in refusal(page)


def test_missing_and_unexpected_weights_are_named_and_counted(broken):
    def change(state):
        for key in [k for k in state if k.startswith("mid_block.resnets.0")]:
            state[f"strange.{key}"] = state.pop(key)
        state["conv_in.weight"] = torch.zeros(1, 2, 3, 3)
        state["conv_out.bias"] = torch.zeros(4, dtype=torch.int64)

    tiny.rewrite(tiny.weights(broken, "unet"), change)
    message = refusal(broken)
    assert str(broken / "unet") in message
    assert "10 of" in message and "mid_block.resnets.0.conv1.bias" in message and "and 7 more" in message
    assert "10 unexpected (strange.mid_block" in message
    assert "conv_in.weight: [1, 2, 3, 3] instead of [32, 4, 3, 3]" in message
    assert "conv_out.bias: I64" in message


@pytest.mark.parametrize("value", (float("nan"), float("inf"), -float("inf")))
def test_weights_that_are_not_finite(broken, value):
    tiny.rewrite(tiny.weights(broken, "vae"), lambda s: s["decoder.conv_in.weight"].view(-1)[5:6].fill_(value))
    message = refusal(broken)
    assert "decoder.conv_in.weight" in message and "NaN" in message


def test_weights_too_large_for_half_precision(broken):
    tiny.rewrite(tiny.weights(broken, "vae"), lambda s: s["decoder.conv_in.bias"].fill_(1e5))
    assert load(broken).vae.decoder.conv_in.bias[0] == 1e5
    assert "load with dtype float32" in refusal(broken, dtype="float16")


class Bomb:
    """A pickle that writes a file when it is opened."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ("m.ckpt", "m.pt", "m.pth", "m.bin", "M.CKPT"))
def test_pickles_are_refused_and_never_opened(tmp_path, name):
    torch.save({"state_dict": Bomb(tmp_path / "boom")}, tmp_path / name)
    message = refusal(tmp_path / name)
    assert "pickle" in message and "not opened" in message and not (tmp_path / "boom").exists()


def test_folder_of_pickles(broken):
    torch.save({"x": Bomb(broken / "boom")}, broken / "unet" / "diffusion_pytorch_model.bin")
    load(broken)  # it lies beside the safetensors file: not our business
    tiny.weights(broken, "unet").unlink()
    assert "diffusion_pytorch_model.bin is a pickle" in refusal(broken)
    assert not (broken / "boom").exists()


@pytest.mark.parametrize("name", ("../vae/diffusion_pytorch_model.safetensors", "/etc/x.safetensors",
                                  "..\\x.safetensors", "x.bin", 3))
def test_index_must_name_files_beside_it(broken, name):
    tiny.weights(broken, "unet").unlink()
    (broken / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"conv_in.weight": name}}))
    assert "beside it" in refusal(broken)


def test_missing_shard(broken):
    tiny.weights(broken, "unet").unlink()
    (broken / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"conv_in.weight": "a.safetensors"}}))
    assert refusal(broken) == f"{broken / 'unet' / 'a.safetensors'} does not exist"


# What is not supported

@pytest.mark.parametrize(("part", "values", "named"), (
    ("unet", {"class_embed_type": "timestep"}, "class_embed_type"),
    ("unet", {"addition_embed_type": "text_time"}, "projection_class_embeddings_input_dim"),
    ("unet", {"dual_cross_attention": True}, "dual_cross_attention"),
    ("unet", {"act_fn": "gelu"}, "act_fn"),
    ("unet", {"only_cross_attention": [True, False]}, "only_cross_attention"),
    ("unet", {"down_block_types": ["DownBlock2D", "AttnDownBlock2D"]}, "AttnDownBlock2D"),
    ("unet", {"up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"]}, "up_block_types"),
    ("unet", {"layers_per_block": [1, 2]}, "layers_per_block"),
    ("unet", {"layers_per_block": "2"}, "layers_per_block"),
    ("unet", {"block_out_channels": [32, 65]}, "divide"),
    ("unet", {"attention_head_dim": 7}, "divide"),
    ("unet", {"in_channels": 9}, "inpainting"),
    ("unet", {"cross_attention_dim": 80}, "80 wide"),
    ("vae", {"act_fn": "mish"}, "act_fn"),
    ("vae", {"use_quant_conv": False}, "use_quant_conv"),
    ("vae", {"latents_mean": [0.1]}, "latents_mean"),
    ("vae", {"down_block_types": ["AttnDownEncoderBlock2D"] * 2}, "down_block_types"),
    ("text_encoder", {"hidden_act": "gelu_new"}, "hidden_act"),
    ("text_encoder", {"layer_norm_eps": 1e-6}, "layer_norm_eps"),
    ("scheduler", {"prediction_type": "sample"}, "prediction_type"),
    ("scheduler", {"beta_schedule": "squaredcos_cap_v2"}, "beta_schedule")))
def test_unsupported_features_are_named(broken, part, values, named):
    path = broken / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    tiny.configure(path, **values)
    assert named in refusal(broken)


def test_keys_that_old_configs_lack(one, broken):
    tiny.configure(broken / "unet" / "config.json", upcast_attention=None, use_linear_projection=None, act_fn=None,
                   num_attention_heads=None, transformer_layers_per_block=None, norm_num_groups=None)
    tiny.configure(broken / "vae" / "config.json", scaling_factor=None, norm_num_groups=None, force_upcast=None)
    tiny.configure(broken / "scheduler" / "scheduler_config.json", prediction_type=None, steps_offset=None,
                   beta_start=None, beta_end=None, beta_schedule=None, set_alpha_to_one=None)
    loaded = load(broken)
    assert loaded.prediction_type == "epsilon" and loaded.schedule == ScheduleParams()
    assert_same_as(one, loaded)


def test_schedule_is_read(broken):
    tiny.configure(broken / "scheduler" / "scheduler_config.json", num_train_timesteps=500, beta_start=1e-4,
                   beta_end=2e-2, beta_schedule="linear", steps_offset=0, set_alpha_to_one=True,
                   rescale_betas_zero_snr=True)
    assert load(broken).schedule == ScheduleParams(500, 1e-4, 2e-2, "linear", 0, True, True)


def test_config_that_is_no_json(broken):
    (broken / "vae" / "config.json").write_text("{oops")
    assert "config.json is no readable JSON" in refusal(broken)
    (broken / "vae" / "config.json").write_text("[]")
    assert "JSON object" in refusal(broken)


def test_tokenizer_errors(broken):
    tiny.configure(broken / "tokenizer" / "vocab.json", **{f"x{i}": 100 + i for i in range(600)})
    assert "has the number" in (message := refusal(broken)) and "encoder has 600 tokens" in message
    (broken / "tokenizer" / "vocab.json").write_text("{oops")
    assert "vocab.json is no readable JSON" in refusal(broken)


@pytest.mark.parametrize(("change", "said"), (
    (lambda s: {k: v for k, v in s.items() if not k.startswith("first_stage")}, "holds no autoencoder"),
    (lambda s: {k: v for k, v in s.items() if not k.startswith("cond_stage")}, "no text encoder"),
    (lambda s: {k: v for k, v in s.items() if "out.2.weight" not in k}, "'out.2.weight' is missing"),
    (lambda s: {k: v for k, v in s.items() if "input_blocks.1.0.in_layers.0" not in k}, "2 of"),
    (lambda s: s | {"control_model.x": torch.zeros(1)}, "unexpected (control_model.x)"),
    (lambda s: s | {"model.diffusion_model.label_emb.0.0.weight": torch.zeros(1)},
     "unexpected (model.diffusion_model.label_emb.0.0.weight)"),
    (lambda s: s | {"conditioner.embedders.0.model.x": torch.zeros(1)}, "refiner of Stable Diffusion XL"),
    (lambda s: s | {"conditioner.embedders.0.transformer.x": torch.zeros(1)}, "holds clip, clip of XL; exactly one"),
    (lambda s: {"lora_unet_x.alpha": torch.zeros(1)}, "no Stable Diffusion checkpoint"),
    (lambda s: {"down_blocks.0.x": torch.zeros(1)}, "give the folder")))
def test_single_files_that_are_something_else(one, tmp_path, change, said):
    path = one.single_file(tmp_path / "m.safetensors")
    state = change(load_file(path))
    path.unlink()
    save_file(state, path)
    assert said in refusal(path, tokenizer=one.folder)


def test_device_and_dtype_errors(one):
    with pytest.raises(SettingsError, match="dtype"):
        load(one.folder, dtype="int8")
    with pytest.raises(SettingsError, match="'abacus'"):
        loading._load_parts(one.folder, device="abacus")
    if not torch.cuda.is_available():
        with pytest.raises(SettingsError, match="'cuda'"):
            loading._load_parts(one.folder, device="cuda")


# Memory

PEAK = """
import sys, torch
from sage.models.loading import _load_parts

def memory(field):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(field))

_load_parts(sys.argv[2], device="cpu")  # whatever the libraries allocate once
torch.ones(1)
base = memory("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
model = _load_parts(sys.argv[1], device="cpu", dtype=sys.argv[3])
loaded = sum(p.numel() * p.element_size() for n in (model["unet"], model["vae"], model["text"]) for p in n.parameters())
print((memory("VmHWM") - base) / loaded, loaded)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux's /proc")
@pytest.mark.parametrize(("stored", "dtype"), ((torch.float16, "float32"), pytest.param(
    torch.float32, "float16", marks=pytest.mark.slow)))
def test_peak_memory_stays_below_1_2_times_the_bytes_loaded(one, broken, stored, dtype):
    big = oracle.UNetParams(channels=(256, 512), attention=(True, False), heads=(8, 8), context_width=64)
    with torch.device("meta"):
        shapes = oracle.unet(big)
    shapes.save_config(broken / "unet")
    save_file({key: torch.zeros(value.shape, dtype=stored) for key, value in shapes.state_dict().items()},
              tiny.weights(broken, "unet"))
    out = subprocess.run([sys.executable, "-c", PEAK, broken, one.folder, dtype], check=True, capture_output=True,
                         text=True, cwd=Path(__file__).parents[2]).stdout.split()
    ratio, loaded = float(out[0]), float(out[1])
    assert loaded > 5e7 and ratio < 1.2, f"peak {ratio:.2f} x {loaded / 1e6:.0f} MB"
