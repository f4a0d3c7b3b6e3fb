"""Tiles cover everything, fade into each other, and change nothing that does not look beyond them."""

from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F

from sage.models.loading import load_model
from sage.models.savings import Savings
from sage.models.sd.tiles import by_tiles, spans


@pytest.mark.parametrize("length", (1, 8, 9, 15, 16, 17, 40, 100))
def test_tiles_cover_and_overlap(length):
    pieces = spans(length, 16, 4)
    assert pieces[0][0] == 0 and pieces[-1][1] == length
    assert all(end - begin == min(length, 16) for begin, end in pieces)
    assert all(pieces[i][1] - pieces[i + 1][0] >= 4 for i in range(len(pieces) - 1))


@pytest.mark.parametrize("size", ((5, 7), (16, 16), (17, 40), (50, 23)))
def test_what_looks_at_single_places_is_the_same_by_tiles(size):
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(by_tiles(torch.tanh, x, 16, 4, Fraction(1)), x.tanh(), atol=1e-6)
    larger = by_tiles(lambda t: F.interpolate(t, scale_factor=4), x, 16, 4, Fraction(4))
    assert torch.allclose(larger, F.interpolate(x, scale_factor=4), atol=1e-6)


@pytest.mark.parametrize("size", ((64, 64), (80, 128), (200, 72)))
def test_smaller_things_come_from_whole_tiles(size):
    x = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    smaller = by_tiles(lambda t: F.avg_pool2d(t, 8), x, 64, 16, Fraction(1, 8))
    assert torch.allclose(smaller, F.avg_pool2d(x, 8), atol=1e-6)


def test_there_is_no_seam():
    """What differs from tile to tile changes over the overlap step by step."""
    count = iter(range(100))
    y = by_tiles(lambda t: torch.full_like(t, float(next(count))), torch.zeros(1, 1, 16, 28), 16, 4, Fraction(1))[0, 0]
    assert y[:, 0].max() == 0 and y[:, -1].min() == 1
    assert (y[:, 1:] - y[:, :-1]).abs().max() < 0.35


def test_the_autoencoder_by_tiles_is_close_to_the_whole(monkeypatch):
    """Measured on the bundled model, 64 x 64 in tiles of 48: 40.6 dB from its own whole decoding, and latents that are
    7 % of their deviation away."""
    monkeypatch.setattr("sage.models.sd.vae.SIDE", 48)
    monkeypatch.setattr("sage.models.sd.vae.OVERLAP", 16)
    model = load_model("stilllife", device="cpu")
    from sage.pictures import open_picture, to_tensor
    x = to_tensor(open_picture("examples/mug.png"), (64, 64))
    whole = model.decode(z := model.encode(x))
    model.save(Savings(tiles=True))
    z_tiled, tiled = model.encode(x), model.decode(z)
    assert tiled.shape == whole.shape and not torch.equal(tiled, whole)
    psnr = 10 * torch.log10(4 / (tiled - whole).square().mean())
    assert psnr > 35 and (z_tiled - z).std() < 0.15 * z.std()
