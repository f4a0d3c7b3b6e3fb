"""A result that looks wrong is noticed, and made again more gently when asked for."""

import pytest
import torch

from sage import EditConfig, edit, invert, quality
from sage.editing import check_prompts, edit_batch
from tests import small

SOURCE, TARGET = "a cat on a mat", "a dog on a mat"
CONFIG = EditConfig(steps=4, guidance_scale=5.0, reconstruction_scale=8.0, loss_gain=1.0, cross_level=1, replace=None,
                    blend=None, most_spread=1e9, most_drift=1e9)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small.make(tmp_path_factory.mktemp("faults") / "tokenizer").model


def test_spread_is_the_ratio_of_deviations():
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    more = torch.stack([z[0] * 3 + 1, z[1]])
    assert quality.spread(more, z).tolist() == pytest.approx([3, 1], rel=1e-5)


def test_drift_looks_only_where_the_prompts_agree():
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    z /= z.std()
    difference = torch.ones(1, 1, 8, 8)
    difference[..., :4] = 0.1
    left, right = torch.zeros_like(z), torch.zeros_like(z)
    left[..., :4], right[..., 4:] = 0.5, 0.5
    assert quality.drift(z + right, z, difference).item() == 0
    assert quality.drift(z + left, z, difference).item() == pytest.approx(0.5, rel=1e-5)
    assert quality.drift(2 * (z + left), 2 * z, difference).item() == pytest.approx(0.5, rel=1e-5)


def test_an_edit_of_everything_does_not_drift():
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert quality.drift(z + 3, z, torch.full((1, 1, 8, 8), 0.7)).item() == 0


def test_a_retry_is_the_edit_at_half_the_strength(model):
    result = edit(model, small.picture(), SOURCE, TARGET, CONFIG.but(most_spread=0.0, retries=2))
    gentler = CONFIG.but(guidance_scale=2.0, reconstruction_scale=2.0)
    alone = edit(model, small.picture(), SOURCE, TARGET, gentler)
    assert torch.allclose(result.latents, alone.latents, atol=1e-5)
    assert [note.split(":")[0] for note in result.notes] == [
        "the result looked oversaturated", "the result looked oversaturated", "the result looks oversaturated"]
    assert "guidance_scale 2 and reconstruction_scale 2" in result.notes[1]


def test_only_what_looks_wrong_is_made_again(model):
    images, plans = [small.picture(seed=s) for s in range(3)], [check_prompts(model, SOURCE, TARGET, CONFIG)] * 3
    first = edit_batch(model, images, plans, CONFIG)
    one, two, _ = sorted(r.spread for r in first)
    limit = CONFIG.but(most_spread=(one + two) / 2, retries=1, guidance_scale=5.0)
    again = edit_batch(model, images, plans, limit)
    for before, after in zip(first, again, strict=True):
        if before.spread > limit.most_spread:
            assert after.notes and not torch.equal(before.latents, after.latents)
        else:
            assert not after.notes and torch.allclose(before.latents, after.latents, atol=1e-4)
    assert sum(bool(r.notes) for r in again) == 2 and all(r.trajectory is again[0].trajectory for r in again)


def test_without_retries_it_is_only_said(model):
    trajectory = invert(model, small.picture(), SOURCE, CONFIG)
    result = edit(model, small.picture(), SOURCE, TARGET, CONFIG.but(most_spread=0.0), trajectory=trajectory)
    plain = edit(model, small.picture(), SOURCE, TARGET, CONFIG, trajectory=trajectory)
    assert torch.equal(result.latents, plain.latents) and plain.notes == ()
    assert result.notes == ("the result looks oversaturated: try a smaller guidance_scale",)
