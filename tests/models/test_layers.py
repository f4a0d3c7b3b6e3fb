"""The layers are torch's: the same numbers and gradients to rounding, by whatever way a CPU takes."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sage.models import layers
from sage.models.layers import Conv2d, Linear, pack
from sage.models.loading import load_model


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-6) -> bool:
    return a.shape == b.shape and ((a - b).norm() / b.norm()).item() < tolerance


def with_gradient(function, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.clone().requires_grad_()
    y = function(x)
    return y, torch.autograd.grad((y * torch.linspace(-1, 1, y.numel()).reshape(y.shape)).sum(), x)[0]


@pytest.mark.skipif(layers.PRODUCT is None, reason="no oneDNN")
@pytest.mark.parametrize("bias", (True, False))
def test_large_products(bias, monkeypatch):
    torch.manual_seed(0)
    layer, used = Linear(40, 70, bias=bias).requires_grad_(False), []
    x = torch.randn(2, 9, 40)
    expected = with_gradient(lambda x: F.linear(x, layer.weight, layer.bias), x)
    product = layers.PRODUCT
    monkeypatch.setattr(layers, "PRODUCT", lambda *args: used.append(args) or product(*args))
    assert close(layer(x), expected[0]) and not used  # small ones are torch's own
    monkeypatch.setattr(layers, "LARGE", 2 * 9 * 40 * 70)
    ours = with_gradient(layer, x)
    assert len(used) == 2 and all(close(a, b) for a, b in zip(ours, expected, strict=True))
    layer.requires_grad_(True)
    layer(x).sum().backward()
    assert len(used) == 2 and layer.weight.grad is not None  # what is trained is torch's


@pytest.mark.parametrize("kernel, bias", ((3, True), (1, True), (3, False)))
def test_packed_convolutions(kernel, bias):
    torch.manual_seed(0)
    layer = Conv2d(32, 48, kernel, padding=kernel // 2, bias=bias).requires_grad_(False)
    expected = {shape: with_gradient(lambda x: F.conv2d(x, layer.weight, layer.bias, padding=layer.padding), x)
                for shape in ((1, 32, 8, 8), (3, 32, 16, 4)) for x in (draw(shape),)}
    pack(nn.Sequential(layer))
    assert layer.packs == (kernel == 3 and layers.PACK is not None)
    for shape, true in expected.items():  # also of other sizes than it was packed for
        ours = with_gradient(layer, draw(shape))
        assert all(close(a, b) for a, b in zip(ours, true, strict=True))
        with torch.no_grad():
            assert close(layer(draw(shape)), true[0])
    assert (layer._packed is not None) == layer.packs


def draw(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def test_packed_weights_are_those_of_one_tensor():
    layer = Conv2d(32, 32, 3, padding=1).requires_grad_(False)
    pack(layer)
    before = layer(draw((1, 32, 8, 8)))
    layer.weight = nn.Parameter(layer.weight * 2, requires_grad=False)
    layer.bias = nn.Parameter(layer.bias * 2, requires_grad=False)
    assert close(layer(draw((1, 32, 8, 8))), 2 * before)


@pytest.mark.parametrize("layer", (Conv2d(32, 32, 3, stride=2, padding=1), Conv2d(32, 32, 3),
                                   Conv2d(32, 32, 3, padding=1).bfloat16(), Conv2d(32, 32, 3, padding=1)),
                         ids=("stride", "valid", "bfloat16", "trained"))
def test_what_cannot_be_packed_is_left_alone(layer, request):
    layer.requires_grad_("trained" in request.node.name)
    pack(layer)
    layer(draw((1, 32, 8, 8)).to(layer.weight.dtype))
    assert layer._packed is None


def test_the_bundled_model_is_packed_and_the_same_without(monkeypatch):
    packed = load_model("stilllife", device="cpu")
    assert any(m.packs for m in packed.unet.modules() if isinstance(m, Conv2d)) == (layers.PACK is not None)
    monkeypatch.setattr("sage.models.latent.SMALL", 0)
    plain = load_model("stilllife", device="cpu")
    assert not any(m.packs for m in plain.unet.modules() if isinstance(m, Conv2d))
    z = draw((2, plain.unet.params.in_channels, 16, 24))
    text = torch.randn(2, 64, plain.unet.params.context_width)
    with torch.no_grad():
        assert close(packed.unet(z, 500, text), plain.unet(z, 500, text), 1e-5)
        assert close(packed.decode(z), plain.decode(z), 1e-5)


def test_a_half_precision_layer_is_torch_s():
    layer = Linear(64, 64).requires_grad_(False)
    x = torch.randn(1, 4096, 64)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
