"""Trajectories on disk: what comes back is what was written, to the last bit, or is refused in one line."""

import json
import os
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from sage import EditConfig, pictures
from sage.editing import check_prompts, edit, edit_batch, invert, invert_batch
from sage.errors import SettingsError
from sage.inversion.reconstruction import vae_reconstruction
from sage.models.sites import KeysValues
from sage.trajectory import disk
from sage.trajectory.disk import load_trajectory, save_trajectory
from sage.trajectory.kinds import KINDS, Lent, Noises, NullText, Pair, Reconstructed, Settled, Trajectory, named
from sage.trajectory.label import KEY, read_label
from tests import small

SOURCE, TARGET = "a cat on a mat", "a dog on a mat"
CONFIG = EditConfig(steps=4, guidance_scale=2.0, reconstruction_scale=10.0, replace_fraction=0.5, blend_fraction=0.5,
                    cross_level=0, reweight={"mat": 1.3}, most_spread=1e9, most_drift=1e9)
CONFIGS = {
    "full": CONFIG,
    "nothing recorded": CONFIG.but(reconstruction="none", replace=None),
    "cross": CONFIG.but(reconstruction="cross", replace_fraction=1.0),
    "spared": CONFIG.but(spare="removed", cross_level=1),
    "sampled": CONFIG.but(encode="sample", seed=7),
    "reweighted everywhere": CONFIG.but(reweight_passes="all"),
    "one step": CONFIG.but(steps=1, spacing="trailing"),
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tmp_path_factory.mktemp("trajectory") / "tokenizer"


@pytest.fixture(scope="module")
def model(tokenizer):
    return small.make(tokenizer).model


@pytest.fixture(scope="module")
def inverted(model) -> Trajectory:
    return invert(model, small.picture(), SOURCE, CONFIG)


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "t.safetensors"


def assert_same(a: Trajectory, b: Trajectory) -> None:
    assert type(a) is type(b) and a.origin == b.origin and a.notes == b.notes and a.wants == b.wants
    ours, theirs = dict(named(a)), dict(named(b))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        other = theirs[name]
        assert torch.equal(tensor, other) and tensor.dtype == other.dtype and tensor.stride() == other.stride(), name
    assert [z.stride() for z in a.latents] == [z.stride() for z in b.latents]


# ---- there and back


@pytest.mark.parametrize("name", CONFIGS)
def test_all_comes_back_to_the_last_bit_and_edits_are_the_same(model, path, name):
    config = CONFIGS[name]
    target = TARGET if config.reweight_passes == "all" else None
    trajectory = invert(model, small.picture(64, 96), SOURCE, config, target=target)
    assert save_trajectory(trajectory, path, model) == path
    loaded = load_trajectory(path, model)
    assert_same(trajectory, loaded)
    fresh = edit(model, small.picture(64, 96), SOURCE, TARGET, config)
    again = edit(model, small.picture(64, 96), SOURCE, TARGET, config, trajectory=loaded)
    assert torch.equal(fresh.latents, again.latents) and fresh.image.tobytes() == again.image.tobytes()
    assert vae_reconstruction(model, loaded).tobytes() == vae_reconstruction(model, trajectory).tobytes()


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_half_precision_comes_back_as_it_was(tokenizer, path, dtype):
    model = small.make(tokenizer, dtype=dtype).model
    trajectory = invert(model, small.picture(), SOURCE, CONFIG.but(steps=2))
    assert trajectory.maps[-1].self[0].keys.dtype == dtype
    assert_same(trajectory, load_trajectory(save_trajectory(trajectory, path, model), model))


def test_tensors_lie_in_memory_as_they_lay(model, inverted, path):
    """In which order numbers are added up depends on it, and so does the last bit of an edit."""
    turned = replace(inverted, latents=tuple(
        z.contiguous(memory_format=torch.channels_last) if k % 2 else z.contiguous()
        for k, z in enumerate(inverted.latents)))
    loaded = load_trajectory(save_trajectory(turned, path, model), model)
    assert_same(turned, loaded)
    assert loaded.latents[1].stride() != loaded.latents[2].stride()


def test_several_pictures_share_a_file(model, path):
    images, plan = [small.picture(), small.picture(seed=1)], check_prompts(model, SOURCE, TARGET, CONFIG)
    both = invert_batch(model, images, [plan, plan], CONFIG)
    loaded = load_trajectory(save_trajectory(both, path, model), model)
    assert_same(both, loaded)
    wanted = edit_batch(model, images[1:], [plan], CONFIG, trajectory=both.only([1]))
    (result,) = edit_batch(model, images[1:], [plan], CONFIG, trajectory=loaded.only([1]))
    assert torch.equal(result.latents, wanted[0].latents)


def test_a_second_edit_inverts_nothing(model, inverted, path, monkeypatch):
    loaded = load_trajectory(save_trajectory(inverted, path, model), model)
    calls, forward = [], model.unet.forward
    monkeypatch.setattr(model.unet, "forward", lambda *args: calls.append(1) or forward(*args))
    monkeypatch.setattr(model, "encode", lambda *_: pytest.fail("the picture was encoded again"))
    edit(model, small.picture(), SOURCE, TARGET, CONFIG, trajectory=loaded)
    assert len(calls) == 2 * CONFIG.steps  # both prompts, and no step of the inversion


def test_the_file_is_plain_safetensors_and_holds_keys_of_the_text_once(model, inverted, path):
    save_trajectory(inverted, path, model, name="mug.png")
    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
        assert torch.equal(file.get_tensor("latents.0"), inverted.latents[0])
    (cross,) = (i for i, want in enumerate(inverted.wants) if want.where.kind == "cross")
    assert [name for name in sorted(names) if name.startswith(f"heard.{cross}.") and name.endswith("keys")] == [
        f"heard.{cross}.2.{site}.keys" for site in range(3)]
    assert path.stat().st_size - inverted.nbytes < 20_000  # the header
    label = read_label(path)
    assert (label.name, label.model, label.settings) == ("mug.png", "small", CONFIG)
    assert label.made["dtype"] == "float32" and label.fingerprint == model.fingerprint()


def test_a_file_name_that_is_no_text_does_no_harm(model, inverted, path):
    save_trajectory(inverted, path, model, name="mug\udcff.png")
    assert read_label(path).name == "mug?.png"


# ---- what a model is known by


def test_float32_and_float16_of_one_checkpoint_are_one_model(model, tokenizer, path):
    half, config = small.make(tokenizer, dtype=torch.float16).model, CONFIGS["one step"]
    assert half.fingerprint() == model.fingerprint()
    trajectory = invert(model, small.picture(), SOURCE, config)
    loaded = load_trajectory(save_trajectory(trajectory, path, model), half)
    assert torch.isfinite(edit(half, small.picture(), SOURCE, TARGET, config, trajectory=loaded).latents).all()


def others(tokenizer):
    yield "prediction", small.make(tokenizer, prediction="v_prediction").model
    yield "schedule", small.make(tokenizer, schedule=replace(
        small.make(tokenizer).model.schedule.params, beta_end=0.02)).model
    for part in ("unet", "vae", "text"):
        other = small.make(tokenizer).model
        weight = max(getattr(other, part).parameters(), key=lambda p: p.numel())
        weight.data *= 1.01
        yield part, other
    other = small.make(tokenizer).model
    norm = next(m for m in other.unet.modules() if isinstance(m, nn.GroupNorm))
    norm.bias.data[0] += 0.1
    yield "one number of a norm", other


def test_any_other_model_is_another(model, inverted, tokenizer, path):
    save_trajectory(inverted, path, model)
    for what, other in others(tokenizer):
        with pytest.raises(SettingsError, match="of another model, small in float32") as caught:
            load_trajectory(path, other)
        assert "\n" not in str(caught.value), what


# ---- what an edit may not start from


@pytest.mark.parametrize("made, change, source, seed, said", (
    ("full", {}, SOURCE, 1, "another picture of the same size"), ("full", {}, "a cat on a rug", 0, "another source"),
    ("full", dict(steps=5), SOURCE, 0, "steps=4, not 5"), ("full", dict(grid="released"), SOURCE, 0, "grid=consistent"),
    ("sampled", dict(seed=8), SOURCE, 0, "made with seed=7"),
    ("full", dict(guided_steps=0, replace_fraction=1.0), SOURCE, 0, "no cross-attention maps"),
    ("nothing recorded", dict(reconstruction="self"), SOURCE, 0, "no self-attention maps"),
    ("full", dict(spare="removed"), SOURCE, 0, "no cross-attention maps at level 0 for step"),
    ("reweighted everywhere", dict(reweight={"mat": 2.0}), SOURCE, 0, "other reweighting")))
def test_what_does_not_match_is_refused_in_one_line(model, path, made, change, source, seed, said):
    config = CONFIGS[made]
    trajectory = invert(model, small.picture(), SOURCE, config, target=TARGET)
    loaded = load_trajectory(save_trajectory(trajectory, path, model), model)
    with pytest.raises(SettingsError, match=said) as caught:
        edit(model, small.picture(seed=seed), source, TARGET, config.but(**change), trajectory=loaded)
    assert "\n" not in str(caught.value)


# ---- whole or not at all


@pytest.mark.parametrize("error", (OSError(28, "No space left on device"), KeyboardInterrupt()), ids=("full", "killed"))
@pytest.mark.parametrize("module, name, after", ((os, "replace", 0), (os, "fsync", 0), (disk, "_bytes", None)))
def test_a_write_that_fails_leaves_everything_as_it_was(model, inverted, path, monkeypatch, error, module, name, after):
    path.write_bytes(b"as it was")
    calls, true = [], getattr(module, name)
    if after is None:
        after = len(disk._laid_out(inverted)[0]) + 3  # all of them once for the checksum, and some to be written

    def fail(*args):
        calls.append(args)
        if len(calls) > after:
            raise error
        return true(*args)

    monkeypatch.setattr(module, name, fail)
    with pytest.raises((KeyboardInterrupt, SettingsError)) as caught:
        save_trajectory(inverted, path, model)
    assert caught.value is error or "cannot be written (No space left on device)" in str(caught.value)
    assert len(calls) == after + 1 and path.read_bytes() == b"as it was" and os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("name, said", (("t.png", "written as .safetensors"), ("gone/f/t.safetensors", "not a folder"),
                                        ("", "written as .safetensors")))
def test_a_place_that_cannot_be_written_to_is_one_line(model, inverted, tmp_path, name, said):
    (tmp_path / "gone").write_bytes(b"")
    with pytest.raises(SettingsError, match=said):
        save_trajectory(inverted, tmp_path / name, model)


def test_a_flipped_bit_anywhere_is_noticed(model, inverted, path):
    raw = bytearray(save_trajectory(inverted, path, model).read_bytes())
    header = 8 + int.from_bytes(raw[:8], "little")
    for at in range(header, len(raw), len(raw) // 40):
        raw[at] ^= 1
        path.write_bytes(raw)
        with pytest.raises(SettingsError, match="damaged|NaN"):
            load_trajectory(path, model)
        raw[at] ^= 1
    path.write_bytes(raw)
    assert zlib.crc32(raw[header:]) == read_label(path).crc32
    assert_same(inverted, load_trajectory(path, model))


def test_another_file_of_the_same_picture_fits(model, inverted, path, tmp_path):
    picture = small.picture()
    picture.save(tmp_path / "a.bmp")
    picture.convert("RGBA").save(tmp_path / "b.webp", lossless=True)
    loaded = load_trajectory(save_trajectory(inverted, path, model), model)
    for name in ("a.bmp", "b.webp"):
        assert pictures.digest(pictures.open_picture(tmp_path / name)) == loaded.origin.pictures[0]
    assert pictures.digest(Image.new("RGB", (2, 3))) != pictures.digest(Image.new("RGB", (3, 2)))


# ---- other kinds, and files of version 1


def test_every_kind_comes_back(model, inverted, path):
    """Whatever a kind holds beside its latents, the file knows no kind."""
    made = dict(origin=inverted.origin, latents=inverted.latents)
    text, more = model.embed(inverted.source), [z + 1 for z in inverted.latents[1:]]
    kinds = (Trajectory(**made), inverted, NullText(**made, empties=tuple(text.mix(text, 0.5) for _ in more)),
             Pair(**made, states=tuple(z.double() / 3 for z in more[:2])),
             Settled(**made, residuals=tuple(torch.rand(len(z)) for z in more)),
             Noises(**made, noises=tuple(more)),
             Reconstructed(**made, noises=tuple(more), reconstructions=tuple(2 * z for z in more)),
             Lent(**made, wanted=inverted.wanted, heard=tuple(tuple(
                 pairs and tuple(KeysValues(pair.queries, pair.keys + 1) for pair in pairs) for pairs in heard)
                 for heard in inverted.heard)))
    assert {type(trajectory) for trajectory in kinds} == set(KINDS.values())
    for trajectory in kinds:
        assert_same(trajectory, load_trajectory(save_trajectory(trajectory, path, model), model))


def as_version_1(path: Path, settings: EditConfig) -> None:
    """Rewrite a file of today as version 1 had it: a label and names of its own, the embedded text beside."""
    with safe_open(path, framework="pt") as file:
        label = json.loads(file.metadata()[KEY])
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    kinds, old = [want["kind"] for want in label["wants"]], {}
    for name, tensor in tensors.items():
        part, *rest = name.split(".")
        if part == "heard":
            name = ".".join([kinds[int(rest[0])], *rest[1:]])
        old[name] = tensor
    last = [f"latents.{k}" in label["orders"] for k in range(settings.steps + 1)]
    old["text"] = torch.zeros(1, 77, 32)
    kept = "model fingerprint prediction_type source truncate pictures picture_size name notes made".split()
    values = {name: label[name] for name in kept}
    crc = 0
    for name in sorted(old):
        crc = zlib.crc32(old[name].numpy().tobytes(), crc)
    values |= {"version": 1, "config": settings.as_dict(), "channels_last": last, "crc32": crc}
    save_file(old, path, {KEY: json.dumps(values)})


@pytest.mark.parametrize("name", ("full", "cross", "nothing recorded", "sampled", "one step"))
def test_files_of_version_1_are_read(model, path, name):
    config = CONFIGS[name]
    trajectory = invert(model, small.picture(64, 96), SOURCE, config)
    save_trajectory(trajectory, path, model)
    as_version_1(path, config)
    loaded = load_trajectory(path, model)
    assert read_label(path).version == 1 and loaded.origin == trajectory.origin
    a, b = (edit(model, small.picture(64, 96), SOURCE, TARGET, config, trajectory=t) for t in (trajectory, loaded))
    assert torch.equal(a.latents, b.latents)
