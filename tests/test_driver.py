"""What the driver minds for every method: whose a trajectory is, what was saved, what is said, which result is kept."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import sage
from sage import EditConfig, editing
from sage.editing import check_prompts, edit, edit_batch, invert
from sage.errors import PictureError, SettingsError
from sage.explain import Explanation
from sage.machine import memory
from sage.method import method
from sage.models.savings import Savings
from sage.settings import share_of
from tests import small

SOURCE, TARGET = "a cat on a mat", "a dog on a mat"
CONFIG = EditConfig(steps=3, guidance_scale=2.0, reconstruction_scale=1.0, replace=None, blend=None, most_spread=1e9,
                    most_drift=1e9)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tmp_path_factory.mktemp("driver") / "tokenizer"


@pytest.fixture(scope="module")
def model(tokenizer):
    return small.make(tokenizer).model


# ---- whose trajectory it is


def test_a_trajectory_in_memory_of_another_model_of_the_same_shapes_is_refused(model, tokenizer):
    other = small.make(tokenizer).model
    other.unet.conv_in.weight.data *= 1.01
    with pytest.raises(SettingsError, match="of another model: invert again"):
        edit(model, small.picture(), SOURCE, TARGET, CONFIG, trajectory=invert(other, small.picture(), SOURCE, CONFIG))


def test_attention_of_spared_words_is_of_the_level_that_is_asked_for(model):
    config = CONFIG.but(spare="edited", cross_level=1)
    trajectory = invert(model, small.picture(), SOURCE, config)
    with pytest.raises(SettingsError, match="no cross-attention maps at level 0"):
        edit(model, small.picture(), SOURCE, TARGET, config.but(cross_level=0), trajectory=trajectory)


def test_methods_share_a_way_to_noise(model):
    plain = sage.method("plain").Settings(steps=3)
    trajectory = invert(model, small.picture(), SOURCE, plain)
    fresh = edit(model, small.picture(), SOURCE, TARGET, plain)
    again = edit(model, small.picture(), SOURCE, TARGET, plain, trajectory=trajectory)
    assert torch.equal(again.latents, fresh.latents)
    recorded = invert(model, small.picture(), SOURCE, CONFIG)
    assert torch.equal(edit(model, small.picture(), SOURCE, TARGET, plain, trajectory=recorded).latents, fresh.latents)
    with pytest.raises(SettingsError, match="no self-attention maps"):
        edit(model, small.picture(), SOURCE, TARGET, CONFIG, trajectory=trajectory)


# ---- what was saved


def test_savings_belong_to_one_edit_and_a_repeat_takes_them_over(model, monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: 1000)
    tight = edit(model, small.picture(128, 128), SOURCE, TARGET, CONFIG)
    monkeypatch.setattr(memory, "free_memory", lambda device: None)
    assert tight.savings == Savings(tiles=True) and model.savings == Savings()
    usual = edit(model, small.picture(128, 128), SOURCE, TARGET, CONFIG)
    assert usual.savings == Savings()
    again = edit(model, small.picture(128, 128), SOURCE, TARGET, CONFIG, savings=tight.savings)
    assert again.savings == tight.savings and again.image.tobytes() == tight.image.tobytes()
    assert model.savings == Savings()


def test_an_edit_that_fails_gives_its_savings_back(model, monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: 1000)

    def stop(step) -> None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        edit(model, small.picture(), SOURCE, TARGET, CONFIG, watch=stop)
    assert model.savings == Savings()


# ---- what is said


def test_a_size_that_the_model_was_not_trained_at_is_noted(model):
    notes = edit(model, small.picture(), SOURCE, TARGET, CONFIG.but(size=128)).notes
    assert [note for note in notes if "trained at 64 x 64 pixels, and this picture is worked at 128 x 128" in note]
    assert edit(model, small.picture(96, 64), SOURCE, TARGET, CONFIG).notes == ()


def test_a_share_of_the_steps_that_is_none_of_them_is_noted(model):
    config = CONFIG.but(replace="auto", replace_fraction=0.1)
    (note,) = check_prompts(model, SOURCE, TARGET, config).notes
    assert "replacement is off: 0.1 of 3 steps is not one" in note
    assert check_prompts(model, SOURCE, TARGET, config.but(steps=9)).notes == ()


@pytest.mark.parametrize("fraction, steps, count", ((0.55, 100, 55), (0.8, 50, 40), (0.29, 100, 29), (0.5, 3, 2),
                                                    (0.0, 7, 0), (1.0, 7, 7), (0.01, 7, 1)))
def test_a_share_of_the_steps(fraction, steps, count):
    config = EditConfig(steps=steps, blend_fraction=fraction)
    assert share_of(fraction, steps) == sum(config.blends_at(i) for i in range(steps)) == count


def test_a_picture_may_be_a_path(model, tmp_path):
    small.picture().save(tmp_path / "mug.png")
    given = edit(model, small.picture(), SOURCE, TARGET, CONFIG)
    for path in (tmp_path / "mug.png", str(tmp_path / "mug.png")):
        trajectory = invert(model, path, SOURCE, CONFIG)
        explanation = Explanation(model, path, SOURCE, TARGET, CONFIG)
        found = edit(model, path, SOURCE, TARGET, CONFIG, trajectory=trajectory, watch=explanation)
        assert torch.equal(found.latents, given.latents) and explanation.picture.size == given.image.size
    with pytest.raises(PictureError, match="gone.png does not exist"):
        edit(model, tmp_path / "gone.png", SOURCE, TARGET, CONFIG)


def test_what_is_no_picture_and_what_is_no_setting_are_one_line(model):
    with pytest.raises(SettingsError, match="the picture is ndarray: give a PIL picture or the path of one"):
        edit(model, np.zeros((8, 8, 3)), SOURCE, TARGET, CONFIG)
    with pytest.raises(SettingsError, match="no setting 'nonsense'"):
        EditConfig.published(nonsense=1)
    with pytest.raises(SettingsError, match="settings of sage, and the method is plain"):
        edit(model, small.picture(), SOURCE, TARGET, CONFIG, method="plain")
    with pytest.raises(SettingsError, match="plain does not read mask"):
        edit(model, small.picture(), SOURCE, TARGET, method("plain").Settings(steps=2), mask=small.picture())


# ---- which result is kept


def of_spread(monkeypatch, *spreads: float) -> None:
    """Let the results, in the order in which they are made, look as spread as this."""
    left = iter(spreads)
    monkeypatch.setattr(editing.quality, "spread", lambda z, source: torch.tensor([next(left) for _ in z]))


def test_a_retry_that_looks_no_better_is_left_out(model, monkeypatch):
    config = CONFIG.but(retries=2, most_spread=1.0)
    first = edit(model, small.picture(), SOURCE, TARGET, CONFIG)
    of_spread(monkeypatch, 2.0, 3.0, 1.5)
    result = edit(model, small.picture(), SOURCE, TARGET, config)
    assert (result.spread, result.attempt) == (1.5, 2) and "looked no better and was left out" in result.notes[0]
    of_spread(monkeypatch, 2.0, 3.0, 2.5)
    result = edit(model, small.picture(), SOURCE, TARGET, config)
    assert (result.spread, result.attempt) == (2.0, 0) and torch.equal(result.latents, first.latents)


def test_who_watches_a_batch_sees_the_first_picture_in_every_round(model, monkeypatch):
    images, seen = [small.picture(), small.picture(seed=1)], []
    plans = [check_prompts(model, SOURCE, TARGET, CONFIG)] * 2
    of_spread(monkeypatch, 0.5, 2.0, 0.5)
    edit_batch(model, images, plans, CONFIG.but(retries=1, most_spread=1.0), watch=seen.append)
    assert [step.step for step in seen] == [0, 1, 2]  # the second round was of the other picture
    of_spread(monkeypatch, 2.0, 0.5, 0.5)
    seen.clear()
    edit_batch(model, images, plans, CONFIG.but(retries=1, most_spread=1.0), watch=seen.append)
    assert [(step.step, step.attempt) for step in seen] == [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1)]


# ---- from latents, without pictures


def test_run_gives_the_steps_of_an_edit(model):
    result = edit(model, small.picture(), SOURCE, TARGET, CONFIG)
    z0 = result.trajectory.latents[0]
    steps = list(sage.run("sage", model, z0, SOURCE, TARGET, CONFIG))
    assert len(steps) == 3 and torch.equal(steps[-1].z, result.latents)
    texts = {name: model.embed([model.prompts.parse(text)]) for name, text in (("source", SOURCE), ("target", TARGET))}
    plain = sage.method("plain").Settings(steps=3, guidance_scale=2.0)
    by_text = list(sage.run("plain", model, z0, texts["source"], texts["target"], plain))
    by_words = list(sage.run("plain", model, z0, SOURCE, TARGET, plain))
    assert torch.equal(by_text[-1].z, by_words[-1].z) and torch.is_grad_enabled()


def test_noises_can_be_given(model):
    z0 = invert(model, small.picture(), SOURCE, CONFIG).latents[0]
    settings = sage.method("sdedit").Settings(steps=3, strength=1.0, guidance_scale=2.0)
    noise = torch.randn(z0.shape, generator=torch.Generator().manual_seed(5))
    a, b = (list(sage.run("sdedit", model, z0, SOURCE, TARGET, settings, noises=given))[-1].z
            for given in ([noise], lambda tag: noise))
    assert torch.equal(a, b)
    assert not torch.allclose(a, list(sage.run("sdedit", model, z0, SOURCE, TARGET, settings))[-1].z, atol=1e-2)
    with pytest.raises(SettingsError, match="0 noises were given, and sdedit asks for more"):
        list(sage.run("sdedit", model, z0, SOURCE, TARGET, settings, noises=[]))
    with pytest.raises(SettingsError, match="noise 1 is of shape"):
        list(sage.run("sdedit", model, z0, SOURCE, TARGET, settings, noises=[noise[..., :4]]))
    with pytest.raises(SettingsError, match="noise 1 is of shape"):
        list(sage.run("sdedit", model, z0.repeat(2, 1, 1, 1), SOURCE, TARGET, settings, [noise.repeat(3, 1, 1, 1)]))
    with pytest.raises(SettingsError, match="noise 1 is NoneType: give a tensor"):
        list(sage.run("sdedit", model, z0, SOURCE, TARGET, settings, noises=[None]))


def test_recorded_tensors_are_taken_as_they_come(model):
    z0, settings = torch.randn(1, 4, 16, 16), sage.method("ddpm").preset("published", steps=3)
    text, noises = model.embed([model.prompts.parse(SOURCE)]), [torch.randn(4, 16, 16) for _ in range(3)]
    want = list(sage.run("ddpm", model, z0, text, TARGET, settings, noises))[-1].z
    got = list(sage.run("ddpm", model, z0.double(), text.tokens.double(), TARGET, settings, [n.numpy() for n in noises],
                        texts={"empty": model.embed([model.prompts.parse("")]).tokens}))[-1].z
    assert torch.equal(got, want)


@pytest.mark.parametrize("given, said", (
    (dict(z0=torch.zeros(4, 16, 16)), r"the latents are of shape \(4, 16, 16\): give a tensor of shape \(B, 4, h, w\)"),
    (dict(z0=torch.zeros(1, 3, 16, 16)), r"the latents are of shape \(1, 3, 16, 16\)"),
    (dict(z0=small.picture()), "the latents are Image"),
    (dict(z0=torch.full((1, 4, 16, 16), torch.nan)), "the latents are not finite"),
    (dict(source=torch.zeros(2, 77, 32)), r"'source' is of shape \(2, 77, 32\): give a tensor of shape \(1, tokens"),
    (dict(target=torch.zeros(77, 32)), r"'target' is of shape \(77, 32\)"),
    (dict(texts={"empty": ""}), "'empty' is str"),
    (dict(texts={"sourse": torch.zeros(1, 77, 32)}),
     "^no method reads an embedded prompt 'sourse': ddpm reads source, target, empty, nothing$"),
    (dict(texts={"empty": torch.zeros(1, 77, 48)}),
     "^the embedded prompt 'empty' is 48 wide, and those of small are 32$"),
    (dict(target=torch.zeros(1, 77, 31)), "^the embedded prompt 'target' is 31 wide, and those of small are 32$"),
))
def test_tensors_that_do_not_fit_are_refused(model, given, said):
    settings = sage.method("ddpm").Settings(steps=2)
    with pytest.raises(SettingsError, match=said):
        next(sage.run("ddpm", model, **dict(z0=torch.zeros(1, 4, 16, 16), source=SOURCE, target=TARGET) | given,
                      settings=settings))


@pytest.mark.parametrize("name, texts, settings", (
    ("ddpm", ("nothing", "empty"), dict(guidance_scale=1.0)),  # at scale 1 nothing is guided away from
    ("pnp", ("negative",), {}), ("ddpm", ("negative", "concept:cat"), {}),
    ("ledits", ("concept:cat", "concept:dog"), dict(add={"dog": 3.0}))))
def test_texts_that_a_method_knows_may_be_given_whether_it_asks_or_not(model, name, texts, settings):
    given = {text: torch.zeros(1, 77, 32) for text in texts}
    method = sage.method(name)
    assert list(sage.run(method, model, torch.zeros(1, 4, 16, 16), SOURCE, TARGET,
                         method.Settings(steps=3, **settings), texts=given))


def test_run_refuses_methods_and_sides_that_do_not_fit_in_one_line(model):
    z0 = torch.randn(1, 4, 16, 16)
    turbo, plain = sage.method("turbo").Settings(), sage.method("plain").Settings(steps=2)
    with pytest.raises(SettingsError, match="^turbo cannot edit with small: it has no inversion network.*$"):
        list(sage.run("turbo", model, z0, SOURCE, TARGET, turbo))
    with pytest.raises(SettingsError, match=r"^the latents are .* 15\): small needs h to be a multiple of 8, and w"):
        list(sage.run("plain", model, z0[..., :15], SOURCE, TARGET, plain))


def test_a_trajectory_of_several_pictures_keeps_what_it_is_of(model):
    plans = [check_prompts(model, SOURCE, TARGET, CONFIG)] * 2
    both = editing.invert_batch(model, [small.picture(), small.picture(seed=1)], plans, CONFIG)
    one = both.only([1])
    assert one.origin == replace(both.origin, source=both.origin.source[1:], pictures=both.origin.pictures[1:])
    assert one.noise.shape[0] == 1 and torch.equal(one.maps[2].self[0].queries, both.maps[2].self[0].queries[1:])
