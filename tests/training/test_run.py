"""The training goes on where it stopped, and what it exports is a model that edits."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sage
from sage import EditConfig
from sage.models.sd.unet import UNetParams
from sage.models.sd.vae import VAEParams
from sage.pictures import from_pixels
from sage.sampling.levels import alphas_cumprod
from training import autoencoder, basis, diffusion, export, flow, networks, run, sheets, tokenizer


def make(path):
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    optimiser = torch.optim.AdamW(module.parameters(), 1e-2)
    return module, run.State(path, {"layer": module}, optimiser, rate=0.9)


def step(module, state, seed):
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))
    module(x).square().mean().backward()
    state.optimiser.step()
    state.optimiser.zero_grad()
    state.averages["layer"].update()
    state.done += 4


def test_a_resumed_training_is_the_uninterrupted_one(tmp_path):
    module, state = make(tmp_path / "whole")
    for i in range(6):
        step(module, state, i)
    other, first = make(tmp_path / "parts")
    for i in range(3):
        step(other, first, i)
    first.numbers["scale"] = 2.5
    first.save()
    other, second = make(tmp_path / "parts")
    assert second.load() and second.done == 12
    for i in range(3, 6):
        step(other, second, i)
    for a, b in zip(module.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    for key, value in state.averages["layer"].shadow.items():
        assert torch.equal(value, second.averages["layer"].shadow[key])
        assert not torch.equal(value, module.state_dict()[key])
    second.save()
    assert second.load_averages()["done"] == 24
    assert torch.equal(other.weight, state.averages["layer"].shadow["weight"])
    assert not list(tmp_path.glob("*.tmp"))


def test_learning_rate_rises_stays_and_falls():
    rates = [run.learning_rate(1e-3, done, 100_000) for done in (0, 1_500, 3_000, 64_000, 82_500, 99_999)]
    assert rates[0] < rates[1] < rates[2] == rates[3] == 1e-3
    assert rates[4] == pytest.approx(0.505e-3) and rates[5] == pytest.approx(1e-5, rel=0.01)
    # An optimiser that begins with a model that has seen something warms up from there.
    assert [run.learning_rate(1e-3, done, 100_000, begun=20_000) for done in (20_000, 23_000)] == [1e-3 / 3000, 1e-3]


def learnt(path, samples):
    module, state = make(path)

    def loss(rng, generator):
        return (module(torch.randn(4, 3, generator=generator)) - 1).square().mean(), {}

    run.learn(state, loss, 1e-2, samples, 4)


@pytest.mark.slow
def test_processes_go_on_from_the_mean_of_what_each_learnt_alone(tmp_path):
    steps = run.MEET_EVERY + 1  # so that they meet twice
    run.in_processes(2, learnt, tmp_path / "both.safetensors", 8 * steps)
    both = [make(tmp_path / "unused") for _ in range(2)]
    for k in range(steps):
        for rank, (module, state) in enumerate(both):
            rng = np.random.default_rng([0, 2, 8 * k + 4 * rank])
            generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
            for group in state.optimiser.param_groups:
                group["lr"] = run.learning_rate(1e-2, 8 * k, 8 * steps)
            (module(torch.randn(4, 3, generator=generator)) - 1).square().mean().backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            state.optimiser.step()
            state.optimiser.zero_grad()
            state.averages["layer"].update()
        if k in (run.MEET_EVERY - 1, steps - 1):
            for values in zip(*(
                    [*(p.data for p in module.parameters()), *state.averages["layer"].shadow.values(),
                     *(v for p in module.parameters() for v in state.optimiser.state[p].values() if v.ndim)]
                    for module, state in both), strict=True):
                mean = torch.stack(values).mean(dim=0)
                for value in values:
                    value.copy_(mean)
    module, state = make(tmp_path / "both.safetensors")
    assert state.load() and state.done == 8 * steps
    torch.testing.assert_close(module.state_dict(), both[1][0].state_dict())
    torch.testing.assert_close(state.averages["layer"].shadow, both[1][1].averages["layer"].shadow)
    for p, q in zip(module.parameters(), both[1][0].parameters(), strict=True):
        torch.testing.assert_close(state.optimiser.state[p], both[1][1].optimiser.state[q])


def broken(path):
    if torch.distributed.get_rank() == 1:
        raise ValueError("out of luck")
    learnt(path, 10**6)


@pytest.mark.slow
def test_where_one_process_fails_none_is_left(tmp_path):
    with pytest.raises(Exception, match="out of luck"):
        run.in_processes(2, broken, tmp_path / "both.safetensors")


@pytest.fixture
def small(monkeypatch):
    """Networks that train in moments, and pictures of 32 pixels."""
    channels = (8, 8, 16, 16)
    inner = VAEParams(channels=channels, layers_per_block=1, groups=4, latent_channels=16, scaling=1.0)
    outer = replace(inner, channels=channels[:-1], latent_channels=4)
    monkeypatch.setattr(autoencoder, "PARAMS", inner)
    monkeypatch.setattr(autoencoder, "FIRST", autoencoder.Stage("outer", outer, 16, 8, 1e-3))
    monkeypatch.setattr(autoencoder, "SECOND", autoencoder.Stage("autoencoder", inner, 32, 4, 1e-3))
    monkeypatch.setattr(autoencoder, "SETTLE", 16)
    monkeypatch.setattr(networks, "UNET", UNetParams(
        in_channels=16, out_channels=16, channels=(16, 16), attention=(True, True), layers_per_block=1, heads=(1, 1),
        context_width=192, groups=8))
    monkeypatch.setattr(networks, "FLOW", replace(networks.FLOW, width=32, heads=1, mlp_width=128, depth=1,
                                                  depth_single=1))
    monkeypatch.setattr(networks, "COARSE", replace(networks.FLOW, patch=2))
    monkeypatch.setattr(autoencoder, "psnr", lambda *args: 0.0)
    monkeypatch.setattr(diffusion, "warm_up_text", lambda *args, **options: 0.0)
    monkeypatch.setattr(sheets, "samples", lambda model, path: path.write_bytes(b""))
    for module in (networks, export):
        monkeypatch.setattr(module, "SIDE", 32)
    monkeypatch.setattr(run, "learning_rate", lambda peak, *args, **options: peak)


def folder(path, words):
    """A training's folder with its pictures and tokenizer."""
    (path / "data").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (1000, 32, 32, 3), dtype=np.uint8)
    for name in ("train", "held_out"):
        np.save(path / "data" / f"{name}-0000000.npy", pixels)
    shutil.copytree(words, path / "tokenizer")
    return path


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    path = tmp_path_factory.mktemp("words")
    tokenizer.train(path, captions=200)
    return path


def same(a, b):
    for name, module in a.modules.items():
        for key, value in module.state_dict().items():
            assert torch.equal(value, b.modules[name].state_dict()[key])
            assert torch.equal(a.averages[name].shadow[key], b.averages[name].shadow[key])


def test_both_stages_of_the_autoencoder_go_on_as_if_never_stopped(tmp_path, words, small):
    whole, parts = folder(tmp_path / "whole", words), folder(tmp_path / "parts", words)
    outer = autoencoder.train_outer(whole, 1000, 32)
    autoencoder.train_outer(parts, 1000, 16)
    again = autoencoder.train_outer(parts, 1000, 32)
    for key, value in outer.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])
    # The second stage is stopped while it settles, and once more after.
    for samples in (8, 24, 32):
        state = autoencoder.train(parts, outer, 1000, samples)
    same(autoencoder.train(whole, outer, 1000, 32), state)
    assert state.done == 32


def test_the_new_level_settles_before_what_it_inherits_moves(tmp_path, words, small):
    out = folder(tmp_path / "out", words)
    outer = autoencoder.train_outer(out, 1000, 8)
    first = autoencoder.VAE(autoencoder.PARAMS)
    inherited = autoencoder.inherit(first, outer)
    given = first.state_dict()
    assert torch.equal(given["decoder.up_blocks.3.resnets.1.conv2.weight"],
                       outer.state_dict()["decoder.up_blocks.2.resnets.1.conv2.weight"])
    assert not [name for name in inherited if "mid_block" in name or "quant_conv" in name or "up_blocks.0" in name]
    settled, moved = (autoencoder.train(out, outer, 1000, n).modules["vae"].state_dict() for n in (16, 20))
    assert {name for name in inherited if torch.equal(settled[name], given[name])} == inherited
    assert not any(torch.equal(settled[name], moved[name]) for name in settled)


def test_the_latents_are_those_of_the_outer_levels_in_squares(small):
    outer = autoencoder.VAE(autoencoder.FIRST.params)
    x = torch.rand(2, 3, 32, 32)
    mean, logvar = autoencoder.posterior_of(outer, x)
    assert mean.shape == logvar.shape == (2, 16, 4, 4)
    assert torch.equal(mean[0, 1::4, 2, 3], outer.posterior(x)[0][0, :, 4, 7])


def test_latents_are_form_and_what_it_leaves(tmp_path, small):
    torch.manual_seed(2)
    outer, vae = autoencoder.VAE(autoencoder.FIRST.params), autoencoder.VAE(autoencoder.PARAMS)
    x = torch.rand(40, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        turn = basis.fit(outer, x)
        z = turn(autoencoder.posterior_of(outer, x)[0]).transpose(0, 1).flatten(1)
        half = outer.posterior(F.avg_pool2d(x, 2))[0].transpose(0, 1).flatten(1)
        assert (z[:4] - half).square().mean() < half.var(dim=1).mean()  # better than no guess
        assert float(half.std() * turn.scale) == pytest.approx(1, abs=1e-4)
        apart = z.cov()[:4, 4:] / (z[:4].std(dim=1)[:, None] * z[4:].std(dim=1))
        assert apart.abs().max() < 1e-3 and (z[4:].var(dim=1).diff() <= 1e-6).all()

        mean, picture = vae.posterior(x)[0], vae.decode(vae.posterior(x)[0])
        turned = turn.taken_into(vae)
        torch.testing.assert_close(turned.posterior(x)[0], turn(mean), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(turned.decode(turned.posterior(x)[0]), picture, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(turned.posterior(x)[1], turn.logvar[None, :, None, None].expand_as(mean))


def test_half_of_the_samples_are_at_levels_where_forms_are_decided():
    t = diffusion.timesteps(1000, torch.Generator().manual_seed(0))
    inside = ((t >= 150) & (t < 700)).float().mean()
    assert inside == pytest.approx(0.5 + 0.5 * 0.55, abs=0.01) and t.min() < 5 and t.max() > 994


def test_form_counts_as_much_as_detail():
    class Nothing(nn.Module):
        def forward(self, z, t, context):
            return torch.zeros_like(z)

    z0 = torch.zeros(8, 16, 4, 4)
    alphas = torch.full((1000,), 0.5)
    ids = torch.zeros(8, 3, dtype=torch.long)
    loss = diffusion.v_loss(Nothing(), lambda ids: None, z0, ids, alphas, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    diffusion.timesteps(8, generator)
    v = 0.5**0.5 * torch.randn(z0.shape, generator=generator)
    torch.testing.assert_close(loss, v[:, :4].square().mean() + v[:, 4:].square().mean())


def test_from_pictures_to_an_edit(tmp_path, words, small):
    out = folder(tmp_path / "out", words)
    outer = autoencoder.train_outer(out, 1000, 8)
    autoencoder.train(out, outer, 1000, samples=16)
    assert diffusion.train(out, outer, 1000, samples=64).done == 64
    parts = diffusion.train(out, outer, 1000, samples=96)  # goes on
    done = [json.loads(line)["done"] for line in (out / "diffusion.jsonl").read_text().splitlines()]
    assert parts.done == 96 and done == [64, 96]
    (out / "diffusion.safetensors").unlink()
    same(diffusion.train(out, outer, 1000, samples=96), parts)

    export.export(out, tmp_path / "model")
    model = sage.load_model(tmp_path / "model")
    assert {"mug", "cup", "chequered", "photograph"} <= {*model.prompts.taught}
    assert model.prediction_type == "v_prediction" and model.vae.params.scaling != 1.0 and model.vae.factor == 8
    picture = from_pixels(np.random.default_rng(0).random((32, 32, 3)))
    result = sage.edit(model, picture, source="a red ball", target="a blue ball",
                       config=EditConfig(steps=2, self_level=0, cross_level=0, guidance_scale=1.5))
    assert result.image.size == (32, 32) and torch.isfinite(result.latents).all()

    noisy = diffusion.train(out, outer, 1000, 32, diffusion.NOISY)
    assert noisy.done == 32 and noisy.numbers == parts.numbers
    export.write_json(tmp_path / "model/settings.json", {"sage": {"steps": 3, "self_level": 0, "cross_level": 0}})
    export.export(out, tmp_path / "noisy", diffusion.NOISY.name, settings_of=tmp_path / "model")
    again = sage.load_model(tmp_path / "noisy")
    assert sage.method("sage").recommended(again).steps == 3
    assert not torch.equal(again.unet.conv_out.weight, model.unet.conv_out.weight)
    assert torch.equal(again.vae.decoder.conv_in.weight, model.vae.decoder.conv_in.weight)


@pytest.mark.slow
def test_a_training_goes_on_from_a_model_alone(tmp_path, words, small):
    """Nothing but the folder that a user has: what it encodes is learnt, and its autoencoder exported as it is."""
    first = folder(tmp_path / "first", words)
    outer = autoencoder.train_outer(first, 1000, 8)
    autoencoder.train(first, outer, 1000, samples=16)
    diffusion.train(first, outer, 1000, samples=64)
    export.export(first, tmp_path / "model")
    given = sage.load_model(tmp_path / "model")

    out = folder(tmp_path / "out", words)
    shutil.rmtree(out / "tokenizer")
    vae, seen = networks.take(out, tmp_path / "model")
    assert seen == 64
    z, scale = diffusion.latents(out, vae, 1000)
    x = torch.from_numpy(np.load(out / "data" / "train-0000000.npy")[:8]).permute(0, 3, 1, 2) / 127.5 - 1
    torch.testing.assert_close(torch.from_numpy(z[:8]).float() * scale, given.encode(x), atol=5e-3, rtol=1e-2)
    begun = diffusion.train(out, vae, 1000, samples=64, start=tmp_path / "model", seen=seen)
    for key, value in given.unet.state_dict().items():
        assert torch.equal(begun.averages["unet"].shadow[key], value)
    gone_on = diffusion.train(out, vae, 1000, samples=96)
    assert gone_on.done == 96 and gone_on.numbers["begun"] == 64
    assert networks.take(out, tmp_path / "model")[1] == 64  # a second time it changes nothing

    export.export(out, tmp_path / "again")
    again = sage.load_model(tmp_path / "again")
    assert again.vae.params == given.vae.params
    for key, value in given.vae.state_dict().items():
        torch.testing.assert_close(again.vae.state_dict()[key], value, atol=1e-3, rtol=1e-3)
    assert not torch.equal(again.unet.conv_out.weight, given.unet.conv_out.weight)
    told = json.loads((tmp_path / "again" / "training.json").read_text())
    assert told["autoencoder"]["done"] == 16 and told["diffusion"]["done"] == 96


@pytest.mark.slow
def test_a_flow_is_trained_on_a_finished_text_encoder_and_read_by_name(tmp_path, words, small, monkeypatch):
    out = folder(tmp_path / "out", words)
    outer = autoencoder.train_outer(out, 1000, 8)
    autoencoder.train(out, outer, 1000, samples=8)
    text = diffusion.train(out, outer, 1000, samples=32).averages["text"].shadow
    flow.train(out, outer, 1000, samples=32)
    diffusion.train(out, outer, 1000, samples=64)  # the text encoder moves on: the flow's does not
    parts = flow.train(out, outer, 1000, samples=96)
    for key, value in text.items():
        assert torch.equal(parts.averages["text"].shadow[key], value)
    assert parts.averages["transformer"].shadow["proj_out.weight"].any()

    export.export_flow(out, tmp_path / "weights" / "stilllife-flow")
    monkeypatch.setenv("SAGE_WEIGHTS", str(tmp_path / "weights"))
    model = sage.load_model("stilllife-flow")
    assert (model.family, model.prediction_type, model.pixel_multiple) == ("flux", "flow", 8)
    assert {"mug", "chequered"} <= {*model.prompts.taught} and model.recommends.keys() == {"generate/plain"}
    ours = parts.averages["transformer"].shadow["x_embedder.weight"]
    assert torch.equal(model.transformer.x_embedder.weight, ours.half().float())
    made, = sage.generate(model, "a red ball", sage.method("plain").Settings(steps=2, guidance_scale=3.0))
    assert made.image.size == (32, 32) and torch.isfinite(made.latents).all()

    diffusion.train(out, outer, 1000, samples=64)
    export.export(out, tmp_path / "weights" / "stilllife")
    before = parts.averages["transformer"].shadow["x_embedder.weight"].clone()
    taught = flow.train(out, outer, 1000, samples=128, taught_by=tmp_path / "weights" / "stilllife")
    assert not torch.equal(taught.averages["transformer"].shadow["x_embedder.weight"], before)

    state = out / "flow.safetensors"
    state.unlink()
    again = flow.train(out, outer, 1000, samples=96, text_of=tmp_path / "weights" / "stilllife-flow")
    for key, value in parts.averages["text"].shadow.items():
        assert torch.equal(again.averages["text"].shadow[key], value.half().float())

    state.unlink()
    begun = flow.train(out, outer, 1000, samples=32, text_of=tmp_path / "weights" / "stilllife-flow", coarse=True)
    assert begun.path.name == "flow-coarse.safetensors" and begun.done == 32 and not state.exists()
    gone_on = flow.train(out, outer, 1000, samples=1, text_of=tmp_path / "weights" / "stilllife-flow")
    first = gone_on.averages["transformer"].shadow["x_embedder.weight"]
    wanted = begun.averages["transformer"].shadow["x_embedder.weight"].unflatten(1, (-1, 4)).sum(dim=2)
    torch.testing.assert_close(first, wanted, atol=1e-3, rtol=1e-3)  # of one step
    begun.path.unlink()
    gone_on.path.unlink()
    flow.train(out, outer, 1000, samples=96, text_of=tmp_path / "weights" / "stilllife-flow")

    # Beside a model of the same autoencoder and words its own of them are not kept, and it goes on from itself.
    lender, borrower = (tmp_path / "weights" / name for name in ("stilllife", "stilllife-flow"))
    shutil.rmtree(lender / "text_encoder")
    shutil.copytree(borrower / "text_encoder", lender / "text_encoder")
    shutil.rmtree(borrower)
    export.export_flow(out, borrower, lender)
    assert json.loads((borrower / "shared.json").read_text()) == dict.fromkeys(("vae", "text_encoder", "tokenizer"),
                                                                               "stilllife")
    assert {path.name for path in borrower.iterdir() if path.is_dir()} == {"transformer", "scheduler"}
    shipped = sage.load_model(borrower)
    state.unlink()
    begun = flow.train(out, outer, 1000, samples=96, text_of=borrower, start=borrower)
    assert begun.done == 96 == begun.numbers["begun"]
    for key, value in shipped.transformer.state_dict().items():
        assert torch.equal(begun.averages["transformer"].shadow[key], value)
    shutil.rmtree(lender / "vae")
    export.export_flow(out, borrower, lender)  # nothing to share with: it has its own
    assert (borrower / "vae").is_dir() and "vae" not in json.loads((borrower / "shared.json").read_text())


def test_the_times_of_a_flow_are_stratified_and_most_near_noise():
    generator = torch.Generator().manual_seed(0)
    t = flow.times(1000, generator)
    assert ((t > 0) & (t < 1)).all()
    assert torch.equal((t[:250] * 250).floor(), torch.arange(250.0))
    assert (torch.logit(t[250:]).mean() - flow.MEAN).abs() < 0.01 and (t > 0.85).float().mean() > 0.15


def test_the_loss_of_a_flow_is_that_of_its_velocity_and_the_end_mark_is_the_pooled_text(words):
    """With every weight of the last layer zero the velocity is 0, and the loss the mean of (eps - x0)^2."""
    torch.manual_seed(0)
    net = flow.FluxTransformer(replace(networks.FLOW, width=32, heads=1, mlp_width=128, depth=1, depth_single=1))
    flow.begin(net)
    z0, ids = torch.randn(4, 16, 4, 4), torch.tensor([[5, 6, 9, 9], [5, 9, 9, 9], [5, 6, 7, 9], [5, 6, 9, 9]])
    seen = []
    net.register_forward_pre_hook(lambda module, given: seen.append(given))

    def text(ids):
        return ids[..., None].float().expand(-1, -1, 192) + torch.arange(4)[:, None] / 10

    loss = flow.flow_loss(net, text, z0, ids, 9, torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(1)
    t = flow.times(4, generator)
    eps = torch.randn(z0.shape, generator=generator)
    torch.testing.assert_close(loss, (eps - z0).square().mean())
    z, given, tokens, pooled = seen[0]
    torch.testing.assert_close(z, (1 - t)[:, None, None, None] * z0 + t[:, None, None, None] * eps)
    assert torch.equal(given, t) and torch.equal(pooled[:, 0], torch.tensor([9.2, 9.1, 9.3, 9.2]))


class KnowsThePicture(nn.Module):
    """Predicts v as a diffusion that has only ever seen one picture would."""

    def __init__(self, x0):
        super().__init__()
        self.x0 = x0

    def forward(self, z, timestep, context):
        table = alphas_cumprod(networks.SCHEDULE).numpy()
        log_snr = np.interp(timestep, np.arange(len(table)), np.log(table / (1 - table)))
        alpha = torch.from_numpy(1 / (1 + np.exp(-log_snr)))[:, None, None, None].float()
        eps = (z - alpha.sqrt() * self.x0) / (1 - alpha).sqrt()
        return alpha.sqrt() * eps - (1 - alpha).sqrt() * self.x0


def test_a_diffusion_teaches_the_velocity_where_it_has_levels():
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(1, 16, 4, 4, generator=generator), torch.randn(8, 16, 4, 4, generator=generator)
    t = torch.tensor([0.001, 0.03, 0.1, 0.3, 0.5, 0.8, 0.93, 0.95])
    at, teacher = t[:, None, None, None], flow.Teacher(KnowsThePicture(x0))
    assert teacher.knows(t).tolist() == [False, *[True] * 6, False]
    taught = teacher((1 - at) * x0 + at * eps, t, torch.zeros(8, 4, 192))
    torch.testing.assert_close(taught[1:-1], (eps - x0)[1:-1], atol=2e-3, rtol=2e-3)

    net = flow.FluxTransformer(replace(networks.FLOW, width=32, heads=1, mlp_width=128, depth=1, depth_single=1))
    flow.begin(net)

    def text(ids):
        return torch.zeros(*ids.shape, 192)

    many, ids = x0.expand(32, -1, -1, -1), torch.zeros(32, 4, dtype=torch.long)
    drawn, learnt = (flow.flow_loss(net, text, many, ids, 0, torch.Generator().manual_seed(1)),
                     flow.taught_loss(net, text, many, ids, ids, ids[0], 0, torch.Generator().manual_seed(1), teacher))
    known = teacher.knows(flow.times(32, torch.Generator().manual_seed(1))).float().mean()
    # Of one picture nothing is left open; where the teacher has no level one caption of two is left out.
    assert 0.7 < known < 1
    torch.testing.assert_close(learnt, drawn * (1 + known) / 2, atol=0.02, rtol=0.02)
    wrong = flow.taught_loss(net, text, many, ids, ids, ids[0], 0, torch.Generator().manual_seed(1),
                             flow.Teacher(KnowsThePicture(3 * x0)))
    assert wrong > 1.5 * learnt


def test_what_two_captions_change_is_asked_for_beside_the_rest_and_so_is_guidance(monkeypatch):
    """A teacher who shows another picture for another caption, and a network that hears none."""
    monkeypatch.setattr(flow, "times", lambda batch, generator: torch.full((batch,), 0.5))
    w = torch.tensor([1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 4.0, 4.0])
    monkeypatch.setattr(flow, "guidances", lambda batch, generator: w)
    x0, other, nothing = torch.randn(3, 1, 16, 4, 4, generator=torch.Generator().manual_seed(0))
    pictures = torch.cat([x0, other, nothing])

    class Hears(KnowsThePicture):
        def forward(self, z, timestep, context):
            self.x0 = pictures[context[:, 0, 0].long()]
            return super().forward(z, timestep, context)

    def text(ids):
        return ids[..., None].float().expand(-1, -1, 192)

    net = flow.FluxTransformer(replace(networks.FLOW, width=32, heads=1, mlp_width=128, depth=1, depth_single=1))
    flow.begin(net)
    told = []
    net.register_forward_pre_hook(lambda module, given: told.append(given[4]))
    many = x0.expand(8, -1, -1, -1)
    loss = flow.taught_loss(net, text, many, torch.zeros(8, 4, dtype=torch.long), torch.ones(8, 4, dtype=torch.long),
                            torch.full((4,), 2), 9, torch.Generator().manual_seed(1), flow.Teacher(Hears(x0)))
    assert torch.equal(told[0], torch.cat([w, w]))
    eps = torch.randn(many.shape, generator=torch.Generator().manual_seed(1))
    # The velocity to each picture is that of the noise that would make the same latents of it.
    own, there, away = ((0.5 * x0 + 0.5 * eps - 0.5 * picture) / 0.5 - picture for picture in (x0, other, nothing))
    own, there = (away + w[:, None, None, None] * (one - away) for one in (own, there))
    expected = (own.square() + there.square()) / 2 + flow.CONTRAST * (own - there).square()
    torch.testing.assert_close(loss, expected.mean(), atol=5e-2, rtol=5e-3)


def test_guidance_is_learnt_from_none_to_the_most():
    w = flow.guidances(4000, torch.Generator().manual_seed(0))
    assert w.min() == 1 and 3.99 < w.max() <= flow.STRONGEST
    assert (w == 1).float().mean() == pytest.approx(flow.PLAIN, abs=0.02)
    assert w[w > 1].mean() == pytest.approx(2.5, abs=0.05)


def test_a_flow_goes_on_from_one_with_a_quarter_of_the_tokens():
    torch.manual_seed(0)
    small = dict(width=32, heads=1, mlp_width=128, depth=1, depth_single=1)
    coarse, fine = (kind(replace(params, **small)) for kind, params in (
        (flow.Coarse, networks.COARSE), (flow.FluxTransformer, networks.FLOW)))
    fine.load_state_dict(flow.finer(coarse.state_dict()))
    one = torch.randn(5, 16)
    torch.testing.assert_close(fine.x_embedder(one), coarse.x_embedder(one.repeat_interleave(4, dim=1)))
    hidden = torch.randn(5, 32)
    torch.testing.assert_close(fine.proj_out(hidden), coarse.proj_out(hidden).unflatten(1, (16, 4)).mean(dim=2))
    places = fine.positions(6, 8, torch.float32).view(6, 8, -1)
    assert torch.equal(coarse.positions(3, 4, torch.float32).view(3, 4, -1), places[::2, ::2])
    z, t, text = torch.randn(1, 16, 6, 8), 0.5, torch.randn(1, 4, 192)
    assert fine(z, t, text, text[:, 0]).shape == coarse(z, t, text, text[:, 0]).shape == z.shape


def test_only_a_network_of_the_same_latents_teaches(small, tmp_path, monkeypatch):
    monkeypatch.setattr(sage, "load_model", lambda *_, **__: SimpleNamespace(
        unet=SimpleNamespace(params=replace(networks.UNET, in_channels=4))))
    with pytest.raises(sage.SageError, match="it knows other latents, and cannot teach"):
        networks.unet_of(tmp_path)


def test_the_networks_of_a_smaller_model_are_inherited(tmp_path, words, small, monkeypatch):
    """Its latents are our channels of form: of them the larger one says the same, and of detail nothing."""
    start, words = tmp_path / "start", tokenizer.train(words)
    few = replace(networks.UNET, in_channels=4, out_channels=4)
    torch.manual_seed(1)
    given = {"text": networks.CLIPText(networks.text_params(len(words))), "unet": networks.UNet(few)}
    (start / "tokenizer").mkdir(parents=True)
    (start / "tokenizer" / "vocab.json").write_text(json.dumps(words.get_vocab()))
    monkeypatch.setattr(sage, "load_model", lambda *_, **__: SimpleNamespace(**given))
    text, unet = networks.CLIPText(networks.text_params(len(words))), networks.UNet(networks.UNET)
    networks.inherit(text, words, unet, start)
    assert all(torch.equal(text.state_dict()[k], v) for k, v in given["text"].state_dict().items())
    assert torch.equal(unet.state_dict()["mid_block.resnets.0.conv1.weight"],
                       given["unet"].state_dict()["mid_block.resnets.0.conv1.weight"])
    z, context = torch.randn(1, 16, 8, 8), torch.randn(1, 5, networks.UNET.context_width)
    with torch.no_grad():
        ours, theirs = unet(z, 500, context), given["unet"](z[:, :4], 500, context)
    torch.testing.assert_close(ours[:, :4], theirs)
    assert not ours[:, 4:].any()

    again = networks.UNet(networks.UNET)
    given["unet"] = unet
    networks.inherit(text, words, again, start)
    assert all(torch.equal(again.state_dict()[k], v) for k, v in unet.state_dict().items())
