"""A tiny FLUX.1 of random weights makes pictures as diffusers' pipeline does, and is edited with by every method."""

from dataclasses import replace

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
from torch import Tensor

import sage
from sage.commands import main as cli
from sage.editing import check_prompts, edit_batch
from sage.errors import SettingsError
from sage.method import METHODS, method
from sage.models.backbone import MEMBERS, Backbone, Text
from sage.models.latent import told
from sage.models.savings import Savings
from sage.models.sd.vae import VAEParams
from sage.models.sites import Where
from sage.prompts.tokens import Prompts
from sage.sampling.levels import Level, downwards
from sage.sampling.steps import Prediction, from_output, renoise, to_output, walk
from tests import small
from tests.methods.test_every import LENIENT, ROWS, distance, hooks, there_and_back
from tests.models import flux

SOURCE, TARGET = "a cat on a mat", "a dog on a mat"
STEPS = 4


@pytest.fixture(scope="module", params=(True, pytest.param(False, marks=pytest.mark.slow)), ids=("dev", "schnell"))
def both(request, tmp_path_factory):
    return flux.make(tmp_path_factory.mktemp("flux") / "words", request.param)


@pytest.fixture(scope="module")
def dev(tmp_path_factory):
    return flux.make(tmp_path_factory.mktemp("flux") / "words")[0]


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    """Without guidance as an input, as a smaller model of one's own may be."""
    return flux.make(tmp_path_factory.mktemp("flow") / "words", guidance=False)[0]


def test_it_has_the_members_of_the_seam(dev):
    assert isinstance(dev, Backbone) and all(hasattr(dev, name) for name in MEMBERS)
    assert dev.distilled and dev.prediction_type == "flow" and dev.features() == () and dev.part("inversion") is None


# Pictures from text

@torch.no_grad()
def test_a_picture_is_that_of_diffusers_pipeline(both, tmp_path):
    model, (transformer, vae, text, t5) = both
    pipeline = FluxPipeline(
        FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=model.distilled), vae, text,
        model._clip_prompts.tokenizer, t5, model.prompts.tokenizer, transformer)
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 16, 16, 24, generator=torch.Generator().manual_seed(7))
    packed = FluxPipeline._pack_latents(noise, 1, 16, 16, 24)
    options = dict(height=64, width=96, num_inference_steps=5, guidance_scale=3.5, latents=packed,
                   max_sequence_length=model.prompts.max_length, output_type="latent")
    # The pipeline takes pictures to have 8 pixels a latent, and this autoencoder has 4.
    pipeline.vae_scale_factor = 4
    theirs = FluxPipeline._unpack_latents(pipeline(SOURCE, **options).images, 64, 96, 4)
    ours = sage.generate(model, SOURCE, method("plain").Settings(steps=5, guidance_scale=3.5 if model.distilled else 1),
                         width=96, height=64, latents=noise)[0]
    assert distance(ours.latents, theirs) < 1e-4
    decoded = vae.decode(theirs / 0.3611 + 0.1159).sample
    assert distance(ours.pixels, decoded) < 1e-4


@torch.no_grad()
def test_embedded_guidance_counts_and_the_negative_prompt_does_not(dev):
    def made(**options) -> Tensor:
        scale = options.pop("scale", 3.5)
        return sage.generate(dev, SOURCE, method("plain").Settings(steps=3, guidance_scale=scale), **options)[0].latents

    assert not torch.equal(made(scale=2.0), made())
    assert torch.equal(made(negative="a dog"), made())


def test_a_distilled_network_is_asked_once_a_step(dev, flow, monkeypatch):
    for model, rows in ((dev, [1] * 3), (flow, [2] * 3)):
        seen, ordinary = [], model.predict
        monkeypatch.setattr(model, "predict", lambda z, *more, own=ordinary, seen=seen: seen.append(len(z)) or
                            own(z, *more))
        sage.generate(model, SOURCE, method("plain").Settings(steps=3, guidance_scale=3.5))
        assert seen == rows


def test_who_watches_sees_where_a_distilled_network_looks(dev):
    seen = []
    sage.generate(dev, SOURCE, method("plain").Settings(steps=2, guidance_scale=3.5), watch=seen.append)
    looks = [step.looks["target"] for step in seen]
    assert len(looks) == 2 and all(torch.allclose(look.sum(1), torch.ones(()), atol=1e-5) for look in looks)


@pytest.mark.parametrize("name", ("plain", "p2p", "sage"))
def test_bfloat16(tmp_path, name):
    """Maps that are formed and gradients too."""
    half, whole = (flux.make(tmp_path / "words", dtype=dtype)[0] for dtype in (torch.bfloat16, torch.float32))
    settings = settings_of(half, name).but(steps=1)
    if name == "sage":
        settings = settings.but(guided_steps=1, pairing="transition", reconstruction_scale=1e-3)
    ours, exact = (sage.edit(model, small.picture(), SOURCE, TARGET, settings).latents for model in (half, whole))
    assert 1e-4 < distance(ours, exact) < 0.2


def test_generate_on_the_command_line(tmp_path, capsys):
    folder = flux.write(tmp_path / "tiny-flux").folder
    command = ["generate", SOURCE, "--model", str(folder), "--steps", "2", "--out", f"{tmp_path}/p.png"]
    assert cli.main(command) == 0
    assert sage.pictures.open_picture(tmp_path / "p.png").size == (64, 64)
    small.picture().save(tmp_path / "in.png")
    command = ["edit", f"{tmp_path}/in.png", "--source", SOURCE, "--target", TARGET, "--model", str(folder), "--steps",
               "2", "--method", "plain", "--sheet", "--out", f"{tmp_path}/e.png"]
    assert cli.main(command) == 0 and (tmp_path / "e.png").is_file()
    assert cli.main([*command, "--spacing", "trailing"]) == 2
    assert "spacing of their own" in capsys.readouterr().err


# Predictions and steps

def test_what_it_predicts_is_a_flow(dev):
    g = torch.Generator().manual_seed(0)
    z, text = torch.randn(2, 16, 4, 6, generator=g), dev.embed([dev.prompts.parse(SOURCE)])
    for t in (0.0, 0.3, 1.0):
        level = dev.schedule.level(t)
        p = dev.predict(z, level, text)
        assert torch.allclose(level.signal * p.x0 + level.noise * p.eps, z, atol=1e-5)
        assert torch.allclose(to_output(p, level, "flow"), p.velocity)
        other = dev.schedule.level(0.7)
        assert torch.allclose(renoise(p, other), z + (0.7 - t) * p.velocity, atol=1e-5)  # an Euler step
        back = from_output(z, p.velocity, level, "flow")
        assert torch.allclose(back.x0, p.x0, atol=1e-5) and torch.allclose(back.eps, p.eps, atol=1e-5)


def test_text_without_its_pooled_part_is_refused(dev):
    text = dev.embed([dev.prompts.parse(SOURCE)])
    with pytest.raises(SettingsError, match="pooled"):
        dev.predict(torch.zeros(1, 16, 4, 4), Level(0.5, 0.5, 0.5), Text(text.tokens))


def test_inversion_by_euler_comes_back_with_more_steps(flow):
    """Halving the steps' length halves the error of going up and down."""
    z0 = flow.encode(small.tensor())
    text = flow.embed([flow.prompts.parse(SOURCE)])

    def error(steps: int) -> float:
        levels = flow.schedule.levels(steps, "leading", z0.shape[-2:])
        with torch.no_grad():
            def predict(z: Tensor, level: Level) -> Prediction:
                return flow.predict(z, level, text)

            *_, up = walk(predict, z0, downwards(levels[::-1]))
            *_, back = walk(predict, up, downwards(levels))
        return distance(back, z0)

    errors = [error(steps) for steps in (8, 16, 32)]
    assert errors[0] > 1.5 * errors[1] > 2.25 * errors[2] > 0


def test_gradients_reach_latents_and_tokens(flow):
    z = torch.randn(1, 16, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    text = flow.embed([flow.prompts.parse(SOURCE)])
    text = replace(text, tokens=text.tokens.requires_grad_())
    p = flow.predict(z, flow.schedule.level(0.6), text)
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(p.x0.square().mean(), (z, text.tokens)))


def test_the_fingerprint_is_of_the_weights(tmp_path):
    one, other = (flux.make(tmp_path / "words", guidance) for guidance in (True, False))
    same = flux.make(tmp_path / "words")[0]
    assert one[0].fingerprint() == same.fingerprint() != other[0].fingerprint()
    before = same.fingerprint()
    with torch.no_grad():
        same.t5.shared.weight[0] += 1
    changed = same.fingerprint()
    assert before != changed
    same.t5.shared.weight = torch.nn.Parameter(same.t5.shared.weight - 1, requires_grad=False)
    assert same.fingerprint() != changed


def test_fingerprints_of_stable_diffusion_are_those_of_before():
    assert set(told(VAEParams())) == {"channels", "layers_per_block", "latent_channels", "groups", "scaling"}
    assert {"shift", "quant_convs"} <= set(told(flux.VAE_))


# Prompts

def test_prompts_of_t5_have_a_mark_at_their_end_alone(dev):
    prompts = dev.prompts
    assert isinstance(prompts, Prompts)
    prompt, other = prompts.parse(SOURCE), prompts.parse("a black cat on a mat")
    assert len(prompt.ids) == flux.TOKENS and prompt.ids[:6] == (3, 4, 6, 3, 7, 1) and prompt.ids[6] == 0
    assert prompts.tokens(prompt) == prompt.ids[:6]
    assert prompts.find(prompt, "cat") == (1,) and prompts.find(prompt, "a", every=True) == (0, 3)
    assert [positions for _, positions in prompts.words(prompt)] == [(0,), (1,), (2,), (3,), (4,)]
    (span,) = prompts.differences(prompt, prompts.parse(TARGET))
    assert (span.source, span.target) == ((1,), (1,))
    (added,) = prompts.differences(prompt, other)
    assert added.source == () and added.target == tuple(range(1, 7))  # letter by letter
    with pytest.raises(sage.SageError, match="too many"):
        prompts.parse("cat " * 24)
    assert len(prompts.parse("cat " * 23).ids) == flux.TOKENS
    assert prompts.parse("cat " * 24, truncate=True).ids == (4,) * 23 + (1,)


# Editing

def settings_of(model: Backbone, name: str, **changes):
    """What the method does of itself, and its row's settings where they say more than which level."""
    own = {**ROWS[name].base, "steps": STEPS, "guidance_scale": 2.0, **changes}
    own |= {key: 1 for key in ("cross_level", "self_level") if key in method(name).Settings.names()}
    return method(name).Settings.from_dict({k: v for k, v in own.items() if k in method(name).Settings.names()})


def fitting(model: Backbone) -> list[str]:
    return [name for name in METHODS if method(name).edits and not method(name).fits(model)]


every = pytest.mark.parametrize("name", [name for name in METHODS if method(name).edits])


@pytest.fixture
def fits(flow, name):
    if why := method(name).fits(flow):
        assert 5 < len(why) < 200
        with pytest.raises(SettingsError, match=f"{name} cannot edit with small-flux: {why}"):
            sage.edit(flow, small.picture(), SOURCE, TARGET, method=name)
        pytest.skip(why)


def test_methods_that_fit(flow, dev):
    assert {"plain", "sdedit", "sage", "p2p", "masactrl", "flowedit", "uni-edit", "rf-inversion", "rf-solver",
            "fireflow", "kv-edit"} <= set(fitting(flow))
    assert fitting(dev) == fitting(flow) and "pnp" not in fitting(flow)


@every
def test_every_method_edits(both, name, fits, tmp_path):
    model = both[0]
    settings, seen = settings_of(model, name), []
    result = sage.edit(model, small.picture(96, 64), SOURCE, TARGET, settings, watch=seen.append)
    assert torch.isfinite(result.latents).all() and result.image.size == (96, 64)
    assert result.latents.shape == (1, 16, 14, 20) and hooks(model) == 0
    if looks := seen[-1].looks:
        assert all(look.shape == (1, flux.TOKENS, 7, 10) for look in looks.values())
    trajectory = sage.invert(model, small.picture(96, 64), SOURCE, settings)
    path = sage.save_trajectory(trajectory, tmp_path / "t.safetensors", model)
    again = sage.edit(model, small.picture(96, 64), SOURCE, TARGET, settings,
                      trajectory=sage.load_trajectory(path, model))
    assert torch.equal(again.latents, result.latents)
    other = sage.edit(model, small.picture(96, 64), SOURCE, "a pig or a dog on a mat", settings)
    assert distance(other.latents, result.latents) > 1e-4


@every
def test_equal_prompts_and_scale_one_reconstruct(flow, name, fits):
    settings = settings_of(flow, name, guidance_scale=1.0, **ROWS[name].plainly)
    result = sage.edit(flow, small.picture(), SOURCE, SOURCE, settings)
    if ROWS[name].bound == "picture":
        assert distance(result.latents, result.trajectory.latents[0]) < 1e-4
        return
    back = there_and_back(flow, result.trajectory, ROWS[name].bound == "solver")
    assert distance(result.latents, back) < 1e-4 < distance(back, result.trajectory.latents[0])


@pytest.mark.slow
@every
def test_pictures_of_a_batch_are_each_as_if_alone(dev, name, fits):
    settings = settings_of(dev, name).wordless()
    settings = settings.but(blend="auto") if "blend" in settings.names() else settings
    pairs = [(SOURCE, TARGET), ("a mat", "a mat")]
    images = [small.picture(96, 64, seed) for seed in range(2)]
    together = edit_batch(dev, images, [check_prompts(dev, *pair, settings) for pair in pairs], settings)
    for image, pair, ours in zip(images, pairs, together, strict=True):
        assert distance(ours.latents, sage.edit(dev, image, *pair, settings).latents) < 1e-3


@pytest.mark.parametrize("inversion", ("null-text", "negative", "proximal", "direct"))
def test_prompt_to_prompt_with_each_inversion(flow, inversion, tmp_path):
    settings = settings_of(flow, "p2p", inversion=inversion, null_text_steps=2)
    result = sage.edit(flow, small.picture(), SOURCE, TARGET, settings)
    path = sage.save_trajectory(result.trajectory, tmp_path / "t.safetensors", flow)
    again = sage.edit(flow, small.picture(), SOURCE, TARGET, settings, trajectory=sage.load_trajectory(path, flow))
    assert torch.equal(again.latents, result.latents)


def test_the_gradient_of_sage_lowers_its_loss(flow):
    """Blocks of joint maps are what is compared, and those of the first step are what it was led to."""
    settings = method("sage").Settings(steps=STEPS, self_level=1, cross_level=1, blend=None, replace=None,
                                       guidance_scale=2.0, loss_gain=1.0, reconstruction_scale=0.0, **LENIENT)
    losses = [sage.edit(flow, small.picture(), SOURCE, TARGET, settings.but(reconstruction_scale=scale)).losses
              for scale in (1e-9, 300.0)]
    assert losses[0][1:] and losses[1][1] < losses[0][1]


def test_published_conventions_that_need_timesteps_are_refused(flow):
    for name, changes in (("sage", {"grid": "released"}), ("p2p", {"conventions": "published"})):
        with pytest.raises(SettingsError, match="has no timesteps"):
            sage.edit(flow, small.picture(), SOURCE, TARGET, settings_of(flow, name, **changes))


# Memory

def test_what_it_needs_is_counted(dev):
    needs = dev.needs(96, 64)
    layers, tokens = 5, 8 * 12
    assert needs.attention[("self", 1)] == layers * 2 * tokens * 64 * 4
    assert needs.attention[("cross", 1)] == layers * (tokens + flux.TOKENS) * 64 * 4
    with torch.no_grad(), sage.kit.listen(dev.sites().at(Where("self", 1))) as tap:
        dev.predict(torch.zeros(1, 16, 16, 24), dev.schedule.level(0.5), dev.embed([dev.prompts.parse(SOURCE)]))
    assert sum(t.numel() * 4 for pair in tap.pop() for t in pair) == needs.attention[("self", 1)]
    kept: dict[int, int] = {}

    def keep(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    weights = {p.untyped_storage().data_ptr() for p in dev.transformer.parameters()}
    z = torch.zeros(1, 16, 16, 24, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        p = dev.predict(z, dev.schedule.level(0.5), dev.embed([dev.prompts.parse(SOURCE)]))
    amount = sum(size for place, size in kept.items() if place not in weights)
    assert p.x0.requires_grad and 0.7 * needs.network < amount < needs.network


def test_savings_move_the_text_encoders_and_tile_the_autoencoder(tmp_path):
    model = flux.make(tmp_path / "words")[0]
    before = model.embed([model.prompts.parse(SOURCE)])
    model.save(Savings(text=True, tiles=True))
    after = model.embed([model.prompts.parse(SOURCE)])
    assert torch.allclose(before.tokens, after.tokens, atol=1e-5) and torch.equal(before.pooled, after.pooled)
    assert model.decode(torch.zeros(1, 16, 8, 8)).shape == (1, 3, 32, 32)
