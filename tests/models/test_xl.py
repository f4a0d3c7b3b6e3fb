"""Stable Diffusion XL: both layouts, pictures as diffusers' pipeline makes them, and every method on a tiny one."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
)
from diffusers.loaders import single_file_utils
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

import sage
from sage.commands import main as cli
from sage.errors import ModelError, SettingsError
from sage.method import METHODS, method
from sage.models import fetch as fetching
from sage.models import known, loading
from sage.models.backbone import MEMBERS, Backbone, Text
from sage.models.describe import describe
from sage.models.sd import loading as sd
from sage.models.sd.inversion import InversionNet, inversion_params
from sage.models.sd.xl import StableDiffusionXL
from sage.sampling.levels import DiffusionSchedule, Level
from sage.sampling.steps import stochastic, with_noise
from tests import small
from tests.models import hub as hubs
from tests.models import oracle, tiny
from training.export import unet_config, write_network

SOURCE, TARGET = "a cat on a mat", "a dog on a mat"
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return tiny.make(tmp_path_factory.mktemp("xl") / "tiny", "XL")


@pytest.fixture(scope="module")
def model(made):
    return sage.load_model(made.folder, device="cpu")


@pytest.fixture
def broken(made, tmp_path):
    """A copy to break."""
    return Path(shutil.copytree(made.folder, tmp_path / "broken"))


def refusal(path, **options) -> str:
    with pytest.raises(ModelError) as caught:
        sage.load_model(path, device="cpu", **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape and theirs.std() > 1e-3
    return ((ours - theirs).norm() / theirs.norm()).item()


def pipeline(made: tiny.Tiny, scheduler=None) -> StableDiffusionXLPipeline:
    words = (CLIPTokenizer.from_pretrained(str(made.folder / name)) for name in ("tokenizer", "tokenizer_2"))
    pipe = StableDiffusionXLPipeline(
        made.vae, made.text, made.text_2, *words, made.unet,
        scheduler or DDIMScheduler.from_pretrained(made.folder / "scheduler"), add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


# Layouts

def test_folder(made, model):
    assert isinstance(model, StableDiffusionXL) and isinstance(model, Backbone)
    assert all(hasattr(model, name) for name in MEMBERS) and model.family == "sdxl" and model.sample_size == 32
    assert model.unet.params == tiny.UNETS["XL"] and model.text_2.params == tiny.TEXT_2
    assert model.vae.params.upcast and model.empty_is_zero
    pads = [prompts.tokenizer.pad_token_id for prompts in (model.prompts, model._prompts_2)]
    assert pads == [model.prompts.tokenizer.eos_token_id, 0]
    assert {site.level for site in model.sites()} == {1, 2} and model.recommends == {}
    assert not any(p.requires_grad for network in model.networks() for p in network.parameters())


def test_both_layouts_are_the_same_model(made, model, tmp_path):
    path = made.single_file(tmp_path / "model.safetensors")
    single = sage.load_model(path, device="cpu", tokenizer=made.folder)
    assert single.sample_size == 256 and single.unet.params == model.unet.params
    for ours, other in zip(single.networks(), model.networks(), strict=True):
        theirs = dict(other.named_parameters())
        assert ours.params == other.params
        assert all(torch.equal(p, theirs[name]) for name, p in ours.named_parameters())
    a, b = (m.embed([m.prompts.parse(SOURCE)]) for m in (model, single))
    assert torch.equal(a.tokens, b.tokens) and torch.equal(a.pooled, b.pooled)
    assert describe(path)["family"] == "XL" and describe(path)["parameters"] == describe(made.folder)["parameters"]


def test_single_file_names_agree_with_the_oracles_converter(made, tmp_path):
    path = made.single_file(tmp_path / "model.safetensors")
    ours, stored = sd.open_file(path), load_file(path)
    theirs = single_file_utils.convert_ldm_unet_checkpoint(stored, {**made.unet.config})
    assert theirs.keys() == ours.parts["unet"].tensors.keys()
    assert all(torch.equal(theirs[key], value.read()) for key, value in ours.parts["unet"].tensors.items())
    theirs = single_file_utils.convert_open_clip_checkpoint(
        CLIPTextModelWithProjection(made.text_2.config), stored, prefix="conditioner.embedders.1.model.")
    theirs = {k if k.startswith("text_") else f"text_model.{k}": v for k, v in theirs.items()}
    found = {key: value.read() for key, value in ours.parts["text_2"].tensors.items()}
    assert theirs.keys() == found.keys() and all(torch.equal(theirs[key], found[key]) for key in found)


def test_no_picture_is_encoded_in_float16_where_that_overflows(made, broken):
    half = sage.load_model(made.folder, device="cpu", dtype="float16")
    assert half.vae.encoder.conv_in.weight.dtype == torch.float32 == half._dtype_of(half.vae)
    assert half.unet.conv_in.weight.dtype == torch.float16 == half._dtype_of(half.unet)
    seen = []
    hook = half.vae.decoder.conv_in.register_forward_hook(lambda _, given, out: seen.append(out.dtype))
    half.decode(torch.randn(1, 4, 8, 8))
    hook.remove()
    assert seen == [torch.float32]
    assert half.needs(64, 64).autoencoder == sage.load_model(made.folder, device="cpu").needs(64, 64).autoencoder
    wide = sage.load_model(made.folder, device="cpu", dtype="bfloat16")  # which has the range
    assert wide.vae.encoder.conv_in.weight.dtype == torch.bfloat16
    tiny.configure(broken / "vae" / "config.json", force_upcast=False)  # as where it was mended
    assert sage.load_model(broken, device="cpu", dtype="float16").vae.encoder.conv_in.weight.dtype == torch.float16


# What does not fit

def test_what_is_no_whole_model_is_refused(made, broken, tmp_path):
    assert "text encoder gives 64" in refusal(_without(broken, "text_encoder_2"))
    stored = load_file(made.single_file(tmp_path / "m.safetensors"))
    for left, said in (("conditioner.embedders.1.", "exactly one is needed"),
                       ("conditioner.embedders.0.", "exactly one is needed"),
                       ("model.diffusion_model.label_emb.0.0.weight", "label_emb.0.0.weight' is missing"),
                       ("conditioner.embedders.1.model.text_projection", "text_projection' is missing"),
                       ("model.diffusion_model.label_emb.0.2.bias", "1 of 408 weights missing")):
        path = tmp_path / "part.safetensors"
        save_file({key: value for key, value in stored.items() if not key.startswith(left)}, path)
        assert said in refusal(path, tokenizer=made.folder), left
    refiner = {key.replace("embedders.1", "embedders.0"): value for key, value in stored.items()
               if "embedders.0" not in key}
    save_file(refiner, tmp_path / "refiner.safetensors")
    assert "refiner" in refusal(tmp_path / "refiner.safetensors")


def _without(folder: Path, part: str) -> Path:
    shutil.rmtree(folder / part)
    return folder


@pytest.mark.parametrize(("change", "said"), (
    ({"addition_embed_type": "image"}, "only null and text_time"),
    ({"addition_embed_type": None}, "two text encoders"),
    ({"projection_class_embeddings_input_dim": 100}, "leave no pooled text"),
    ({"projection_class_embeddings_input_dim": 6 * 256 + 25}, "pooled text 25 wide"),
    ({"addition_time_embed_dim": 255}, "leave no pooled text"),
    ({"transformer_layers_per_block": [1, 2]}, "3 of int"),
    ({"transformer_layers_per_block": [1, 0, 2]}, "do not divide")))
def test_configurations_that_do_not_fit(broken, change, said):
    config = json.loads((broken / "unet" / "config.json").read_text())
    (broken / "unet" / "config.json").write_text(json.dumps(config | change))
    assert said in refusal(broken)


def test_text_without_its_pooled_part_is_refused(model):
    text = model.embed([model.prompts.parse(SOURCE)])
    with pytest.raises(SettingsError, match="pooled"):
        model.predict(torch.zeros(1, 4, 8, 8), Level.of(500, 0.5), Text(text.tokens))


# Against diffusers' pipeline

@torch.no_grad()
def test_prompts_are_embedded_as_by_diffusers_pipeline(made, model):
    theirs = pipeline(made).encode_prompt([SOURCE, "a dog"], do_classifier_free_guidance=True)
    ours = model.embed([model.prompts.parse(text) for text in (SOURCE, "a dog", "")])
    assert distance(ours.tokens[:2], theirs[0]) < 1e-5 and distance(ours.pooled[:2], theirs[2]) < 1e-5
    assert torch.equal(ours.tokens[2], theirs[1][0]) and torch.equal(ours.pooled[2], theirs[3][0])
    zeros = replace_empty(model, False)
    said = pipeline(made).encode_prompt(SOURCE, negative_prompt="", do_classifier_free_guidance=True)
    assert distance(zeros.tokens, said[1]) < 1e-5 and distance(zeros.pooled, said[3]) < 1e-5


def replace_empty(model, zero: bool) -> Text:
    before, model.empty_is_zero = model.empty_is_zero, zero
    try:
        return model.embed([model.prompts.parse("")])
    finally:
        model.empty_is_zero = before


@torch.no_grad()
def test_a_picture_is_that_of_diffusers_pipeline(made, model):
    """Not square, so that height and width of the sizes would show in the wrong order."""
    noise = torch.randn(1, 4, 16, 24, generator=torch.Generator().manual_seed(7))
    options = dict(height=32, width=48, num_inference_steps=5, guidance_scale=5.0, output_type="latent")
    theirs = pipeline(made)(SOURCE, latents=noise, **options).images
    settings = method("plain").Settings(steps=5, guidance_scale=5.0)
    ours = sage.generate(model, SOURCE, settings, width=48, height=32, latents=noise)[0]
    assert distance(ours.latents, theirs) < 1e-4
    assert distance(ours.pixels, made.vae.decode(theirs / 0.13025).sample) < 1e-4
    other = pipeline(made)(SOURCE, latents=noise, **options, original_size=(48, 32), target_size=(48, 32)).images
    assert distance(other, theirs) > 1e-4


@pytest.mark.parametrize("family", ("XL", "2.x"))
@torch.no_grad()
def test_a_student_makes_its_picture_in_four_steps(tmp_path, family):
    """The levels are those of Euler's sampler, whose noise at the first is not quite of unit variance."""
    scheduler = EulerDiscreteScheduler(**BETAS, timestep_spacing="trailing")
    made = tiny.make(tmp_path / "turbo", family, scheduler=scheduler)
    model = sage.load_model(made.folder, device="cpu")
    assert model.recommends["generate/plain"] == {"steps": 4, "spacing": "trailing", "guidance_scale": 1.0, "eta": 0.0}
    levels = model.schedule.levels(4, "trailing")
    assert [level.t for level in levels] == [0, 249, 499, 749, 999] and levels[0].alpha == 1
    assert "few" in describe(made.folder)["steps"]
    suiting = {name for name in METHODS if method(name).edits and method(name).suits(model)}
    assert suiting == {"plain", "sdedit", "turbo-ddpm"} and not method("sag").suits(model, "generate")
    said = {n: sage.generate(model, SOURCE, method("plain").Settings(steps=n), width=32, height=32)[0].notes
            for n in (4, 10)}
    assert not any("steps" in note for note in said[4])
    assert any("made for 4 steps, and these are 10" in note for note in said[10])
    for preset, grid in (("published", [799, 599, 399, 199]), ("published-3", [799, 499, 199])):
        told, path = edited_by_turbo_ddpm(model, preset)
        assert told == 2 * grid  # there, and back with both prompts in one pass
        z0, *noisy = path.latents  # noised 200 timesteps less than the student is told, so at 199 not at all
        assert [torch.equal(z, z0) for z in noisy[::-1]] == [t < 200 for t in grid]
    if family != "XL":
        return
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(7))
    theirs = pipeline(made, scheduler)(SOURCE, height=32, width=32, num_inference_steps=4, guidance_scale=0.0,
                                       latents=noise, output_type="latent").images
    ours = sage.generate(model, SOURCE, width=32, height=32, latents=noise * levels[-1].noise)[0]
    assert ours.settings.steps == 4 and distance(ours.latents, theirs) < 1e-4


def edited_by_turbo_ddpm(model, preset: str):
    """The timesteps that a network is told, pass by pass, and the way to noise."""
    told, ordinary = [], model.predict
    model.predict = lambda z, level, text: told.append(level.t) or ordinary(z, level, text)
    try:
        found = sage.edit(model, small.picture(32, 32), SOURCE, TARGET, method("turbo-ddpm").preset(preset))
    finally:
        del model.predict
    assert found.latents.isfinite().all() and found.image.size == (32, 32)
    return told, found.trajectory


def test_new_noise_at_every_step_is_what_eulers_ancestral_sampler_draws():
    scheduler = EulerAncestralDiscreteScheduler(**BETAS, timestep_spacing="trailing")
    scheduler.set_timesteps(4)
    levels = DiffusionSchedule().levels(4, "trailing")
    g = torch.Generator().manual_seed(0)
    eps, x = torch.randn(1, 4, 4, 4, generator=g), torch.randn(1, 4, 4, 4, generator=g)
    here, there = levels[3], levels[2]
    scale = [level.noise / level.signal for level in (here, there)]
    theirs = scheduler.step(eps, scheduler.timesteps[1], x, generator=torch.Generator().manual_seed(5)).prev_sample
    z = x * here.signal  # theirs grow with the noise, ours keep their variance
    noise = torch.randn(eps.shape, generator=torch.Generator().manual_seed(5))
    ours = stochastic(with_noise(z, eps, here), here, there, 1.0, lambda: noise) / there.signal
    assert scale[0] > scale[1] and distance(ours, theirs) < 1e-5


def test_a_student_in_one_file_is_told_by_its_name(made, tmp_path):
    path = made.single_file(tmp_path / "sd_xl_turbo_1.0.safetensors")
    opened = sd.open_file(path)
    assert opened.student and opened.side == 128 and opened.schedule.set_alpha_to_one
    assert opened.recommends["generate/plain"]["eta"] == 1.0 and opened.recommends["plain"]["steps"] == 4


# Methods

@pytest.mark.parametrize("name", [name for name in METHODS if method(name).edits])
def test_every_method_edits_with_it(model, name):
    settings = method(name).recommended(model)
    if why := method(name).fits(model):  # a flow's, or one that needs another network
        with pytest.raises(SettingsError, match=re.escape(why)):
            sage.edit(model, small.picture(32, 48), SOURCE, TARGET, settings)
        return
    few = {"steps": 2, "retries": 0, "noise_rounds": 0, "fixed_point_rounds": 1, "null_text_steps": 1,
           "most_spread": 1e9, "most_drift": 1e9}
    settings = settings.but(**{key: value for key, value in few.items() if key in settings.names()})
    result = sage.edit(model, small.picture(32, 48), SOURCE, TARGET, settings)
    assert result.image.size == (32, 48) and result.latents.isfinite().all()


def test_pooled_text_leads_where_the_tokens_do_not(model):
    z, level = torch.randn(2, 4, 8, 8), model.schedule.level(500)
    a, b = (model.embed([model.prompts.parse(text)]) for text in (SOURCE, TARGET))
    both = model.prepare(Text.cat([a, Text(a.tokens, b.pooled)]))
    p = model.predict(z[:1].expand(2, -1, -1, -1), level, both)
    assert (p.eps[0] - p.eps[1]).abs().max() > 1e-4
    alone = model.predict(z[:1], level, model.prepare(Text(a.tokens, b.pooled)))
    assert torch.allclose(p.eps[1:], alone.eps, atol=1e-5)


@pytest.mark.parametrize("name", ("p2p+null-text", "p2p+negative", "p2p+direct"))
def test_inversions_of_prompt_to_prompt(model, name, tmp_path):
    settings = method(name).recommended(model).but(steps=2)
    path = sage.invert(model, small.picture(32, 32), SOURCE, settings)
    sage.save_trajectory(path, tmp_path / "t.safetensors", model)
    again = sage.load_trajectory(tmp_path / "t.safetensors", model)
    a, b = (sage.edit(model, small.picture(32, 32), SOURCE, TARGET, settings, trajectory=t) for t in (path, again))
    assert torch.equal(a.latents, b.latents)


@torch.no_grad()
def test_an_inversion_network_is_told_what_the_generator_is(model):
    """Pooled text and sizes, height before width, as diffusers' network is."""
    torch.manual_seed(0)
    ours = InversionNet(inversion_params(model.unet.params), model.vae.factor).eval()
    theirs = oracle.unet(ours.params)
    theirs.load_state_dict(ours.state_dict())
    text = model.embed([model.prompts.parse(SOURCE)])
    x0, x = torch.randn(2, 1, 4, 16, 24)
    told = {"text_embeds": text.pooled, "time_ids": torch.tensor([[32, 48, 0, 0, 32, 48]])}
    mean, log_variance = theirs(torch.cat([x0, x], 1), 499, text.tokens, added_cond_kwargs=told).sample.chunk(2, 1)
    level = model.schedule.level(499)
    found = ours.noise(x0, x, level, text)
    mean = mean + level.signal / level.noise * (x0 - x)
    assert distance(found[0], mean) < 1e-4 and distance(found[1], log_variance.clamp(-10, 4)) < 1e-4
    other = ours.noise(x0, x, level, Text(text.tokens, 2 * text.pooled))
    assert distance(other[0], mean) > 1e-3


def test_turbo_edits_with_it(made, tmp_path):
    """From a folder that has the network beside the UNet; equal prompts give the reconstruction."""
    folder = Path(shutil.copytree(made.folder, tmp_path / "student"))
    params = inversion_params(tiny.UNETS["XL"])
    torch.manual_seed(0)
    write_network(folder / "inversion", InversionNet(params), unet_config(params, 16))
    student = sage.load_model(folder, device="cpu")
    assert student.part("inversion").params == params and student.part("inversion").factor == student.vae.factor
    same, other = (sage.edit(student, small.picture(32, 48), SOURCE, target, method="turbo")
                   for target in (SOURCE, TARGET))
    assert torch.equal(same.latents, same.trajectory.reconstructions[-1])
    assert other.latents.isfinite().all() and not torch.equal(same.latents, other.latents)


def test_the_command_line(made, tmp_path, capsys):
    small.picture(32, 32).save(tmp_path / "in.png")
    for name in ("sage", "ddpm"):
        command = ["edit", f"{tmp_path}/in.png", "--source", SOURCE, "--target", TARGET, "--model", str(made.folder),
                   "--method", name, "--steps", "2", "--out", f"{tmp_path}/{name}.png", "--quiet"]
        assert cli.main(command) == 0
        assert sage.pictures.open_picture(tmp_path / f"{name}.png").size == (32, 32)
    assert cli.main(["info", str(made.folder)]) == 0 and "text_2" in capsys.readouterr().out


# Fetching

def test_it_is_fetched_with_both_encoders(made, tmp_path, capsys, monkeypatch):
    entry = known.KNOWN["sdxl-turbo"]
    hub = hubs.Hub(made.folder, entry.repo, entry.revision)
    monkeypatch.setenv("SAGE_WEIGHTS", str(tmp_path))
    try:
        folder = fetching.fetch("stabilityai/sdxl-turbo", endpoint=hub.url, progress=False)
    finally:
        hub.close()
    said = capsys.readouterr().err
    assert "6.9 GB, licence Stability AI Community (https://" in said
    got = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert got == {*fetching.LAYOUTS["XL"].configs, "tokenizer/tokenizer_config.json",
                   "tokenizer_2/tokenizer_config.json", "fetched.json",
                   *(f"{part}/{base}.safetensors" for part, base in tiny.BASES.items())}
    assert isinstance(loading.load_model("sdxl-turbo", device="cpu"), StableDiffusionXL)


@pytest.mark.parametrize("name", ("sdxl", "sdxl-turbo", "sd-turbo"))
def test_known_names(name, tmp_path, monkeypatch):
    monkeypatch.setenv("SAGE_WEIGHTS", str(tmp_path))
    message = refusal(name)
    assert f"`sage fetch {name}`" in message and "licence" in message and " GB" in message
