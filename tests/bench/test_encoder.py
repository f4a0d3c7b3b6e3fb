"""The encoder that judges still lifes: the bundled one sees, and a damaged one is refused."""

import dataclasses
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load, save_file

import sage
from sage.bench import encoder as encoders
from sage.bench.cases import Case, encode_mask
from sage.bench.encoder import Encoder, EncoderNet, EncoderParams, as_config, load_encoder, true_things
from sage.bench.metrics import edited_thing, structure_distance
from sage.bench.scoring import score
from sage.bench.stilllife import draw
from sage.errors import ModelError
from sage.models.known import installed
from sage.models.sd.clip import CLIPTextParams
from sage.pictures import from_pixels
from sage.stilllife import caption, held_out_scene, render
from sage.stilllife.scenes import VALUES

COUNT, FIRST = 60, 700_000  # far from every seed that was trained on or measured


def pixels(scene, side=128):
    return (render(scene, side) * 255 + 0.5).astype(np.uint8)


@pytest.fixture(scope="module")
def encoder():
    return load_encoder()


@pytest.fixture(scope="module")
def scenes():
    return [held_out_scene(FIRST + i) for i in range(COUNT)]


@pytest.fixture(scope="module")
def shown(scenes):
    return [pixels(scene) for scene in scenes]


def share(encoder, pictures, scenes):
    return np.mean([seen[name] == value for seen, scene in zip(map(encoder.attributes, pictures), scenes, strict=True)
                    for name, value in scene.attributes().items()])


def test_it_reads_true_pictures(encoder, scenes, shown):
    right = share(encoder, shown, scenes)
    said = np.mean([encoder.accuracy["true pictures"][name] for name in VALUES])
    assert right >= 0.97 and abs(right - said) < 0.02


def test_it_reads_autoencoded_pictures_and_larger_ones(encoder, scenes, shown):
    model = sage.load_model("stilllife", device="cpu")
    x = torch.from_numpy(np.stack(shown[:20])).permute(0, 3, 1, 2).float() / 127.5 - 1
    y = ((model.decode(model.encode(x)).clamp(-1, 1) + 1) * 127.5 + 0.5).byte().permute(0, 2, 3, 1).numpy()
    assert share(encoder, y, scenes[:20]) >= 0.95
    assert share(encoder, [pixels(scene, 160) for scene in scenes[:10]], scenes[:10]) >= 0.95


def test_pictures_and_prompts_find_each_other(encoder, scenes, shown):
    unit = [np.stack([v / np.linalg.norm(v) for v in map(f, of)]) for f, of in (
        (encoder.image, shown), (encoder.text, [caption(s, np.random.default_rng(i), keep=VALUES)
                                                for i, s in enumerate(scenes)]))]
    similar = unit[0] @ unit[1].T
    assert (similar.argmax(axis=1) == np.arange(COUNT)).mean() >= 0.9
    assert np.isfinite(encoder.text("")).all() and np.isfinite(encoder.text("mug " * 100)).all()


def test_structure_is_where_things_are(encoder, scenes):
    scene = next(s for s in scenes if s.second is None and s.main.position == "left")
    keys = encoder.keys(pixels(scene))
    assert keys.shape[0] == 256 and structure_distance(keys, keys) == 0
    main = scene.main
    recoloured = dataclasses.replace(scene, main=dataclasses.replace(main, colour="red" if main.colour != "red" else
                                                                     "orange"))
    moved = dataclasses.replace(scene, main=dataclasses.replace(main, position="right"))
    a, b = (structure_distance(keys, encoder.keys(pixels(s))) for s in (recoloured, moved))
    assert a < b / 2


def test_distance_is_lpips_formula(encoder, shown):
    x, y = (p.astype(np.float32) / 127.5 - 1 for p in shown[:2])
    expected = 0.0
    tensors = [torch.from_numpy(p).permute(2, 0, 1)[None] for p in (x, y)]
    for f, g in zip(*(encoder.net.features(t) for t in tensors), strict=True):
        f, g = (v[0].numpy().astype(np.float64) for v in (f, g))
        _, h, w = f.shape
        cells = [np.square(f[:, i, j] / np.linalg.norm(f[:, i, j]) - g[:, i, j] / np.linalg.norm(g[:, i, j])).sum()
                 for i in range(h) for j in range(w)]
        expected += np.mean(cells)
    assert encoder.distance(x, y) == pytest.approx(expected, rel=1e-4) and encoder.distance(x, x) == 0
    assert encoder.distance(x, np.clip(x + 0.02, -1, 1)) < encoder.distance(x, y) / 10


@pytest.mark.slow
def test_figures_of_a_still_life(encoder):
    e = encoder.extractors()
    for kind in (1, 3, 6):
        edit = draw(kind, 1)
        source, truth = (from_pixels(p) for p in edit.pictures())
        case = Case("a", kind, "a.png", edit.source_prompt, edit.target_prompt, encode_mask(edit.mask()), truth="a.png",
                    attributes=(edit.source.attributes(), edit.target.attributes()))
        untouched, right = (score(case, source, truth, picture, e) for picture in (source, truth))
        assert untouched["structure"] == 0 == right["inside_features"] == right["outside_features"]
        assert untouched["inside_features"] > 0.01 > untouched["outside_features"]
        assert untouched["kept"] >= 0.8 and untouched["asked"] <= 0.5 < right["asked"] and right["kept"] >= 0.7
        assert right["prompt_whole"] > untouched["prompt_whole"] > right["prompt_whole"] / 4
        assert {"prompt_source", "prompt_edited", "background_features"} <= set(right)
        reconstructed = score(case.unchanged(), source, source, source, e)
        assert reconstructed["asked"] is None and reconstructed["kept"] >= 0.8


@pytest.mark.slow
def test_melted_is_far_from_every_true_thing_of_its_form(encoder, scenes, shown):
    rows, columns = np.mgrid[:128, :128]
    wavy = (np.clip(rows + 8 * np.sin(columns / 10), 0, 127).astype(int),
            np.clip(columns + 8 * np.sin(rows / 10), 0, 127).astype(int))
    found = np.array([[encoder.melted(picture, "form", scene.main.form) for picture in (true, true[wavy])]
                      for scene, true in zip(scenes[:12], shown, strict=False)])
    others = [encoder.melted(true, "form", "ball" if scene.main.form != "ball" else "cube")
              for scene, true in zip(scenes[:12], shown, strict=False)]
    true, melted = np.median(found, axis=0)
    assert true < 0.05 and melted > 3 * true and np.median(others) > 5 * true
    assert list(map(np.ndarray.tobytes, true_things("form", "mug", 16))) == list(
        map(np.ndarray.tobytes, true_things("form", "mug", 16)))


@pytest.mark.parametrize("changes, expected", [
    ({"form": "cone"}, "form"), ({"floor": "sand"}, "form"), ({"second_colour": "blue"}, "second_form"),
    ({"second_colour": "blue", "second_form": "cube"}, "second_form"),
    ({"colour": "blue", "second_form": "cube"}, "form"),
    ({"second_form": "none", "second_colour": "none"}, "form"), ({}, "form")])
def test_the_thing_that_may_have_melted_is_the_edited_one(changes, expected):
    source = {**held_out_scene(FIRST).attributes(), "second_form": "ball", "second_colour": "green", "form": "mug",
              "colour": "red", "floor": "snow"}
    assert edited_thing(source, source | changes) == expected


def test_seeing_twice_is_seeing_once(encoder, shown, monkeypatch):
    monkeypatch.setattr(encoders, "REMEMBERED", 2)
    calls, features = [], encoder.net.features
    fresh = Encoder(encoder.net, encoder.prompts, encoder.accuracy)
    monkeypatch.setattr(encoder.net, "features", lambda x: calls.append(1) or features(x))
    first = fresh.image(shown[0])
    fresh.keys(shown[0]), fresh.attributes(shown[0])
    assert len(calls) == 1
    for picture in shown[1:4]:
        fresh.image(picture)
    assert np.array_equal(fresh.image(shown[0]), first) and len(calls) == 5 and len(fresh._seen) == 2


def test_it_says_how_far_it_can_be_trusted(encoder):
    text = encoder.extractors().versions["encoder"]
    assert "true pictures right (form " in text and "autoencoded pictures right" in text and "\n" not in text


# ---- folders


TINY = EncoderParams((8, 8, 16), (1, 1, 1), 4, 2, 8, CLIPTextParams(16, 32, 2, 1, 4000, 64))
ACCURACY = {"true pictures": {"pictures": 10, **{name: 0.5 for name in VALUES}}}


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    shutil.copytree(installed("stilllife") / "tokenizer", tmp_path / "tokenizer")
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder/config.json").write_text(json.dumps(as_config(TINY, ACCURACY)))
    weights = {k: v.half() for k, v in EncoderNet(TINY).state_dict().items()}
    save_file(weights, tmp_path / "encoder/model.fp16.safetensors")
    return tmp_path / "encoder"


def refused(folder, message):
    with pytest.raises(ModelError, match=message) as found:
        load_encoder(folder)
    assert "\n" not in str(found.value)


def test_a_folder_is_read(folder):
    found = load_encoder(folder)
    assert found.net.params == TINY and found.accuracy == ACCURACY
    assert set(found.attributes(np.zeros((64, 64, 3), np.uint8))) == set(VALUES)


@pytest.mark.parametrize("change, message", [
    ({"channels": [8, 8]}, "channels is .* three or four whole numbers"),
    ({"channels": [8, 8, 10**9]}, "channels is .* three or four whole numbers"),
    ({"channels": "8"}, "channels is"),
    ({"channels": [8, 8, 8, 8]}, "do not become grids"),
    ({"side": 128}, "do not become grids"),
    ({"side": "64"}, "side is"),
    ({"blocks": [1, 1, True]}, "blocks is"),
    ({"blocks": [1, 1, 4000]}, "too many layers"),
    ({"text_layers": 4000}, "too many layers"),
    ({"groups": 3}, "do not divide"),
    ({"heads": 0}, "heads is 0"),
    ({"width": None}, "width is null"),
    ({"width": 16}, "of another shape"),
    ({"vocabulary": 10}, "of another shape"),
    ({"accuracy": {}}, "accuracy is"),
    ({"accuracy": {"true pictures": {"form": 1.0}}}, "accuracy is"),
    ({"accuracy": {"true pictures": ACCURACY["true pictures"] | {"form": 2}}}, "accuracy is"),
    ({"accuracy": {"true pictures": ACCURACY["true pictures"] | {"form": float("nan")}}}, "accuracy is")])
def test_a_strange_configuration_is_refused(folder, change, message):
    (folder / "config.json").write_text(json.dumps(as_config(TINY, ACCURACY) | change))
    refused(folder, message)


def test_damaged_files_are_refused(folder):
    path = folder / "model.fp16.safetensors"
    whole = path.read_bytes()
    weights = load(whole)
    path.write_bytes(whole[:2000])
    refused(folder, "truncated or no safetensors")
    save_file({k: v for k, v in weights.items() if k != "readers.queries"}, path)
    refused(folder, "missing .readers.queries")
    save_file(weights | {"to_common.bias": weights["to_common.bias"] * float("nan")}, path)
    refused(folder, "NaN")
    path.unlink()
    refused(folder, "does not exist")
    path.write_bytes(whole)
    (folder / "config.json").write_text("[]")
    refused(folder, "JSON object")
    (folder / "config.json").unlink()
    refused(folder, "config.json does not exist")


def test_a_folder_of_before_pictures_had_another_side_is_read(folder):
    config = as_config(TINY, ACCURACY)
    del config["side"]
    (folder / "config.json").write_text(json.dumps(config))
    assert load_encoder(folder).net.params == TINY


def test_larger_pictures_take_another_step():
    net = EncoderNet(replace(TINY, channels=(4, *TINY.channels), blocks=(1, *TINY.blocks), groups=4, side=128))
    grids = net.features(torch.zeros(1, 3, 128, 128))
    assert [g.shape[-1] for g in grids] == [64, 32, 16, 8]
    found = Encoder(net, None, ACCURACY)
    assert found.keys(np.zeros((64, 64, 3), np.uint8)).shape == (256, TINY.channels[1])


def test_pictures_of_any_size_are_made_64():
    checks = np.indices((128, 256)).sum(0)[..., None].repeat(3, -1) % 2 * np.uint8(255)
    assert torch.allclose(encoders.prepared(checks.astype(np.uint8), 64), torch.zeros(1, 3, 64, 64), atol=1e-6)
    grey = np.asarray(Image.new("RGB", (20, 30), (51, 51, 51)))
    assert torch.allclose(encoders.prepared(grey, 64), torch.full((1, 3, 64, 64), -0.6), atol=1e-5)
