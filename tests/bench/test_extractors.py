import json
import os
import shutil
import warnings

import numpy as np
import pytest
import torch
import torchmetrics.functional.image.lpips as oracle
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer, Dinov2Model, ViTModel

import sage
from sage import pictures
from sage.bench import extractors, metrics
from sage.bench.extractors import CLIP_L14, DINO_B8, DINO_S16, SQUEEZENET, load_extractors, resized_shape
from sage.bench.lpips import NETS, Lpips, squeezenet
from sage.commands.main import main
from sage.errors import ModelError
from tests.bench.networks import make_networks
from tests.bench.world import make_benchmark
from tests.models import tiny

RNG = np.random.default_rng(0)
IMAGENET = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
PICTURE = RNG.integers(0, 256, (100, 100, 3), dtype=np.uint8)
WIDE = RNG.integers(0, 256, (96, 128, 3), dtype=np.uint8)
ODD = RNG.integers(0, 256, (224, 299, 3), dtype=np.uint8)  # 75 columns too many


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_networks(tmp_path_factory.mktemp("networks"))


@pytest.fixture(scope="module")
def piebench(folder):
    return load_extractors("piebench", folder, "cpu")


@pytest.fixture(scope="module")
def magicbrush(folder):
    return load_extractors("magicbrush", folder, "cpu")


@pytest.fixture
def copied(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "networks")
    return tmp_path / "networks"


def bilinear(picture, side):
    """Pixel by pixel, without antialiasing."""
    at = np.clip((np.arange(side) + 0.5) * picture.shape[0] / side - 0.5, 0, None)
    low = np.floor(at).astype(int)
    high, part = np.minimum(low + 1, picture.shape[0] - 1), at - low
    rows = picture[low] * (1 - part)[:, None, None] + picture[high] * part[:, None, None]
    return rows[:, low] * (1 - part)[:, None] + rows[:, high] * part[:, None]


# ---- DINO


def test_keys_by_hand(folder, piebench):
    """The last block's keys from that block's input; pixels of 0 to 255 are normalised as if they were of 0 to 1."""
    picture = RNG.integers(0, 256, (300, 300, 3), dtype=np.uint8)  # antialiasing would only show in a reduction
    x = (bilinear(picture.astype(np.float64), 224) - IMAGENET[0]) / IMAGENET[1]
    vit = ViTModel.from_pretrained(folder / DINO_B8.name, add_pooling_layer=False, layer_norm_eps=1e-6)
    with torch.no_grad():
        hidden = vit(torch.from_numpy(x.transpose(2, 0, 1)[None]).float(), output_hidden_states=True).hidden_states
    before = hidden[-2][0].numpy()
    w = {k.removeprefix("encoder.layer.2."): v.numpy() for k, v in load_file(
        folder / DINO_B8.name / "model.safetensors").items()}
    normed = (before - before.mean(1, keepdims=True)) / np.sqrt(before.var(1, keepdims=True) + 1e-6)
    normed = normed * w["layernorm_before.weight"] + w["layernorm_before.bias"]
    keys = normed @ w["attention.attention.key.weight"].T + w["attention.attention.key.bias"]
    found = piebench.keys(picture)
    assert found.shape == (1 + 7 * 7, 24) and np.allclose(found, keys, atol=1e-4)


def test_heads_lie_side_by_side_as_in_the_original(piebench):
    """The original joins (heads, tokens, d) to (tokens, heads d); so the similarity of all heads is of one vector."""
    keys = torch.from_numpy(piebench.keys(PICTURE))
    heads = keys.view(len(keys), 4, 6).transpose(0, 1)  # (heads, tokens, d), as the original has them
    assert torch.equal(heads.transpose(0, 1).reshape(len(keys), 24), keys)


def test_the_originals_epsilon(folder):
    config = json.loads((folder / DINO_B8.name / "config.json").read_text())
    vit = extractors._vit(folder / DINO_B8.name, torch.device("cpu"))
    norms = [m for m in vit.modules() if isinstance(m, torch.nn.LayerNorm)]
    assert config["layer_norm_eps"] == 1e-12 and {m.eps for m in norms} == {1e-6} and len(norms) == 7


@pytest.mark.parametrize("shape, resized", [
    ((512, 512), (224, 224)), ((300, 600), (224, 448)), ((600, 300), (448, 224)), ((300, 900), (160, 480)),
    ((100, 133), (224, 297)), ((224, 224), (224, 224))])
def test_sizes_are_torchvisions(shape, resized):
    assert resized_shape(*shape) == resized


def test_a_picture_that_is_not_square(piebench):
    assert piebench.keys(WIDE).shape == (1 + 7 * (298 // 32), 24)


def test_class_token(folder, magicbrush):
    small = np.asarray(Image.fromarray(PICTURE).resize((256, 256), Image.Resampling.BICUBIC))[16:240, 16:240] / 255
    x = torch.from_numpy(((small - IMAGENET[0]) / IMAGENET[1]).transpose(2, 0, 1)[None]).float()
    vit = ViTModel.from_pretrained(folder / DINO_S16.name, add_pooling_layer=False, layer_norm_eps=1e-6)
    with torch.no_grad():
        expected = vit(x).last_hidden_state[0, 0]
    assert np.allclose(magicbrush.cls(PICTURE), expected, atol=1e-5)


# ---- CLIP


@pytest.mark.parametrize("picture", [PICTURE, WIDE, WIDE.transpose(1, 0, 2), ODD, ODD.transpose(1, 0, 2)])
def test_clip_is_that_of_transformers(folder, piebench, picture):
    """Through transformers' own processor on Pillow, and its own similarity."""
    model = CLIPModel.from_pretrained(folder / CLIP_L14.name)
    prompt = "a cat"
    tokens = CLIPTokenizer.from_pretrained(folder / CLIP_L14.name)(prompt, return_tensors="pt")
    pixels = CLIPImageProcessorPil()(Image.fromarray(picture), return_tensors="pt").pixel_values
    with torch.no_grad():
        out = model(pixel_values=pixels, **tokens)
        cosine = (out.logits_per_image / model.logit_scale.exp()).item()
    found = metrics.cosine(piebench.image(picture), piebench.text(prompt))
    assert found == pytest.approx(cosine, abs=1e-5)
    assert metrics.clip_similarity(piebench.image(picture), piebench.text(prompt)) == pytest.approx(
        max(100 * cosine, 0), abs=1e-3)


def test_a_long_prompt_keeps_its_end(piebench):
    assert np.array_equal(piebench.text("cat " * 100), piebench.text("cat " * 200))
    assert not np.array_equal(piebench.text("cat " * 10), piebench.text("cat " * 20))


def test_nothing_is_computed_twice(folder, piebench, monkeypatch):
    piebench.image(PICTURE)
    monkeypatch.setattr(extractors, "cropped", lambda *args: pytest.fail("computed again"))
    piebench.image(PICTURE.copy())


# ---- LPIPS


def torchmetrics_lpips(monkeypatch, features, net="squeeze"):
    """torchmetrics' network around our convolutions: its own weights of the layers, scaling and means."""
    monkeypatch.setattr(oracle, "_get_tv_model_features", lambda net, pretrained: features)
    return oracle._LPIPS(net=net, pnet_rand=True)


def test_lpips_is_that_of_torchmetrics(folder, piebench, monkeypatch):
    state = torch.load(folder / SQUEEZENET, weights_only=True)
    features = squeezenet()
    features.load_state_dict({k.removeprefix("features."): v for k, v in state.items() if k.startswith("features")})
    theirs = torchmetrics_lpips(monkeypatch, features)
    x, y = (RNG.uniform(-1, 1, (64, 48, 3)).astype(np.float32) for _ in range(2))
    y[:30] = x[:30] = -1
    pair = [torch.from_numpy(p.transpose(2, 0, 1)[None].copy()) for p in (x, y)]
    newer = theirs(*pair).item()
    # As in 1.2: the norm, and then a tiny number.
    monkeypatch.setattr(oracle, "_normalize_tensor", lambda f: f / (torch.sqrt((f**2).sum(1, keepdim=True)) + 1e-10))
    assert piebench.lpips(x, y) == pytest.approx(theirs(*pair).item(), rel=1e-5)
    assert piebench.lpips(x, y) == pytest.approx(newer, rel=1e-3)
    assert piebench.lpips(x, x) == 0 < piebench.lpips(x, y)


@pytest.mark.parametrize("name, protocol", (("alex", "dragbench"), ("vgg", "tficon")))
def test_lpips_by_other_networks_is_that_of_torchmetrics(folder, monkeypatch, name, protocol):
    features = NETS[name].features()
    state = torch.load(folder / NETS[name].file, weights_only=True)
    features.load_state_dict({k.removeprefix("features."): v for k, v in state.items() if k.startswith("features")})
    if name == "alex":  # torchmetrics cuts both out by the numbers of torchvision's layers, whose last one pools
        features.append(torch.nn.MaxPool2d(3, stride=2))
    theirs = torchmetrics_lpips(monkeypatch, features, name)
    x, y = (RNG.uniform(-1, 1, (96, 80, 3)).astype(np.float32) for _ in range(2))
    pair = [torch.from_numpy(p.transpose(2, 0, 1)[None].copy()) for p in (x, y)]
    assert load_extractors(protocol, folder, "cpu").lpips(x, y) == pytest.approx(theirs(*pair).item(), rel=1e-3)


def test_squeezenet_is_that_of_torchvision():
    net = squeezenet()
    assert sum(weight.numel() for weight in net.parameters()) == 722_496
    assert [net[:i](torch.zeros(1, 3, 64, 64)).shape[2] for i in (1, 3, 6, 9, 13)] == [31, 15, 7, 3, 3]
    try:
        from torchvision.models import squeezenet1_1
    except Exception:  # its builds fail to import beside another build of torch, in their own ways
        pytest.skip("no torchvision that goes with this torch")
    theirs = squeezenet1_1(weights=None).features
    net.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, 70, 61)
    assert torch.equal(net(x), theirs(x))


# ---- all figures


def test_every_figure_of_both_protocols(piebench, magicbrush):
    mask = np.zeros(PICTURE.shape[:2], bool)
    mask[20:60, 30:80] = True
    other = PICTURE[::-1].copy()
    scores = metrics.pie_bench(PICTURE, other, mask, "a cat", "a cab", piebench)
    assert set(scores) == {"structure", "background_psnr", "background_mse", "background_ssim", "background_lpips",
                           "clip_source", "clip_whole", "clip_edited"} and None not in scores.values()
    assert metrics.pie_bench(PICTURE, PICTURE, mask, "", "", piebench)["structure"] == 0 < scores["structure"]
    scores = metrics.magic_brush(other, PICTURE, "a cat", magicbrush)
    assert set(scores) == {"l1", "l2", "clip_i", "dino", "clip_t", "clip_t_truth"}
    same = metrics.magic_brush(PICTURE, PICTURE, "a cat", magicbrush)
    assert same["clip_i"] == pytest.approx(1) == same["dino"] and same["clip_t"] == same["clip_t_truth"]


def test_score_with_extractors_says_their_versions(folder, tmp_path, capsys):
    benchmark = make_benchmark(tmp_path / "benchmark", 2, truths=False)
    assert main(["score", str(benchmark.folder), "--against", str(benchmark.folder), "--extractors", str(folder),
                 "--device", "cpu", "--out", str(tmp_path / "out"), "--quiet"]) == 0
    out = capsys.readouterr().out
    page, data = (tmp_path / "out/report.html").read_text(), json.loads((tmp_path / "out/tables.json").read_text())
    for name, version in data["networks"].items():
        assert f"{name}: {version}" in out and version in page
    assert set(data["networks"]) == {"torch", "transformers", "numpy", "pillow", "LPIPS", DINO_B8.repo, CLIP_L14.repo}
    assert data["table"][0]["structure"]["mean"] == 0 and "structure distance x 1000" in out
    assert "torchmetrics" in data["networks"]["LPIPS"]


# ---- features of places


def test_features_of_patches(folder):
    """By hand through transformers: nearest pixels at 840 a side, in [-1, 1], the class token left out."""
    found = load_extractors("dragbench", folder, "cpu")
    rows, columns = (np.arange(840) * side // 840 for side in WIDE.shape[:2])
    x = torch.from_numpy((WIDE[rows][:, columns] / 127.5 - 1).transpose(2, 0, 1)[None]).float()
    with torch.no_grad():
        tokens = Dinov2Model.from_pretrained(folder / extractors.DINOV2.name)(x).last_hidden_state[0, 1:]
    features = found.features(WIDE, "a cat")
    assert features.shape == (16, 30, 30) and found.side == 840
    assert np.allclose(features[:, 2, 5], tokens[2 * 30 + 5], atol=1e-4)
    assert "DIFT" in found.versions["features"] and extractors.DINOV2.repo in found.versions


@pytest.mark.slow
def test_dift_is_the_second_up_block_at_a_little_noise(folder, copied, monkeypatch):
    """The mean over eight noises of what the block gives at timestep 261, under the prompt."""
    tiny.make(copied / extractors.SD21.name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found, model = load_extractors("dragbench", copied, "cpu"), sage.load_model(copied / extractors.SD21.name)
    picture, heard = RNG.integers(0, 256, (64, 96, 3), dtype=np.uint8), []
    features = found.features(picture, "a cat")
    model.unet.up_blocks[1].register_forward_hook(lambda module, inputs, output: heard.append(output[0].numpy()))
    level, generator = model.schedule.level(261), torch.Generator().manual_seed(0)
    z = model.encode(pictures.to_tensor(Image.fromarray(picture), (96, 64)))
    text = model.prepare(model.embed([model.prompts.parse("a cat")]))
    with torch.no_grad():
        for _ in range(8):
            noise = torch.randn(z.shape, generator=generator)
            model.predict(level.alpha**0.5 * z + (1 - level.alpha) ** 0.5 * noise, level, text)
    assert np.allclose(features, np.mean(heard, 0), atol=1e-5) and found.side == 768
    assert not np.allclose(features, found.features(picture, "a dog"), atol=1e-3)
    assert found.versions["features"].startswith("DIFT") and extractors.DINOV2.repo not in found.versions
    assert found.identity() != load_extractors("dragbench", folder, "cpu").identity()


# ---- what is not there, or not what it should be


def refused(folder, *words, protocol="piebench"):
    with pytest.raises(ModelError) as caught:
        load_extractors(protocol, folder, "cpu")
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("name", [SQUEEZENET, f"{DINO_B8.name}/model.safetensors", f"{CLIP_L14.name}/config.json",
                                  f"{CLIP_L14.name}/vocab.json", f"{CLIP_L14.name}/merges.txt"])
def test_a_missing_file(copied, name):
    (copied / name).unlink()
    refused(copied, name.split("/")[0])


def test_a_missing_weight(copied):
    path = copied / DINO_B8.name / "model.safetensors"
    state = load_file(path)
    state.pop("encoder.layer.1.attention.attention.key.weight")
    save_file(state, path, {"format": "pt"})
    refused(copied, "lacks 1 weights")


def test_another_network_in_its_place(copied):
    shutil.copy(copied / CLIP_L14.name / "model.safetensors", copied / DINO_B8.name)
    refused(copied, DINO_B8.name)


def test_damaged_weights(copied):
    (copied / DINO_B8.name / "model.safetensors").write_bytes(b"\0" * 100)
    refused(copied, DINO_B8.name, "ViTModel")


def test_a_pickle_of_tensors_alone_is_opened(copied, piebench):
    """Some of these networks are published in no other form."""
    path = copied / DINO_B8.name / "model.safetensors"
    torch.save(load_file(path), path.with_name("pytorch_model.bin"))
    path.unlink()
    loaded = load_extractors("piebench", copied, "cpu")
    assert np.array_equal(loaded.keys(PICTURE), piebench.keys(PICTURE))
    assert loaded.versions[DINO_B8.repo].startswith("pytorch_model.bin, SHA-256 ")
    assert loaded.identity() != piebench.identity()


class Program:
    """What runs when a pickle of it is opened."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", [SQUEEZENET, f"{DINO_B8.name}/pytorch_model.bin"])
def test_a_pickle_with_a_program_in_it_runs_nothing(copied, tmp_path, name):
    (copied / name).parent.joinpath("model.safetensors").unlink(missing_ok=True)
    torch.save({"features.0.weight": Program(tmp_path / "ran")}, copied / name)
    refused(copied, name.split("/")[0])
    assert not (tmp_path / "ran").exists()


def test_without_a_network_one_line_says_what_to_do(tmp_path, monkeypatch):
    from huggingface_hub import constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    refused("hub", SQUEEZENET, "download https://", "--extractors")
    refused("hub", f"hf download {DINO_S16.repo} --revision {DINO_S16.revision}", "--extractors", protocol="magicbrush")


def test_the_hubs_cache_needs_no_network(folder, tmp_path, monkeypatch):
    for network in (extractors.DINO_S16, extractors.CLIP_B32):
        place = tmp_path / f"models--{network.repo.replace('/', '--')}"
        shutil.copytree(folder / network.name, place / "snapshots" / network.revision)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(extractors, "_fetched", lambda *args: pytest.fail("asked the network"))
    loaded = load_extractors("magicbrush", "hub", "cpu")
    assert loaded.versions[DINO_S16.repo] == DINO_S16.revision


def test_without_torchmetrics_the_extra_is_named(folder, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused(folder, "pip install 'sage-edit[eval]'")


def test_loading_published_weights_is_strict():
    with pytest.raises(RuntimeError, match="Missing key"):
        Lpips().load_published({}, {})
