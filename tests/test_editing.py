"""Whole edits with a small model: what must come out whatever the weights are."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import sage
from sage import EditConfig, kit
from sage.editing import EditResult, check_prompts, edit, edit_batch, invert, invert_batch
from sage.errors import NumericsError, PromptError, SettingsError
from sage.inversion.reconstruction import ddim_reconstruction, vae_reconstruction
from sage.models.sd.attention import Attention
from sage.models.sd.model import StableDiffusion
from sage.models.sites import AttentionMap, Site
from sage.pictures.framing import framed
from sage.pictures.regions import Move
from sage.trajectory.kinds import Trajectory
from tests import small

SOURCE, TARGET = "a cat on a mat", "a dog on a mat"
# What a network of random weights makes of a picture always looks wrong.
PLAIN = EditConfig(steps=4, guidance_scale=2.0, reconstruction="none", cross_level=1, replace=None, blend=None,
                   most_spread=1e9, most_drift=1e9)
GUIDED = PLAIN.but(reconstruction="self", reconstruction_scale=10.0)
FULL = GUIDED.but(replace="auto", replace_fraction=0.5, blend="auto", blend_fraction=0.5,
                  cross_level=0, reweight={"mat": 1.3})


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tmp_path_factory.mktemp("editing") / "tokenizer"


@pytest.fixture(scope="module")
def model(tokenizer) -> StableDiffusion:
    return small.make(tokenizer).model


@pytest.fixture
def half(tokenizer) -> StableDiffusion:
    return small.make(tokenizer, dtype=torch.bfloat16).model


@pytest.fixture(scope="module")
def inverted(model) -> Trajectory:
    return invert(model, small.picture(), SOURCE, FULL)


def distance(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


# ---- what the parts must do


@pytest.mark.parametrize("grid", ("consistent", "released"))
@pytest.mark.parametrize("w", (1.0, 7.5))
def test_equal_prompts_without_guidance_are_plain_reconstruction(model, w, grid):
    config = PLAIN.but(guidance_scale=w, grid=grid, blend="auto", replace="auto")
    result = edit(model, small.picture(), SOURCE, SOURCE, config)
    assert (pixels(result.image) == pixels(ddim_reconstruction(model, result.trajectory))).mean() > 0.999
    assert result.masks == () and result.losses == ()
    [note] = result.notes
    assert "nothing is asked to change" in note
    assert np.abs(pixels(result.image) - pixels(edit(model, small.picture(), SOURCE, TARGET, config).image)).mean() > 1


def test_guidance_scale_one_is_the_target_alone(model):
    config = PLAIN.but(guidance_scale=1.0)
    result = edit(model, small.picture(), SOURCE, TARGET, config)
    origin = replace(result.trajectory.origin, source=(model.prompts.parse(TARGET),))
    again = ddim_reconstruction(model, replace(result.trajectory, origin=origin))
    assert (pixels(result.image) == pixels(again)).mean() > 0.999


def one_step(model: StableDiffusion, config: EditConfig, scale: float, trajectory=None):
    """An edit of a single step from the noisiest level: DDIM, and a step along the gradient."""
    config = config.but(steps=1, spacing="trailing", reconstruction_scale=scale, loss_gain=1.0)
    return edit(model, small.picture(), SOURCE, TARGET, config, trajectory=trajectory)


@pytest.mark.parametrize("kind", ("self", "cross", "latent"))
@pytest.mark.parametrize("map_loss", ("l1", "l2"))
def test_a_small_step_along_the_gradient_lowers_the_loss_by_as_much_as_it_says(model, kind, map_loss):
    config = GUIDED.but(reconstruction=kind, map_loss=map_loss)
    still = one_step(model, config, 1e-30)
    scale = 1e-2 / edit_size(model, config, still)
    moved = one_step(model, config, scale, still.trajectory)
    step = moved.latents - still.latents  # -scale * gradient
    (before,) = still.losses
    noise = still.trajectory.noise + 0.3 * step
    (after,) = one_step(model, config, scale, replace(still.trajectory, latents=(still.trajectory.latents[0],
                                                                               noise))).losses
    expected = -0.3 * step.square().sum().item() / scale
    assert after < before and after - before == pytest.approx(expected, rel=0.25)


def edit_size(model, config, still) -> float:
    return (one_step(model, config, 1.0, still.trajectory).latents - still.latents).norm().item()


def test_the_step_is_scale_times_gain_times_decay(model, inverted):
    def step(**changes) -> Tensor:
        config = GUIDED.but(guided_steps=1, steps=1, spacing="trailing", **changes)
        return (edit(model, small.picture(), SOURCE, TARGET, config).latents
                - edit(model, small.picture(), SOURCE, TARGET, config.but(reconstruction_scale=0.0)).latents)

    assert distance(step(reconstruction_scale=20.0), 2 * step()) < 1e-3
    assert distance(step(loss_gain=1500.0), 3 * step()) < 1e-3
    assert distance(step(decay="released"), step()) < 1e-6  # 1 at the first step
    assert [GUIDED.decay_weight(i) for i in range(4)] == [1.0, 0.75, 0.5, 0.25]
    assert [GUIDED.but(decay="released", guided_steps=2).decay_weight(i) for i in range(3)] == [1.0, 0.8, 0.0]


@pytest.mark.parametrize("blend_latents, kept", (("same", 0), ("noisier", 1)))
def test_an_empty_mask_keeps_the_inversion(model, blend_latents, kept):
    config = FULL.but(blend=("cow", "cow"), blend_match="words", blend_fraction=1.0, blend_latents=blend_latents)
    result = edit(model, small.picture(), SOURCE, TARGET, config)
    assert torch.equal(result.latents, result.trajectory.latents[kept])
    assert len(result.masks) == 4 and not any(m.any() for m in result.masks)
    assert "nothing may change" in result.notes[0]


def test_masks_are_the_union_of_both_prompts(model, inverted):
    def masks(blend, mask: str = "union") -> Tensor:
        return edit(model, small.picture(), SOURCE, TARGET, FULL.but(blend=blend, mask=mask),
                    trajectory=inverted).masks[0]  # of the first step, which blending has not yet touched

    source, target, both = masks(("cat", "")), masks(("", "dog")), masks(("cat", "dog"))
    assert torch.equal(both, torch.maximum(source, target))
    assert not torch.equal(source, target) and 0 < both.mean() < 1
    assert not torch.equal(both, masks(("cat", "dog"), "sum"))
    assert both.shape == (1, 1, 16, 16)
    assert torch.equal(masks("auto"), both)


def test_blending_leaves_the_rest_of_the_picture_alone(model, inverted):
    config = FULL.but(blend_fraction=1.0)
    result = edit(model, small.picture(), SOURCE, TARGET, config, trajectory=inverted)
    outside = result.masks[-1].expand_as(result.latents) == 0
    assert outside.any() and torch.equal(result.latents[outside], inverted.latents[0][outside])
    assert not torch.allclose(result.latents[~outside], inverted.latents[0][~outside], atol=0.1)
    assert len(edit(model, small.picture(), SOURCE, TARGET, FULL.but(blend_fraction=0.3), None, inverted).masks) == 2


def test_by_level_a_way_back_that_meets_the_inversion_has_no_loss(model):
    def losses(pairing: str, **changes) -> tuple[float, ...]:
        return edit(model, small.picture(), SOURCE, SOURCE, GUIDED.but(pairing=pairing, reconstruction_scale=1e-9,
                                                                       blend=("cow", "cow"), blend_match="words",
                                                                       blend_fraction=1.0, **changes)).losses

    by_level, by_transition = losses("level"), losses("transition")  # blending keeps both on the inverted latents
    assert len(by_level) == 3 and max(by_level) < 1e-7 and len(by_transition) == 4 and min(by_transition) > 1e-5
    assert losses("level", reconstruction="cross") == pytest.approx((0, 0, 0), abs=1e-7)


def test_places_of_edited_words_are_left_out_of_the_loss(model):
    def losses(source: str, target: str, **changes) -> tuple[float, ...]:
        return edit(model, small.picture(), source, target, GUIDED.but(**changes)).losses

    whole, longer = losses(SOURCE, TARGET), "a cat on a mat, asleep"
    assert losses(SOURCE, TARGET, spare="removed") == pytest.approx(whole)  # nothing is
    assert 0 < losses(SOURCE, TARGET, spare="edited")[0] < whole[0]
    assert 0 < losses(longer, SOURCE, spare="removed", blend_threshold=0.95)[0] < losses(longer, SOURCE)[0]
    assert losses(SOURCE, TARGET, spare="edited", blend_threshold=0.0) == (0.0,) * 4  # every place looks at them


def test_a_mask_from_the_difference_is_where_the_predictions_differ(model):
    config = PLAIN.but(blend="auto", mask_from="difference", blend_fraction=1.0, blend_threshold=0.7)
    result = edit(model, small.picture(), SOURCE, TARGET, config)
    mask = result.masks[-1]
    assert 0 < mask.mean() < 1 and mask.shape == (1, 1, *result.latents.shape[-2:])
    outside = mask.expand_as(result.latents) == 0
    assert torch.equal(result.latents[outside], result.trajectory.latents[0][outside])
    assert not edit(model, small.picture(), SOURCE, TARGET, config.but(blend=None)).masks


@pytest.mark.slow
@pytest.mark.parametrize("change", (
    dict(reconstruction="none"), dict(reconstruction="cross"), dict(reconstruction="replace"),
    dict(reconstruction="latent"), dict(map_loss="l2"), dict(guided_steps=2), dict(decay="none"), dict(replace=None),
    dict(replace=("mat", "mat")), dict(replace_fraction=0.25), dict(blend=None), dict(blend_threshold=0.6),
    dict(reweight={}), dict(guidance_scale=3.0), dict(self_level=2), dict(cross_level=1), dict(spacing="trailing"),
    dict(grid="released"), dict(encode="sample"), dict(noise_fraction=0.1), dict(reweight_passes="all"),
    dict(reconstruction_mask_floor=0.2), dict(guidance_mask_floor=0.2), dict(pairing="level"), dict(spare="edited"),
    dict(mask_from="difference"), dict(step_limit=0.001)))
def test_every_setting_does_something(model, full, change):
    assert distance(edit(model, small.picture(), SOURCE, TARGET, FULL.but(**change)).latents, full.latents) > 1e-3


@pytest.fixture(scope="module")
def full(model, inverted) -> EditResult:
    return edit(model, small.picture(), SOURCE, TARGET, FULL, trajectory=inverted)


# ---- batches, sharing, repetition


@pytest.mark.parametrize("change", (
    {}, dict(noise_fraction=0.3, encode="sample", reconstruction_mask_floor=0.2, guidance_mask_floor=0.5),
    dict(reconstruction="latent", reconstruction_scale=0.1), dict(reconstruction="cross"), dict(reweight_passes="all"),
    dict(pairing="level", spare="edited", mask_from="difference")))
def test_pictures_of_a_batch_are_each_as_if_alone(model, change):
    config = FULL.but(**dict(reweight={"mat": 1.3}) | change)
    images = [small.picture(seed=seed) for seed in (0, 1, 2)]
    prompts = [(SOURCE, TARGET), ("a mat", "a mat"), ("a dog or a mat", "a cat or a mat")]
    plans = [check_prompts(model, *pair, config) for pair in prompts]
    together = edit_batch(model, images, plans, config)
    for image, pair, ours in zip(images, prompts, together, strict=True):
        alone = edit(model, image, *pair, config)
        assert distance(ours.latents, alone.latents) < 1e-3  # measured: up to 1.5e-4
        assert ours.latents.shape == alone.latents.shape and ours.image.size == alone.image.size
        assert ours.losses == pytest.approx(alone.losses, rel=1e-3)
        if alone.masks:
            assert all(torch.equal(a, b) for a, b in zip(ours.masks, alone.masks, strict=True))
        else:
            assert all((m == 1).all() for m in ours.masks)


def test_a_trajectory_gives_what_a_fresh_inversion_gives(model, inverted, full):
    fresh = edit(model, small.picture(), SOURCE, TARGET, FULL)
    assert torch.equal(full.latents, fresh.latents) and full.trajectory is inverted
    other = FULL.but(guidance_scale=3.0, guided_steps=2, blend=None, reweight={}, map_loss="l2", seed=5)
    shared = edit(model, small.picture(), SOURCE, "a pig on a mat", other, trajectory=inverted)
    alone = edit(model, small.picture(), SOURCE, "a pig on a mat", other)
    assert distance(shared.latents, alone.latents) < 1e-3  # other maps were formed on its way to noise


@pytest.mark.parametrize("change, source, size, said", (
    ({}, "a cat on a rug", 64, "another source prompt: 'a cat on a mat'"),
    (dict(steps=5), SOURCE, 64, "steps=4, not 5"),
    (dict(spacing="trailing"), SOURCE, 64, "spacing=leading, not trailing"),
    (dict(grid="released"), SOURCE, 64, "grid=consistent"),
    (dict(size=96), SOURCE, 64, "size=None, not 96"),
    (dict(fit="squash"), SOURCE, 64, "fit=keep"),
    (dict(encode="sample"), SOURCE, 64, "encode=mean"),
    (dict(self_level=2), SOURCE, 64, "no self-attention maps at level 2"),
    (dict(cross_level=1), SOURCE, 64, "no cross-attention maps at level 1"),
    (dict(reconstruction="cross"), SOURCE, 64, "no cross-attention maps at level 0 for step 3"),
    (dict(replace_fraction=1.0), SOURCE, 64, "no cross-attention maps at level 0 for step 3"),
    (dict(reweight_passes="all"), SOURCE, 64, "other reweighting"),
    (dict(spare="removed"), SOURCE, 64, "no cross-attention maps at level 0 for step"),
    ({}, SOURCE, 96, r"picture of \(64, 64\), not \(96, 96\)")))
def test_a_trajectory_that_does_not_fit_is_refused_in_one_line(model, inverted, change, source, size, said):
    with pytest.raises(SettingsError, match=said) as caught:
        edit(model, small.picture(size, size), source, TARGET, FULL.but(**change), trajectory=inverted)
    assert "\n" not in str(caught.value)


def test_a_trajectory_of_another_picture_of_the_same_size_is_refused(model, inverted):
    with pytest.raises(SettingsError, match="another picture of the same size"):
        edit(model, small.picture(seed=1), SOURCE, TARGET, FULL, trajectory=inverted)
    plan = check_prompts(model, SOURCE, TARGET, PLAIN)
    both = invert_batch(model, [small.picture(), small.picture(seed=1)], [plan, plan], PLAIN)
    assert edit_batch(model, [small.picture(seed=1)], [plan], PLAIN, trajectory=both.only([1]))
    with pytest.raises(SettingsError, match="another picture"):
        edit_batch(model, [small.picture(seed=1)], [plan], PLAIN, trajectory=both.only([0]))


def test_fewer_maps_than_recorded_are_enough(model, inverted):
    for change in (dict(reconstruction="none"), dict(guided_steps=1), dict(replace=None), dict(replace_fraction=0.25)):
        edit(model, small.picture(), SOURCE, TARGET, FULL.but(**change), trajectory=inverted)


def test_a_sampled_trajectory_remembers_its_seed(model):
    config = PLAIN.but(encode="sample", seed=3)
    trajectory = invert(model, small.picture(), SOURCE, config)
    with pytest.raises(SettingsError, match="made with seed=3"):
        edit(model, small.picture(), SOURCE, TARGET, config.but(seed=4), trajectory=trajectory)


def test_reweighting_everywhere_needs_the_target_already_for_the_inversion(model):
    config = FULL.but(reweight_passes="all")
    fresh = edit(model, small.picture(), SOURCE, TARGET, config)
    trajectory = invert(model, small.picture(), SOURCE, config, target=TARGET)
    shared = edit(model, small.picture(), SOURCE, TARGET, config, trajectory=trajectory)
    assert torch.equal(shared.latents, fresh.latents)
    with pytest.raises(SettingsError, match="depends on the target prompt: give it too"):
        invert(model, small.picture(), SOURCE, config)
    with pytest.raises(SettingsError, match="other reweighting"):
        edit(model, small.picture(), SOURCE, TARGET, config, trajectory=invert(model, small.picture(), SOURCE, FULL))
    plain = ddim_reconstruction(model, replace(trajectory, origin=replace(trajectory.origin, target=None)))
    assert (pixels(plain) != pixels(ddim_reconstruction(model, trajectory))).mean() > 0.1


def test_the_same_edit_twice_is_the_same(model, full):
    assert torch.equal(edit(model, small.picture(), SOURCE, TARGET, FULL.but(seed=99)).latents, full.latents)
    noisy = [edit(model, small.picture(), SOURCE, TARGET, PLAIN.but(noise_fraction=0.2, seed=s)).latents
             for s in (1, 1, 2)]
    assert torch.equal(noisy[0], noisy[1]) and not torch.allclose(noisy[0], noisy[2], atol=0.1)


def test_a_picture_that_says_it_lies_on_its_side_can_share_its_trajectory(model):
    lying = small.picture(64, 32)
    lying.getexif()[0x0112] = 6  # to be turned by a quarter
    trajectory = invert(model, lying, SOURCE, PLAIN)
    assert trajectory.picture_size == (32, 64)
    assert edit(model, lying, SOURCE, TARGET, PLAIN, trajectory=trajectory).image.size == (32, 64)


# ---- cost


@pytest.fixture
def formed(monkeypatch) -> list[AttentionMap]:
    maps, forward = [], AttentionMap.forward
    monkeypatch.setattr(AttentionMap, "forward", lambda map, q, k: maps.append(map) or forward(map, q, k))
    return maps


def test_only_what_is_compared_is_recorded_and_no_map_is_formed(model, formed):
    result = edit(model, small.picture(), SOURCE, TARGET, GUIDED.but(guided_steps=2))
    assert formed == []
    # Recorded on the last two of four steps up, to be compared on the first two down.
    assert [len(m.self) for m in result.trajectory.maps] == [0, 0, 3, 3]
    assert all(m.cross == () for m in result.trajectory.maps)


@pytest.mark.parametrize("change, expected", (
    ({}, 0), (dict(replace="auto", replace_fraction=0.25), 3), (dict(blend="auto", blend_fraction=0.25), 3),
    (dict(blend="auto", blend_fraction=0.25, replace="auto", replace_fraction=0.25), 3 + 3),
    (dict(reconstruction="latent"), 0), (dict(reconstruction="replace"), 4 * 3),
    (dict(reconstruction="self", reconstruction_scale=0.0), 0)))
def test_maps_formed_by_each_part(model, formed, change, expected):
    edit(model, small.picture(), SOURCE, TARGET, PLAIN.but(**change))
    assert len(formed) == expected


def test_no_hook_is_left(model):
    assert small.hooks(model) == []
    with pytest.raises(RuntimeError, match="stop"):
        edit(model, small.picture(), SOURCE, TARGET, FULL, progress=stop)
    assert small.hooks(model) == []


@pytest.mark.parametrize("network", ("unet", "vae", "text"))
def test_a_hook_that_is_left_would_be_seen(model, network):
    """Wherever it hangs: queries and keys pass `projected`, of which maps know nothing."""
    for module in {type(module): module for module in getattr(model, network).modules()}.values():
        for leave in (module.register_forward_hook, module.register_forward_pre_hook,
                      module.register_full_backward_hook):
            left = leave(lambda *_: None)
            assert len(small.hooks(model)) == 1
            left.remove()
    assert small.hooks(model) == []


def stop(phase: str, done: int, total: int) -> None:
    if (phase, done) == ("edit", 2):
        raise RuntimeError("stop")


def test_progress_tells_the_phases(model):
    told = []
    edit(model, small.picture(), SOURCE, TARGET, PLAIN, progress=lambda *what: told.append(what))
    assert told == [("encode", 0, 1), ("encode", 1, 1), *(("invert", i, 4) for i in (1, 2, 3, 4)),
                    *(("edit", i, 4) for i in (1, 2, 3, 4)), ("decode", 0, 1), ("decode", 1, 1)]


# ---- pictures and prompts


@pytest.mark.parametrize("width, height, latents", ((128, 64, (8, 24)), (60, 150, (24, 8)), (70, 45, (16, 16))))
def test_pictures_need_not_be_square(model, width, height, latents):
    result = edit(model, small.picture(width, height), SOURCE, TARGET, FULL)
    assert result.image.size == (width, height)
    assert vae_reconstruction(model, result.trajectory).size == (width, height)
    h, w = latents
    assert result.latents.shape == (1, 4, h, w) and result.latents.dtype == torch.float32
    assert all(m.shape == (1, 1, h, w) for m in result.masks)
    assert result.trajectory.maps[-1].self[0].map().shape[-2:] == ((h // 2) * (w // 2),) * 2
    assert torch.isfinite(result.latents).all()


def test_notes_say_what_was_left_out(model):
    def notes(source: str, target: str, **changes) -> tuple[str, ...]:
        return check_prompts(model, source, target, FULL.but(reweight={}, **changes)).notes

    assert notes(SOURCE, TARGET) == ()
    (note,) = notes("a cow on a mat", "a frog on a mat")
    assert "replacement is off" in note and "4 target tokens by that of 3 source tokens" in note
    (note,) = notes(SOURCE, TARGET, blend=("cow", "cow"), blend_match="words")
    assert "nothing may change" in note
    (note,) = notes(SOURCE, TARGET, blend=("", ""))
    assert "blending is off" in note
    (note,) = notes(SOURCE, SOURCE)
    assert "nothing is asked to change" in note


@pytest.mark.parametrize("change, source, target, said", (
    ({}, "", TARGET, "source prompt is empty"), ({}, SOURCE, "  ", "target prompt is empty"),
    ({}, SOURCE, "x " * 90, "would be cut"),
    (dict(replace=("cow", "dog")), SOURCE, TARGET, "'cow' is not in the prompt 'a cat on a mat'"),
    (dict(replace=("cat", "cat")), SOURCE, TARGET, "'cat' is not in the prompt 'a dog on a mat'"),
    (dict(replace=("mat cat", "dog")), SOURCE, TARGET, "'mat cat' is not in"),
    (dict(replace=("on", "dog")), SOURCE, TARGET, "3 target tokens by that of 2 source tokens"),
    (dict(blend=("cow", "dog")), SOURCE, TARGET, "'cow' is not in"),
    (dict(reweight={"cat": 2.0}), SOURCE, TARGET, "'cat' is not in the prompt 'a dog on a mat'")))
def test_wrong_prompts_and_phrases_are_one_line(model, change, source, target, said):
    with pytest.raises(PromptError, match=said) as caught:
        edit(model, small.picture(), source, target, PLAIN.but(**change))
    assert "\n" not in str(caught.value)


def test_truncated_prompts_are_allowed_when_asked_for(model):
    result = edit(model, small.picture(), SOURCE, "x " * 90, PLAIN, truncate=True)
    assert torch.isfinite(result.latents).all()


def test_a_level_that_the_model_does_not_have_is_named(model):
    for change in (dict(self_level=3), dict(cross_level=5, blend="auto")):
        with pytest.raises(SettingsError, match="it has levels 0, 1, 2"):
            edit(model, small.picture(), SOURCE, TARGET, GUIDED.but(**change))


# ---- precision


def test_the_scale_of_the_gradient_divides_out(model, monkeypatch):
    config = GUIDED.but(map_loss="l2")
    plain = edit(model, small.picture(), SOURCE, TARGET, config)
    monkeypatch.setattr(kit, "gradient", partial(kit.gradient, largest=2.0**-30))
    assert torch.equal(edit(model, small.picture(), SOURCE, TARGET, config).latents, plain.latents)


@pytest.mark.parametrize("dtype, near", (pytest.param(torch.bfloat16, 0.3, marks=pytest.mark.slow),
                                         (torch.float16, 0.05)))
def test_half_precision_is_close_to_float32(model, tokenizer, dtype, near):
    """Measured on a CPU: bfloat16 0.20, float16 0.013 of the latents' norm; random weights amplify rounding."""
    ours = small.make(tokenizer, dtype=dtype).model
    for config in (PLAIN, GUIDED) if dtype == torch.bfloat16 else (GUIDED.but(steps=2),):
        a, b = (edit(m, small.picture(), SOURCE, TARGET, config) for m in (ours, model))
        assert torch.isfinite(a.latents).all() and a.latents.dtype == torch.float32
        assert 1e-5 < distance(a.latents, b.latents) < near


@pytest.mark.parametrize("dtype, map_loss", ((torch.bfloat16, "l1"), (torch.float16, "l2")))
def test_the_same_settings_are_the_same_step_in_every_precision(model, tokenizer, dtype, map_loss):
    config = GUIDED.but(map_loss=map_loss)
    steps = []
    for m in (model, small.make(tokenizer, dtype=dtype).model):
        still = one_step(m, config, 1e-30)
        steps.append((one_step(m, config, 1e4, still.trajectory).latents - still.latents).flatten())
    assert steps[1].norm() / steps[0].norm() == pytest.approx(1, abs=0.1)
    assert torch.cosine_similarity(*steps, dim=0) > 0.9


@pytest.mark.parametrize("tapped", (False, True))
def test_scores_are_formed_in_float32_where_the_model_needs_it(tapped):
    """SD 2.1's overflow float16: here q k is 8 x 300 x 300."""
    torch.manual_seed(0)
    x = torch.randn(1, 6, 8).half()
    out = []
    for upcast in (False, True):
        attention = Attention(8, 8, 1, Site("here", "self", upcast=upcast)).half()
        for linear in (attention.to_q, attention.to_k):
            linear.weight.data = 300 * torch.eye(8).half()
        attention.to_v.weight.data = torch.eye(8).half()
        if tapped:
            attention.site.map.register_forward_hook(lambda site, inputs, map: None)
        out.append(attention(x * 3))
    assert torch.isfinite(out[1]).all() and out[1].dtype == torch.float16
    if tapped:
        assert not torch.isfinite(out[0]).all()


def sabotage(model: StableDiffusion, monkeypatch, when, value: float = float("inf")) -> list[tuple[torch.dtype, bool]]:
    """Spoil outputs of the UNet for which when(calls so far) is true; returns (dtype, with gradient) of each call."""
    calls, forward = [], model.unet.forward

    def spoilt(z, t, context):
        out = forward(z, t, context)
        calls.append((model.unet.conv_in.weight.dtype, z.requires_grad))
        return out + value if when(calls) else out

    monkeypatch.setattr(model.unet, "forward", spoilt)
    return calls


@pytest.mark.parametrize("spoilt", (pytest.param(1, marks=pytest.mark.slow), 5,
                                     pytest.param(6, marks=pytest.mark.slow)),
                         ids=("inversion", "target pass", "guided source pass"))
def test_a_stage_that_overflows_once_is_repeated_in_float32(half, monkeypatch, spoilt):
    config = GUIDED.but(steps=3)
    before = list(half.unet.parameters())
    expected = edit(half, small.picture(), SOURCE, TARGET, config)
    calls = sabotage(half, monkeypatch, lambda calls: len(calls) == spoilt + 1)
    result = edit(half, small.picture(), SOURCE, TARGET, config)
    assert distance(result.latents, expected.latents) < 0.2
    assert len(calls) == 3 + 6 + 1
    assert [dtype for dtype, _ in calls] == [torch.float32 if i == spoilt + 1 else torch.bfloat16 for i in range(10)]
    assert calls[spoilt][1] == calls[spoilt + 1][1] == (spoilt in (4, 6, 8))  # whether a gradient was asked for
    assert half.dtype == torch.bfloat16
    assert all(a is b for a, b in zip(before, half.unet.parameters(), strict=True))


@pytest.mark.parametrize("value", (float("inf"), float("nan")))
def test_a_stage_that_is_never_finite_is_an_error(half, model, monkeypatch, value):
    for m in (half, model):
        calls = sabotage(m, monkeypatch, lambda calls: len(calls) > 4, value)
        with pytest.raises(NumericsError, match="the UNet at timestep .* nothing was written") as caught:
            edit(m, small.picture(), SOURCE, TARGET, GUIDED)
        assert "\n" not in str(caught.value)
        assert len(calls) == (6 if m is half else 5)  # one retry, and none where it was float32 already
        assert m.dtype == (torch.bfloat16 if m is half else torch.float32)


@pytest.mark.slow
def test_a_gradient_that_overflows_is_taken_again_in_float32(half, monkeypatch):
    taken, true = [], kit.gradient

    def first_is_infinite(*args):
        g = true(*args)
        taken.append(half.unet.conv_in.weight.dtype)
        return g / 0 if len(taken) == 1 else g

    expected = edit(half, small.picture(), SOURCE, TARGET, FULL)
    monkeypatch.setattr(kit, "gradient", first_is_infinite)
    result = edit(half, small.picture(), SOURCE, TARGET, FULL)
    assert taken == [torch.bfloat16, torch.float32] + [torch.bfloat16] * 3
    assert distance(result.latents, expected.latents) < 0.2
    monkeypatch.setattr(kit, "gradient", lambda *args: true(*args) / 0)
    with pytest.raises(NumericsError, match="gradient at step 1 is not finite, in float32 too"):
        edit(half, small.picture(), SOURCE, TARGET, GUIDED)


def test_an_absurd_step_is_an_error_not_a_picture(model):
    with pytest.raises(NumericsError):
        edit(model, small.picture(), SOURCE, TARGET, GUIDED.but(reconstruction_scale=1e38, loss_gain=1e38))


def test_invert_batch_takes_pictures_of_other_sizes_at_the_first_one_s(model):
    plan = check_prompts(model, SOURCE, TARGET, PLAIN)
    trajectory = invert_batch(model, [small.picture(64, 64), small.picture(96, 80)], [plan, plan], PLAIN)
    assert trajectory.noise.shape == (2, 4, 16, 16)
    assert trajectory.noise is trajectory.latents[-1] and len(trajectory.latents) == 5


@pytest.mark.parametrize("size", ((96, 64), (64, 97)))
def test_a_cropped_picture_is_edited_as_its_middle_square(model, size):
    image, mask = small.picture(*size), Image.new("L", size)
    mask.paste(255, (30, 20, 60, 50))
    settings = sage.method("ddpm").Settings(steps=2, fit="crop")
    result = sage.edit(model, image, SOURCE, TARGET, settings, mask=mask, paste=True)
    box = (16, 0, 80, 64) if size[0] > size[1] else (0, 16, 64, 80)
    alone = sage.edit(model, image.crop(box), SOURCE, TARGET, settings.but(fit="keep"), mask=mask.crop(box), paste=True)
    assert result.image.size == (64, 64) and result.image.tobytes() == alone.image.tobytes()
    assert torch.equal(result.latents, alone.latents) and result.trajectory.picture_size == (64, 64)
    assert any("the result has 64 x 64 pixels" in note for note in result.notes) and not any(
        "cropped" in note for note in alone.notes)
    again = sage.edit(model, image, SOURCE, TARGET, settings, mask=mask, paste=True, trajectory=result.trajectory)
    assert again.image.tobytes() == result.image.tobytes()


def test_all_that_is_given_with_a_cropped_picture_is_cropped_with_it():
    left, right = Image.new("L", (96, 64)), Image.new("L", (48, 32))  # one of another size is of the whole picture too
    left.paste(255, (16, 0, 32, 64))
    right.paste(255, (32, 0, 48, 32))
    asked = sage.Request(points=((20.0, 5.0, 80.0, 9.0),), moves=(Move(left, right),), foregrounds=(left, right))
    [part], [seen] = framed([small.picture(96, 64)], [asked], sage.method("p2p").Settings(fit="crop"))
    assert part.size == (64, 64) and seen.points == ((4.0, 5.0, 64.0, 9.0),)
    given = (*seen.foregrounds, seen.moves[0].source, seen.moves[0].target)
    assert [mask.getbbox() for mask in given] == [(0, 0, 16, 64), (48, 0, 64, 64)] * 2
