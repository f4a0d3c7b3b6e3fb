"""At the sizes of real pictures, and in every memory layout, networks are as good as float32 allows; float64 judges."""

import copy
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from sage.models.layers import PACK, GroupNorm, pack
from sage.models.sd.unet import UNet, UNetParams
from sage.models.sd.vae import VAE, VAEParams

TOLERANCE = 5e-6
GRADIENT = 1e-5  # up to 5.6e-6 of it is float32's without norms: as much is left where they are computed in float64
CONTIGUOUS, CHANNELS_LAST = torch.contiguous_format, torch.channels_last

# As Stable Diffusion 1.x and 2.x, but narrow.
UNETS = {"1.x": UNetParams(channels=(32, 64, 64, 64), heads=(4, 4, 4, 4), context_width=16),
         "2.x": UNetParams(channels=(32, 64, 64, 64), heads=(2, 4, 4, 4), context_width=16, linear_projection=True)}
AUTOENCODER = VAEParams(channels=(16, 32, 32, 32), groups=16)
LAYOUTS = ("contiguous", "channels last", "packed")
SIZES = (256, pytest.param(512, marks=pytest.mark.slow))


def error(ours: Tensor, exact: Tensor) -> float:
    return ((ours.double() - exact).norm() / exact.norm()).item()


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def with_gradient(function, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    y = function(x)
    return y.detach(), torch.autograd.grad(y, x, draw(*y.shape).to(y))[0]


@pytest.mark.parametrize("layout", (CONTIGUOUS, CHANNELS_LAST), ids=("contiguous", "channels last"))
@pytest.mark.parametrize("deviations", (0, 5, 20))
@pytest.mark.parametrize("shape", ((2, 32, 16, 16), (2, 64, 64, 48), (3, 32, 67, 71), (2, 32, 256, 256)), ids=str)
def test_group_norm(shape, deviations, layout):
    """However far a channel's mean lies from 0; what is lost then is what rounding the input itself loses."""
    torch.manual_seed(0)
    norm = GroupNorm(8, shape[1])
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = (draw(*shape) + deviations).to(memory_format=layout)
    exact = with_gradient(copy.deepcopy(norm).double(), x.double().contiguous())
    with torch.no_grad():
        alone = norm(x)
    ours = with_gradient(norm, x)
    assert torch.equal(ours[0], alone) and alone.is_contiguous(memory_format=layout)
    assert error(ours[0], exact[0]) <= 1.2e-7 * max(1, deviations)
    assert error(ours[1], exact[1]) <= GRADIENT


@pytest.mark.parametrize("shape", ((2, 32, 8, 8), (2, 32, 64, 64)), ids=str)
def test_a_group_norm_can_be_trained(shape):
    ours, exact = GroupNorm(8, 32), nn.GroupNorm(8, 32).double()
    x, g = draw(*shape).to(memory_format=CHANNELS_LAST), draw(*shape)
    ours(x.requires_grad_()).backward(g)
    exact(x.detach().double().contiguous()).backward(g.double())
    for mine, true in zip(ours.parameters(), exact.parameters(), strict=True):
        assert error(mine.grad, true.grad) <= TOLERANCE


def test_a_picture_in_a_batch_is_normalised_as_alone():
    norm, x = GroupNorm(8, 32), draw(3, 32, 64, 64).to(memory_format=CHANNELS_LAST)
    assert torch.equal(norm(x)[1:2], norm(x[1:2]))


def make(network: type[nn.Module], params: UNetParams | VAEParams) -> nn.Module:
    """A network in which the means of many channels lie some deviations off 0, as those of trained ones do."""
    torch.manual_seed(0)
    made = network(params).requires_grad_(False)
    for p in made.parameters():
        if p.ndim == 1:
            p.add_(torch.randn(p.shape))
    return made


def laid_out(network: nn.Module, layout: str) -> nn.Module:
    if layout == "packed":
        if PACK is None:
            pytest.skip("no oneDNN")
        pack(network)
    return network.to(memory_format=CHANNELS_LAST if layout == "channels last" else CONTIGUOUS)


@cache
def exact_unet(family: str, size: int) -> tuple[Tensor, Tensor]:
    """What float64 makes of the latents and the text below, and its gradient at the latents."""
    exact = make(UNet, UNETS[family]).double()
    return with_gradient(lambda z: exact(z, 500, draw(1, 77, 16).double()), draw(1, 4, size // 8, size // 8).double())


@cache
@torch.no_grad()
def exact_autoencoder(size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Latents of the picture below, the same in float32, and what float64 decodes those to."""
    exact = make(VAE, AUTOENCODER).double()
    z = exact.encode(draw(1, 3, size, size).double())
    return z, z.float(), exact.decode(z.float().double())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", UNETS)
def test_unet(family, size, layout):
    unet = laid_out(make(UNet, UNETS[family]), layout)
    ours = with_gradient(lambda z: unet(z, 500, draw(1, 77, 16)), draw(1, 4, size // 8, size // 8))
    exact = exact_unet(family, size)
    assert error(ours[0], exact[0]) <= TOLERANCE
    assert error(ours[1], exact[1]) <= GRADIENT


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_autoencoder(size, layout):
    vae = laid_out(make(VAE, AUTOENCODER), layout)
    latents, rounded, decoded = exact_autoencoder(size)
    assert error(vae.encode(draw(1, 3, size, size)), latents) <= TOLERANCE
    assert error(vae.decode(rounded), decoded) <= TOLERANCE
