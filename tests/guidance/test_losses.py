"""The loss is a plain mean; its gradient is the true one in every precision, and a picture's own."""

import pytest
import torch
from torch import Tensor

from sage.guidance.losses import gradient, limited, mean_distance


def maps(seed: int = 0, batch: int = 2, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, 2, n, n, generator=g).softmax(-1).to(dtype) for n in (4, 4, 6)]


@pytest.mark.parametrize("kind", ("l1", "l2"))
def test_distance_is_the_mean_over_all_entries(kind):
    a, b = maps(1), maps(2)
    flat = torch.cat([x.flatten() for x in a]) - torch.cat([x.flatten() for x in b])
    plain = flat.abs().mean() if kind == "l1" else flat.square().mean()
    assert mean_distance(a, b, kind).item() == pytest.approx(plain.item(), rel=1e-6)
    assert mean_distance(a, a, kind) == 0


@pytest.mark.parametrize("kind", ("l1", "l2"))
def test_entries_that_are_left_out_are_as_if_equal(kind):
    a, b = maps(1)[:2], maps(2)[:2]
    keep = torch.tensor([1.0, 1.0, 0.0, 1.0])
    b_equal = [torch.where(keep[:, None] * keep[None] == 1, y, x) for x, y in zip(a, b, strict=True)]
    left_out = mean_distance(a, b, kind, keep[:, None] * keep[None])
    assert left_out.item() == pytest.approx(mean_distance(a, b_equal, kind).item(), rel=1e-6)
    assert 0 < left_out < mean_distance(a, b, kind)


def test_distance_is_taken_in_float32():
    a, b = maps(1, dtype=torch.float16), maps(2, dtype=torch.bfloat16)
    assert mean_distance(a, b).dtype == torch.float32
    assert mean_distance(a, b) == mean_distance([x.float() for x in a], [x.float() for x in b])


def test_maps_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="cannot compare"):
        mean_distance(maps(1), maps(2)[:2])
    with pytest.raises(ValueError, match="cannot compare"):
        mean_distance(maps(1, batch=1), maps(2, batch=2))


def losses(kind: str, reference: list[Tensor]):
    return lambda now: torch.stack([mean_distance([m[i] for m in now], [m[i] for m in reference], kind)
                                    for i in range(len(now[0]))])


def made_from(z: Tensor, dtype: torch.dtype = torch.float32, size: int = 8) -> list[Tensor]:
    """Three maps in a row, each also depending on the one before, as those of a network do."""
    x, out = z.to(dtype), []
    for _ in range(3):
        map = (x @ x.transpose(-1, -2) * size**-0.5).softmax(-1).to(dtype)
        out.append(map)
        x = x + map @ x
    return out


def start(batch: int = 2, size: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(batch, 2, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ("l1", "l2"))
def test_gradient_is_the_true_one(kind):
    z = start().requires_grad_()
    reference = [m.detach() for m in made_from(start(seed=1))]
    loss, g = gradient(made_from(z), z, losses(kind, reference))
    plain = losses(kind, reference)(made_from(z))
    (true,) = torch.autograd.grad(plain.sum(), z)
    assert torch.allclose(loss, plain) and not loss.requires_grad
    assert g.abs().max() > 0 and torch.allclose(g, true, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("largest", (2.0**-20, 1.0, 2.0**14, 3.0))
def test_the_scale_divides_out_exactly(largest):
    z = start().requires_grad_()
    reference = [m.detach() for m in made_from(start(seed=1))]
    g = [gradient(made_from(z), z, losses("l1", reference), by)[1] for by in (1.0, largest)]
    assert torch.equal(*g)


def test_a_picture_s_gradient_is_its_own():
    z = start(3).requires_grad_()
    with torch.no_grad():
        z[1] *= 100  # of quite another size
    reference = [m.detach() for m in made_from(start(3, seed=1))]
    _, together = gradient(made_from(z), z, losses("l2", reference))
    for i in range(3):
        one = z[i:i + 1].detach().requires_grad_()
        _, alone = gradient(made_from(one), one, losses("l2", [m[i:i + 1] for m in reference]))
        assert torch.allclose(together[i:i + 1], alone, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
@pytest.mark.parametrize("kind", ("l1", "l2"))
def test_half_precision_does_not_underflow(kind, dtype):
    """Four million entries, a tenth of those of Stable Diffusion, 0.05 from their reference."""
    z = start(1, 1448).requires_grad_()
    reference = [(z.sigmoid() + 0.05 * start(1, 1448, seed=1).sign()).detach()]
    (true,) = torch.autograd.grad(losses(kind, reference)([z.sigmoid()]).sum(), z)
    _, ours = gradient([z.to(dtype).sigmoid()], z, losses(kind, reference))
    (naive,) = torch.autograd.grad(losses(kind, reference)([z.to(dtype).sigmoid()]).sum(), z)

    def error(g: Tensor) -> float:
        return ((g - true).norm() / true.norm()).item()

    assert error(ours) < (0.03 if dtype == torch.bfloat16 else 0.01)
    if dtype == torch.float16:  # bfloat16 has the range of float32
        assert error(naive) > 0.1


def test_nothing_to_correct_gives_zero():
    z = start().requires_grad_()
    reference = [m.detach() for m in made_from(z)]
    loss, g = gradient(made_from(z), z, losses("l2", reference))
    assert (loss == 0).all() and (g == 0).all()


def test_non_finite_maps_give_a_gradient_that_shows_it():
    z = start().requires_grad_()
    reference = [m.detach() for m in made_from(start(seed=1))]
    broken = [m * torch.tensor(float("nan")) for m in made_from(z)]
    assert not torch.isfinite(gradient(broken, z, losses("l1", reference))[1]).all()


def test_a_step_is_shortened_a_picture_at_a_time():
    step = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    step[0] *= 100
    step[2] = 0
    short = limited(step, 2.0)
    assert short[0].square().mean().sqrt().item() == pytest.approx(2, rel=1e-5)
    assert torch.allclose(short[0] / step[0], (short[0] / step[0]).mean(), rtol=1e-4)
    assert torch.equal(short[1:], step[1:]) and torch.equal(limited(step, 0.0), step)
