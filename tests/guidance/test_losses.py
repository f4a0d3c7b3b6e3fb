"""The loss is a plain mean; its gradient is the true one in every precision, and a picture's own."""

import pytest
import torch
from torch import Tensor

from sage.guidance.losses import gradient, latent_slopes, limited, map_slopes
from sage.models.sites import QueriesKeys


def mean_distance(current: list[Tensor], reference: list[Tensor], kind: str, weight: Tensor | None = None) -> Tensor:
    """The definition: over all entries of all tensors at once."""
    d = torch.cat([((a.float() - b.float()) ** (2 if kind == "l2" else 1)).abs().mul(1 if weight is None else weight)
                   .flatten() for a, b in zip(current, reference, strict=True)])
    return d.mean()


def made_from(z: Tensor, dtype: torch.dtype = torch.float32, size: int = 8) -> list[QueriesKeys]:
    """Three sites in a row, each also depending on the one before, as those of a network do."""
    x, out = z.to(dtype), []
    for _ in range(3):
        out.append(QueriesKeys(x, 0.7 * x.flip(-1)))
        x = x + out[-1].map().to(dtype) @ x
    return out


def start(batch: int = 2, size: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(batch, 2, size, size, generator=torch.Generator().manual_seed(seed))


def distances(now: list[QueriesKeys], then: list[QueriesKeys], kind: str, weight: Tensor | None = None) -> Tensor:
    """Each picture's, with every map formed at once."""
    return torch.stack([mean_distance([pair.map()[i] for pair in now], [pair.map()[i] for pair in then], kind,
                                      None if weight is None else weight[i]) for i in range(len(now[0].queries))])


def recorded(seed: int = 1, batch: int = 2) -> list[QueriesKeys]:
    return [QueriesKeys(*(t.detach() for t in pair)) for pair in made_from(start(batch, seed=seed))]


def led_back(z: Tensor, then: list[QueriesKeys], kind: str, largest: float = 1.0) -> Tensor:
    now = made_from(z)
    return gradient([t for pair in now for t in pair], map_slopes(now, then, kind)[1], z, largest)


@pytest.mark.parametrize("weighted", (False, True))
@pytest.mark.parametrize("entries", (2**25, 64))
@pytest.mark.parametrize("kind", ("l1", "l2"))
def test_slopes_are_those_of_the_plain_mean(kind, entries, weighted, monkeypatch):
    monkeypatch.setattr("sage.guidance.losses.ENTRIES", entries)  # the smaller one takes a head at a time
    now = [QueriesKeys(*(t.detach().requires_grad_() for t in pair)) for pair in made_from(start())]
    weight = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(5)) if weighted else None
    losses, slopes = map_slopes(now, recorded(), kind, weight)
    plain = distances(now, recorded(), kind, weight)
    true = torch.autograd.grad(plain.sum(), [t for pair in now for t in pair])
    assert torch.allclose(losses, plain) and not losses.requires_grad
    for ours, theirs in zip(slopes, true, strict=True):
        assert theirs.abs().max() > 0 and torch.allclose(ours, theirs, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("kind", ("l1", "l2"))
def test_entries_that_are_left_out_are_as_if_equal(kind):
    now, then = made_from(start()), recorded()
    nothing = torch.zeros(2, 8, 8)
    losses, slopes = map_slopes(now, then, kind, nothing)
    assert (losses == 0).all() and all((s == 0).all() for s in slopes)
    keep = torch.ones(2, 8, 8)
    keep[:, 2], keep[:, :, 2] = 0, 0
    assert (0 < map_slopes(now, then, kind, keep)[0]).all()
    assert (map_slopes(now, then, kind, keep)[0] < map_slopes(now, then, kind)[0]).all()


def test_distance_is_taken_in_float32():
    now, then = made_from(start(), torch.bfloat16), made_from(start(seed=1), torch.float16)
    losses, slopes = map_slopes(now, then)
    wide = map_slopes(*([QueriesKeys(*(t.float() for t in pair)) for pair in pairs] for pairs in (now, then)))
    assert losses.dtype == torch.float32 and torch.equal(losses, wide[0])
    assert all(s.dtype == torch.float32 and torch.equal(s, w) for s, w in zip(slopes, wide[1], strict=True))


def test_sites_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="cannot compare"):
        map_slopes(made_from(start()), recorded()[:2])
    with pytest.raises(ValueError, match="cannot compare"):
        map_slopes(made_from(start()), recorded(batch=1))


@pytest.mark.parametrize("kind", ("l1", "l2"))
def test_gradient_is_the_true_one(kind):
    z = start().requires_grad_()
    g = led_back(z, recorded(), kind)
    (true,) = torch.autograd.grad(distances(made_from(z), recorded(), kind).sum(), z)
    assert g.abs().max() > 0 and torch.allclose(g, true, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("kind", ("l1", "l2"))
def test_gradient_of_latents_is_the_true_one(kind):
    z = start().requires_grad_()
    x, reference = (3 * z).sigmoid(), start(seed=1)
    losses, slopes = latent_slopes(x, reference, kind)
    plain = torch.stack([mean_distance([a], [b], kind) for a, b in zip(x, reference, strict=True)])
    (true,) = torch.autograd.grad(plain.sum(), z, retain_graph=True)
    assert torch.allclose(losses, plain) and torch.allclose(gradient([x], slopes, z), true, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("largest", (2.0**-20, 1.0, 2.0**14, 3.0))
def test_the_scale_divides_out_exactly(largest):
    z = start().requires_grad_()
    assert torch.equal(led_back(z, recorded(), "l1"), led_back(z, recorded(), "l1", largest))


def test_a_picture_s_gradient_is_its_own():
    z = start(3).requires_grad_()
    with torch.no_grad():
        z[1] *= 3  # of quite another size
    then = recorded(batch=3)
    together = led_back(z, then, "l2")
    for i in range(3):
        one = z[i:i + 1].detach().requires_grad_()
        alone = led_back(one, [QueriesKeys(*(t[i:i + 1] for t in pair)) for pair in then], "l2")
        assert torch.allclose(together[i:i + 1], alone, rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
@pytest.mark.parametrize("kind", ("l1", "l2"))
def test_half_precision_does_not_underflow(kind, dtype):
    """Four million entries, a tenth of those of Stable Diffusion, 0.05 from their reference."""
    z = start(1, 1448).requires_grad_()
    reference = (z.sigmoid() + 0.05 * start(1, 1448, seed=1).sign()).detach()

    def naive(x: Tensor) -> Tensor:
        return torch.autograd.grad(mean_distance([x], [reference], kind), z)[0]

    true, x = naive(z.sigmoid()), z.to(dtype).sigmoid()
    ours = gradient([x], latent_slopes(x, reference, kind)[1], z)

    def error(g: Tensor) -> float:
        return ((g - true).norm() / true.norm()).item()

    assert error(ours) < (0.03 if dtype == torch.bfloat16 else 0.01)
    if dtype == torch.float16:  # bfloat16 has the range of float32
        assert error(naive(z.to(dtype).sigmoid())) > 0.1


def test_nothing_to_correct_gives_zero():
    now = made_from(start())
    losses, slopes = map_slopes(now, now, "l2")
    assert (losses == 0).all() and all((s == 0).all() for s in slopes)


def test_non_finite_maps_give_a_gradient_that_shows_it():
    z = start().requires_grad_()
    broken = made_from(z * torch.tensor(float("nan")))
    _, slopes = map_slopes(broken, recorded())
    assert not torch.isfinite(gradient([t for pair in broken for t in pair], slopes, z)).all()


def test_a_step_is_shortened_a_picture_at_a_time():
    step = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    step[0] *= 100
    step[2] = 0
    short = limited(step, 2.0)
    assert short[0].square().mean().sqrt().item() == pytest.approx(2, rel=1e-5)
    assert torch.allclose(short[0] / step[0], (short[0] / step[0]).mean(), rtol=1e-4)
    assert torch.equal(short[1:], step[1:]) and torch.equal(limited(step, 0.0), step)
