"""TurboEdit: its two algorithms written out with diffusers' UNet, and what must hold to the last bit.

The algorithms are compared in float64, where differences of up to 1e-14 are left.
"""

import math

import pytest
import torch
from PIL import Image

import sage
from sage.errors import SageError
from sage.guidance import masks
from sage.models.sd.inversion import InversionNet, inversion_params
from sage.notes import SAME
from sage.sampling.levels import alphas_cumprod
from tests import small
from tests.methods.p2p_original import word_positions
from tests.methods.precise import EXACT, in_float64
from tests.methods.test_pix2pix_zero import Maps
from tests.models import oracle

SOURCE, TARGET, OTHER = "a cat on a mat", "a dog on a mat", "a cat on a bed"
TIMES = [999, 749, 499, 249]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tmp_path_factory.mktemp("turbo") / "tokenizer"


@pytest.fixture(scope="module")
def made(tokenizer):
    made = small.make(tokenizer, prediction="v_prediction")
    made.model.inversion = small.inversion(made.model)
    return made


def latents(batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 4, 16, 16, generator=torch.Generator().manual_seed(5))


def noise(k: int) -> torch.Tensor:
    return torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(k))


def run(model, target=TARGET, source=SOURCE, request=None, **changes):
    settings = sage.method("turbo").Settings(cross_level=0, **changes)
    request = sage.Request(source, target, **(request or {}))
    steps = sage.run("turbo", model, latents(), source, target, settings, list(map(noise, range(4))), request=request)
    return [step.z for step in steps]


def off(a, b) -> float:
    return ((a - b).norm() / b.norm()).item()


def theirs(made) -> torch.nn.Module:
    """The inversion network in diffusers."""
    network = oracle.unet(inversion_params(made.model.unet.params))
    network.load_state_dict(made.model.inversion.state_dict())
    return network


def watched(unet, z, t, text, lent=None):
    """What diffusers' UNet gives, and every attention map (heads, queries, keys), some of them lent by another pass."""
    kept, found = dict(unet.attn_processors), {}
    unet.set_attn_processor({name: Maps(found, name, "attn", lent) for name in kept})
    try:
        return unet(z, t, text).sample, found
    finally:
        unet.set_attn_processor(kept)


def blurred(mask, deviation):
    """(1, 1, h, w) under a Gaussian that ends at two deviations, place by place; mirrored at the edges."""
    half = math.ceil(2 * deviation)
    weights = [math.exp(-k * k / (2 * deviation**2)) for k in range(-half, half + 1)]
    for axis in (2, 3):
        last = mask.shape[axis] - 1
        mask = sum(w / sum(weights) * mask.index_select(axis, torch.tensor(
            [last - abs(last - abs(i + k)) for i in range(last + 1)])) for k, w in enumerate(weights, start=-half))
    return mask


@torch.no_grad()
def original(made, strength=1.0, frozen=0, words=None, hand=None, deviation=0.0, threshold=0.6, corrections=0):
    """Both algorithms, mask and frozen attention written out: the edited latents of each step, and the last mask.

    Args:
        frozen: steps, from the first, in which the target has the source's self-attention maps.
        words: one of each prompt, which mark the mask by the attention paid to them at 16 x 16 places.
        hand: (1, 1, 16, 16) a mask by hand.
        corrections: of the last step's noise, which are ours.
    """
    finder, a = theirs(made), alphas_cumprod(made.model.schedule.params).float()
    source, target = (made.model.embed([made.model.prompts.parse(p)]).tokens for p in (SOURCE, TARGET))
    x0, x, y, found = latents(), torch.zeros(1, 4, 16, 16), torch.zeros(1, 4, 16, 16), []
    edited, seen, mask = source + strength * (target - source), torch.zeros(256), None
    for k, t in enumerate(TIMES):
        s, n = a[t].sqrt(), (1 - a[t]).sqrt()
        mean, log_variance = finder(torch.cat([x0, x], dim=1), t, source).sample.chunk(2, dim=1)
        eps = mean + s / n * (x0 - x) + log_variance.clamp(-10, 4).exp().sqrt() * noise(k)
        for _ in range(corrections if t == TIMES[-1] else 0):
            z = s * x + n * eps
            eps = (eps + s / n * (x0 - (s * z - n * made.unet(z, t, source).sample))).clamp(-5.5, 5.5)
        zs, zt = s * x + n * eps, s * y + n * eps
        v, of_source = watched(made.unet, zs, t, source)
        x = s * zs - n * v
        v, of_target = watched(made.unet, zt, t, edited,
                               {name: maps for name, maps in of_source.items() if "attn1" in name and k < frozen})
        y = s * zt - n * v
        for maps, prompt, word in zip((of_source, of_target), (SOURCE, TARGET), words or (), strict=False):
            for name, m in maps.items():
                if "attn2" in name and m.shape[1] == 256:
                    seen += m.mean(0)[:, word_positions(made.tokenizer, prompt, word)].sum(-1)
        parts = [*([hand] if hand is not None else []),
                 *([(seen / seen.max() > threshold).float().view(1, 1, 16, 16)] if words else [])]
        if parts:
            mask = math.prod(parts)
            mask = blurred(mask, deviation) if deviation else mask
            y = mask * y + (1 - mask) * x
        found.append(y)
    return found, mask


@pytest.mark.parametrize("strength", (1.0, 1.5, -0.5))
def test_both_algorithms_are_those_of_the_paper(made, strength):
    with in_float64(made.model, made.unet):
        found, _ = original(made, strength)
        got = run(made.model, strength=strength)
    assert len(got) == 4 and max(off(a, b) for a, b in zip(got, found, strict=True)) < EXACT
    assert off(got[-1], run(made.model, SOURCE)[-1]) > 0.01


def test_the_noise_of_the_last_step_is_put_right_by_what_was_missed(made):
    with in_float64(made.model, made.unet):
        found, _ = original(made, corrections=2)
        got = run(made.model, corrections=2)
        missed = [off(run(made.model, SOURCE, corrections=count)[-1], latents().double()) for count in range(4)]
    assert max(off(a, b) for a, b in zip(got, found, strict=True)) < EXACT
    assert missed == sorted(missed, reverse=True) and missed[2] < 0.8 * missed[0]
    assert torch.equal(run(made.model, corrections=2)[2], run(made.model)[2])  # the steps before stay


def test_edits_with_other_corrections_do_not_share_an_inversion(made):
    settings = sage.method("turbo").Settings(cross_level=0)
    path = sage.invert(made.model, small.picture(), SOURCE, settings)
    with pytest.raises(SageError, match="corrections"):
        sage.edit(made.model, small.picture(), SOURCE, TARGET, settings.but(corrections=1), trajectory=path)


@pytest.mark.parametrize(("frozen", "words", "by_hand", "deviation"), [
    (1, None, True, 1.0), (0, ("cat", "dog"), False, 0.5),
    pytest.param(2, ("cat", "dog"), True, 0.75, marks=pytest.mark.slow),
    pytest.param(3, None, False, 0.0, marks=pytest.mark.slow)])
def test_so_are_the_mask_and_the_frozen_steps(made, frozen, words, by_hand, deviation):
    picture, hand = Image.new("L", (128, 128)), torch.zeros(1, 1, 16, 16)
    picture.paste(255, (0, 0, 64, 96))
    hand[..., :12, :8] = 1
    with in_float64(made.model, made.unet):
        found, mask = original(made, 1.0, frozen, words, hand.double() if by_hand else None, deviation)
        got = run(made.model, request={"mask": picture} if by_hand else None, frozen_steps=frozen, blend=words,
                  mask_blur=deviation)
    assert max(off(a, b) for a, b in zip(got, found, strict=True)) < EXACT
    assert off(got[-1], run(made.model)[-1]) > 1e-3  # and it is of effect
    if mask is not None:
        assert mask.max() > 0.3 and mask.min() < 0.01 and ((mask > 0.01) & (mask < 0.99)).any()


def test_iterations_are_the_first_steps_of_all(made):
    """At the timesteps of all four, which two steps of a grid of two would not be at."""
    whole = run(made.model)
    assert all(torch.equal(a, b) for a, b in zip(run(made.model, iterations=2), whole[:2], strict=True))
    assert not torch.equal(run(made.model, steps=2)[1], whole[1])
    picture, settings = small.picture(), sage.method("turbo").Settings(cross_level=0)
    path = sage.invert(made.model, picture, SOURCE, settings.but(iterations=2))
    assert len(path.noises) == 2
    with pytest.raises(SageError, match="iterations"):
        sage.edit(made.model, picture, SOURCE, TARGET, settings, trajectory=path)


def reconstruction(made) -> torch.Tensor:
    return run(made.model, SOURCE)[-1]


@pytest.mark.parametrize("changes", [
    dict(strength=0.0), dict(strength=0.0, frozen_steps=2), dict(blend=("cat", "dog"), blend_threshold=1.0),
    dict(strength=0.0, blend=("cat", "dog"), mask_from="difference", mask_blur=2.0)])
def test_strength_0_and_an_empty_mask_give_the_reconstruction_bit_for_bit(made, changes):
    assert torch.equal(run(made.model, **changes)[-1], reconstruction(made))


@pytest.mark.parametrize("changes", [{}, dict(frozen_steps=1), dict(strength=3.0), dict(noise="mean")])
def test_equal_prompts_give_the_reconstruction_bit_for_bit(made, changes):
    result = sage.edit(made.model, small.picture(), SOURCE, SOURCE, sage.method("turbo").Settings(**changes))
    assert torch.equal(result.latents, result.trajectory.reconstructions[-1])


def test_a_mask_by_hand_is_blurred_and_keeps_what_is_black(made):
    mask = Image.new("L", (128, 128))
    mask.paste(255, (0, 0, 64, 128))
    whole, kept = run(made.model)[-1], reconstruction(made)
    sharp = run(made.model, request={"mask": mask}, mask_blur=0.0)[-1]
    assert torch.equal(sharp[..., 8:], kept[..., 8:]) and not torch.equal(sharp[..., :8], kept[..., :8])
    soft = run(made.model, request={"mask": mask}, mask_blur=1.0)[-1]
    assert torch.equal(soft[..., 12:], kept[..., 12:]) and not torch.equal(soft[..., 8:10], kept[..., 8:10])
    assert not torch.equal(sharp, whole)


def test_the_mask_from_attention_is_where_the_changed_words_are_looked_at(made):
    settings = sage.method("turbo").Settings(cross_level=0, blend="auto", mask_blur=0.0)
    steps = list(sage.run("turbo", made.model, latents(), SOURCE, TARGET, settings))
    few = [step.mask.mean().item() for step in sage.run("turbo", made.model, latents(), SOURCE, TARGET,
                                                        settings.but(blend_threshold=0.9))]
    assert all(step.source is not None and 0 < step.mask.mean() < 1 for step in steps)
    assert few[-1] < steps[-1].mask.mean().item()


def test_attention_is_read_and_compared_as_the_paper_says(made, tokenizer, monkeypatch):
    """At 16 places a side at 512 pixels, and relative to its maximum, place by place."""
    model = small.make(tokenizer).model
    assert sage.method("turbo").defaults(model).cross_level == 1  # of 16 x 16 latents 8 x 8
    monkeypatch.setattr(model, "sample_size", 256)
    assert sage.method("turbo").defaults(model).cross_level == 2  # of 64 x 64 latents 16 x 16
    seen, threshold = [], masks.threshold
    monkeypatch.setattr(masks, "threshold", lambda *given: seen.append((given[0], threshold(*given))) or seen[-1][1])
    run(made.model, blend=("cat", "dog"))
    assert len(seen) == 4 and all(torch.equal(found, a / a.max() > 0.6) for a, found in seen)


def test_frozen_steps_hold_the_self_attention_of_the_source(made):
    free, frozen = run(made.model), run(made.model, frozen_steps=4)
    kept = reconstruction(made)
    assert not torch.equal(free[-1], frozen[-1]) and not torch.equal(frozen[-1], kept)
    assert small.hooks(made.model) == []


def test_a_note_says_where_another_method_is_better(made):
    def said(source, target):
        plan = sage.editing.check_prompts(made.model, source, target, sage.method("turbo").Settings())
        return any("turbo-ddpm" in note for note in plan.notes)

    assert said("a cat and a dog", "a cat") and said("a red cat", "a cat")
    assert not said(SOURCE, TARGET) and not said("a cat", "a cat and a dog") and not said("a red cat", "a cat or a dog")


def test_further_targets_add_up_and_share_one_inversion(made):
    both = run(made.model, request={"edits": (OTHER,)})[-1]
    assert not torch.equal(both, run(made.model)[-1]) and not torch.equal(both, run(made.model, OTHER)[-1])
    assert off(run(made.model, SOURCE, request={"edits": (OTHER,)})[-1], run(made.model, OTHER)[-1]) < 1e-4
    picture, settings = small.picture(), sage.method("turbo").Settings()
    first = sage.edit(made.model, picture, SOURCE, TARGET, settings)
    alone = sage.edit(made.model, picture, SOURCE, SOURCE, settings, edits=(OTHER,))
    assert SAME not in alone.notes and SAME in sage.edit(made.model, picture, SOURCE, SOURCE, settings).notes
    again = sage.edit(made.model, picture, SOURCE, OTHER, settings, trajectory=first.trajectory)
    fresh = sage.edit(made.model, picture, SOURCE, OTHER, settings)
    assert torch.equal(again.latents, fresh.latents)


def test_from_nothing_it_makes_a_picture_in_as_many_calls_as_steps(made, monkeypatch):
    calls, ordinary = [], made.model.predict
    monkeypatch.setattr(made.model, "predict", lambda *given: calls.append(given) or ordinary(*given))
    one, two = sage.generate(made.model, SOURCE, method="turbo", count=2)
    assert len(calls) == 4 and not torch.equal(one.latents, two.latents)
    assert off(sage.generate(made.model, SOURCE, method="turbo")[0].latents, one.latents) < 1e-4


def test_without_the_network_one_line_says_so(tmp_path):
    model = small.make(tmp_path / "tokenizer").model
    with pytest.raises(SageError, match="turbo cannot edit with small: it has no inversion network"):
        sage.edit(model, small.picture(), SOURCE, TARGET, method="turbo")


def test_the_network_is_part_of_what_the_model_is_known_by(made, tmp_path):
    with_it = made.model.fingerprint()
    model = small.make(tmp_path / "tokenizer", prediction="v_prediction").model
    assert model.fingerprint() != with_it
    model.inversion = InversionNet(inversion_params(model.unet.params))
    assert model.fingerprint() != with_it
