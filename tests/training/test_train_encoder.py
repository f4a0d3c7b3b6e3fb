"""The encoder's training goes on where it stopped, learns, and exports what is loaded and measured."""

import json
import shutil

import numpy as np
import pytest
import torch

from sage.bench.encoder import EncoderParams, load_encoder
from sage.models.sd.clip import CLIPTextParams
from sage.models.sd.vae import VAE, VAEParams
from sage.stilllife import nameable
from sage.stilllife.prompts import WORDS
from sage.stilllife.scenes import VALUES
from training import data, encoder, run, tokenizer
from training.captions import IGNORE, Captioner

CHUNK = 50


def tiny(vocabulary, length):
    return EncoderParams((8, 8, 16), (1, 1, 1), 4, 2, 8, CLIPTextParams(16, 32, 2, 1, vocabulary, length))


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    return tokenizer.train(folder, captions=200), folder


@pytest.fixture
def out(tmp_path, monkeypatch):
    """Little that looks like rendered pictures, and a constant learning rate."""
    for module in (data, encoder):
        monkeypatch.setattr(module, "CHUNK", CHUNK)
    monkeypatch.setattr(run, "learning_rate", lambda *args, **options: 1e-3)
    (tmp_path / "data").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (CHUNK, 64, 64, 3), dtype=np.uint8)
    for name in ("train", "held_out"):
        np.save(tmp_path / "data" / f"{name}-0000000.npy", pixels)
    return tmp_path


def vae():
    torch.manual_seed(0)
    return VAE(VAEParams(channels=(8, 8, 8), layers_per_block=1, groups=4, scaling=1.0)).requires_grad_(False)


def train(out, words, samples):
    return encoder.train(out, words[0], vae(), CHUNK, samples, trips=CHUNK, batch_size=8, watched=20, make=tiny)


def test_a_resumed_training_is_the_uninterrupted_one(out, words, tmp_path_factory, monkeypatch):
    steps, loss_of = [], encoder.loss_of
    monkeypatch.setattr(encoder, "loss_of", lambda *args: steps.append(1) or loss_of(*args))
    other = tmp_path_factory.mktemp("other")
    shutil.copytree(out / "data", other / "data")
    whole = train(out, words, 32)
    train(other, words, 16)
    parts = train(other, words, 32)
    assert len(steps) == 4 + 2 + 2
    assert [json.loads(line)["done"] for line in (other / "encoder.jsonl").read_text().splitlines()] == [16, 32]
    for a, b in zip(whole.modules["model"].parameters(), parts.modules["model"].parameters(), strict=True):
        assert torch.equal(a, b)
    for key, value in whole.averages["model"].shadow.items():
        assert torch.equal(value, parts.averages["model"].shadow[key])


def test_what_is_exported_is_loaded_and_measured(out, words):
    state = train(out, words, 16)
    weights = out / "weights"
    shutil.copytree(words[1], weights / "tokenizer")
    found = encoder.export(out, weights, words[0], vae(), held_out=CHUNK, make=tiny)
    assert set(found.accuracy) == {"true pictures", "autoencoded pictures"}
    assert all(right["pictures"] == CHUNK for right in found.accuracy.values())
    shadow = state.averages["model"].shadow
    for name, weight in load_encoder(weights / "encoder").net.state_dict().items():
        assert torch.equal(weight, shadow[f"net.{name}"].half().float())


def test_labels_are_those_of_what_a_caption_says(words):
    captioner = Captioner(words[0])
    seeds = np.arange(40)
    ids, ends, labels = encoder.captions(captioner, seeds, np.random.default_rng(0))
    unsaid = 0
    for i, seed in enumerate(seeds):
        text = captioner.tokenizer.decode(ids[i, 1:ends[i]])
        assert ids[i, ends[i]] == captioner.tokenizer.eos_token_id
        for name, value in encoder.scene_of(int(seed)).attributes().items():
            if labels[name][i] == IGNORE:
                unsaid += 1
            else:
                assert VALUES[name][labels[name][i]] == value
                assert any(words.removeprefix("a ") in text for words in WORDS.get(value, (value,)))
    assert unsaid > 40


def test_pictures_keep_their_places_and_hues():
    g = torch.Generator().manual_seed(0)
    x = torch.zeros(64, 3, 16, 16)
    x[:, 0, 8, 8] = 1.0  # one red pixel
    y = encoder.disturbed(x, g)
    brightest = (y[:, 0] - y[:, 1]).flatten(1).argmax(dim=1)
    assert set((brightest // 16).tolist()) == {7, 8, 9} == set((brightest % 16).tolist())
    assert y.min() >= -1 and y.max() <= 1


def test_of_a_cut_picture_a_rectangle_or_all_else_is_left():
    kept = (encoder.cut(torch.ones(40, 3, 30, 24), np.random.default_rng(0)) == 1).all(dim=1)
    for mask in kept:
        rows, columns = mask.any(dim=1), mask.any(dim=0)
        inside = mask[rows][:, columns]
        outside = ~mask
        hole = outside[outside.any(dim=1)][:, outside.any(dim=0)]
        assert inside.all() or hole.all()
    assert 0 < kept.float().mean(dim=(1, 2)).min() and len({int(m.sum()) for m in kept}) > 10


def test_info_nce_is_the_cross_entropy_of_the_right_pair():
    a, b = torch.randn(5, 7), torch.randn(5, 7)
    cosines = torch.stack([torch.stack([torch.cosine_similarity(x, y, dim=0) for y in b]) for x in a]) * 3.0
    rows = torch.stack([cosines[i, i] - cosines[i].logsumexp(0) for i in range(5)]).mean()
    columns = torch.stack([cosines[i, i] - cosines[:, i].logsumexp(0) for i in range(5)]).mean()
    found = encoder.info_nce(a, b, torch.tensor(3.0).log())
    assert found.item() == pytest.approx(-(rows + columns).item() / 2, rel=1e-4)


def test_attributes_without_a_fitting_name_have_no_label():
    scenes = [encoder.scene_of(i) for i in range(200)]
    labels = encoder.labels_of(scenes)
    for name in ("position", "size"):
        unsaid = torch.tensor([name not in nameable(scene) for scene in scenes])
        assert torch.equal(labels[name] == IGNORE, unsaid) and 0 < unsaid.sum() < 60
    second = labels["second_form"]
    assert (second != IGNORE).all() and 20 < (second > 0).sum() < 100
