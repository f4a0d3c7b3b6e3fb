"""From attention to masks, by examples that can be checked by eye."""

import torch

from sage.guidance.masks import resize, threshold, token_attention


def picture(*places: tuple[int, int, float], height: int = 6, width: int = 8) -> torch.Tensor:
    attention = torch.zeros(1, 1, height, width)
    for row, column, value in places:
        attention[0, 0, row, column] = value
    return attention


def test_attention_is_summed_over_tokens_and_sites_and_averaged_over_heads():
    g = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 4, 12, 7, generator=g), torch.rand(2, 2, 12, 7, generator=g)
    tokens = torch.zeros(2, 7)
    tokens[0, [2, 5]], tokens[1, 3] = 1, 1
    out = token_attention([a, b], tokens, 3, 4)
    assert out.shape == (2, 1, 3, 4) and out.dtype == torch.float32
    plain = a[0, :, :, [2, 5]].sum(-1).mean(0) + b[0, :, :, [2, 5]].sum(-1).mean(0)
    assert torch.allclose(out[0, 0].flatten(), plain, atol=1e-6)
    assert torch.allclose(out[1, 0], (a[1, ..., 3].mean(0) + b[1, ..., 3].mean(0)).reshape(3, 4), atol=1e-6)


def test_rows_of_the_map_are_rows_of_the_picture():
    map = torch.zeros(1, 1, 12, 7)
    map[0, 0, 4 * 2 + 1, 3] = 1  # row 2, column 1 of 3 x 4
    tokens = torch.zeros(1, 7)
    tokens[0, 3] = 1
    assert token_attention([map], tokens, 3, 4)[0, 0].nonzero().tolist() == [[2, 1]]


def test_a_place_spreads_to_its_eight_neighbours():
    mask = threshold(picture((2, 3, 1.0)), 0.3)
    assert mask.dtype == torch.bool and mask.sum() == 9
    assert mask[0, 0, 1:4, 2:5].all()
    assert threshold(picture((0, 0, 1.0)), 0.3).sum() == 4  # at the corner


def test_the_threshold_is_relative_to_the_maximum_and_strict():
    for scale in (1e-6, 1.0, 1e4):
        assert threshold(picture((1, 1, 0.5 * scale), (4, 6, scale)), 0.5).sum() == 9
        assert threshold(picture((1, 1, 0.5 * scale), (4, 6, scale)), 0.49).sum() == 18
    assert threshold(picture((1, 1, 1.0)), 1.0).sum() == 0


def test_each_picture_has_its_own_maximum():
    both = torch.cat([picture((1, 1, 1.0)), picture((4, 6, 1e-3))])
    assert threshold(both, 0.3).sum(dim=(1, 2, 3)).tolist() == [9, 9]


def test_no_attention_is_an_empty_mask_not_nan():
    for share in (0.0, 0.3):
        mask = threshold(torch.cat([picture(), picture((1, 1, 1.0))]), share)
        assert mask[0].sum() == 0 and mask[1].any()
    assert torch.isfinite(resize(threshold(picture(), 0.3), 12, 16)).all()


def test_resize_takes_the_nearest():
    mask = torch.zeros(1, 1, 2, 3, dtype=torch.bool)
    mask[0, 0, 1, 2] = True
    big = resize(mask, 4, 9)
    assert big.dtype == torch.float32 and big.unique().tolist() == [0, 1]
    assert big[0, 0, 2:, 6:].all() and big.sum() == 6
