"""The training goes on where it stopped, and what it exports is a model that edits."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import sage
from sage import EditConfig
from sage.models.sd.unet import UNetParams
from sage.models.sd.vae import VAEParams
from sage.pictures import from_pixels
from training import autoencoder, diffusion, export, run, sheets, tokenizer


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


def test_from_pictures_to_an_edit(tmp_path, monkeypatch):
    monkeypatch.setattr(autoencoder, "PARAMS", VAEParams(channels=(8, 8, 8), layers_per_block=1, groups=4, scaling=1.0))
    monkeypatch.setattr(diffusion, "UNET", UNetParams(
        channels=(16, 16), attention=(True, True), layers_per_block=1, heads=(1, 1), context_width=192, groups=8))
    monkeypatch.setattr(diffusion, "warm_up_text", lambda *args, **options: 0.0)
    monkeypatch.setattr(sheets, "samples", lambda model, path: path.write_bytes(b""))
    (tmp_path / "data").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (1000, 64, 64, 3), dtype=np.uint8)
    for name in ("train", "held_out"):
        np.save(tmp_path / "data" / f"{name}-0000000.npy", pixels)
    tokenizer.train(tmp_path / "tokenizer", captions=200)

    assert autoencoder.train(tmp_path, 1000, samples=16).done == 16
    assert diffusion.train(tmp_path, 1000, samples=64).done == 64
    assert diffusion.train(tmp_path, 1000, samples=96).done == 96  # goes on
    done = [json.loads(line)["done"] for line in (tmp_path / "diffusion.jsonl").read_text().splitlines()]
    assert done == [64, 96]
    export.export(tmp_path, tmp_path / "model")
    model = sage.load_model(tmp_path / "model")
    assert model.prediction_type == "v_prediction" and model.vae.params.scaling != 1.0
    result = sage.edit(model, from_pixels(pixels[0] / 255), source="a red ball", target="a blue ball",
                       config=EditConfig(steps=2, self_level=0, cross_level=0, guidance_scale=1.5))
    assert result.image.size == (64, 64) and torch.isfinite(result.latents).all()
