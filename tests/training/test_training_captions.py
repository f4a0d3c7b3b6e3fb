"""Captions as ids: what they say, and how noisy ones are wrong."""

import numpy as np
import pytest

from sage.stilllife import ATTRIBUTES
from sage.stilllife.prompts import draw_wording, everything, phrases
from sage.stilllife.scenes import FORMS, VALUES
from training import tokenizer
from training.captions import IGNORE, Captioner, Noise, scene_of

SEEDS = np.arange(600)


@pytest.fixture(scope="module")
def captioner(tmp_path_factory):
    return Captioner(tokenizer.train(tmp_path_factory.mktemp("tokenizer"), captions=1000))


def test_everything_that_can_be_said_fits(captioner):
    rng = np.random.default_rng(0)
    longest = 0
    for seed in SEEDS:
        scene, wording = scene_of(int(seed)), draw_wording(rng)
        pieces = phrases(scene, wording, everything(scene, wording))
        longest = max(longest, sum(len(captioner.tokens(words)) for _, words in pieces))
    assert longest + 2 <= captioner.length < 2 * longest


def test_one_caption_in_ten_is_empty(captioner):
    ids = captioner.ids(SEEDS, np.random.default_rng(0))
    assert ids.shape == (600, captioner.length)
    assert 0.05 < (ids[:, 1] == captioner.tokenizer.eos_token_id).float().mean() < 0.16


def test_pairs_differ_in_one_thing_that_they_name(captioner):
    ids, others = captioner.pairs(SEEDS[:200], np.random.default_rng(0))
    assert ids.shape == others.shape == (200, captioner.length)
    end, said = captioner.tokenizer.eos_token_id, captioner.tokenizer.decode
    empty = others[:, 1] == end
    assert 0.1 < empty.float().mean() < 0.3 and not (ids[:, 1] == end).any()
    forms = 0
    for ours, theirs in zip(ids[~empty].tolist(), others[~empty].tolist(), strict=True):
        a, b = (said(row[1:row.index(end)]) for row in (ours, theirs))
        assert a != b
        forms += {f for f in FORMS if f in a.split()} != {f for f in FORMS if f in b.split()}
    assert forms / len(ids[~empty]) > 0.4


def test_labels_are_those_of_what_is_said(captioner):
    ids, places, labels = captioner.labelled(SEEDS[:60], np.random.default_rng(0))
    said = 0
    for i, seed in enumerate(SEEDS[:60]):
        values = scene_of(int(seed)).attributes()
        for a in ATTRIBUTES:
            if labels[a][i] != IGNORE:
                assert VALUES[a][labels[a][i]] == values[a]
                said += 1
        word = captioner.tokenizer.decode(ids[i, places["form"][i]])
        assert word in ("ball", "sphere", "cube", "block", "mug", "cup", values["form"])
        assert ids[i, places["end"][i]] == captioner.tokenizer.eos_token_id
    assert said > 120


def test_noise_mistakes_a_tenth():
    rng = np.random.default_rng(0)
    wrong, possible, strange = 0, 0, 0
    for seed in SEEDS:
        a = scene_of(int(seed)).attributes()
        b = Noise(strange=0.0).mistaken(int(seed), SEEDS, rng).attributes()
        present = [n for n in ATTRIBUTES if a[n] != "none"]
        assert all(b[n] == "none" for n in ATTRIBUTES if n not in present)
        wrong += sum(a[n] != b[n] for n in present)
        possible += len(present)
        strange += Noise(wrong=0.0).mistaken(int(seed), SEEDS, rng) != scene_of(int(seed))
    assert 0.07 < wrong / possible < 0.11
    assert 0.06 < strange / len(SEEDS) < 0.14


def test_noisy_captions_tell_of_other_scenes(captioner):
    clean = Captioner(captioner.tokenizer, Noise(0.0, 0.0)).ids(SEEDS, np.random.default_rng(1))
    noisy = Captioner(captioner.tokenizer, Noise(1.0, 0.0)).ids(SEEDS, np.random.default_rng(1))
    assert (clean != noisy).any(1).float().mean() > 0.8
