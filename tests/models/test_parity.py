"""Each network gives what diffusers' or transformers' gives with the same weights: 1e-5 relative, in float32."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from sage.models.sd.clip import CLIPText
from sage.models.sd.unet import UNet
from sage.models.sd.vae import VAE
from sage.models.sites import Site
from tests.models import oracle

TOLERANCE = 1e-5
BATCHES = (1, 3)


def twin(ours: nn.Module, state: dict[str, torch.Tensor]) -> nn.Module:
    ours.load_state_dict(state, strict=True)
    return ours.eval()


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.shape == theirs.shape
    assert torch.isfinite(theirs).all() and theirs.std() > 1e-3  # an oracle of zeros would prove nothing
    assert ((ours - theirs).norm() / theirs.norm()).item() <= TOLERANCE


@pytest.fixture(scope="module", params=oracle.UNETS)
def unets(request):
    p = oracle.UNETS[request.param]
    theirs = oracle.shaken(oracle.unet(p))
    return twin(UNet(p), theirs.state_dict()), theirs


def unet_inputs(unet: UNet, batch: int, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(batch, 4, 2 * unet.side_multiple, 3 * unet.side_multiple, generator=g)
    context = torch.randn(batch, 7, unet.params.context_width, generator=g)
    return z, torch.tensor([981, 1, 500])[:batch], context


@pytest.mark.parametrize("batch", BATCHES)
@torch.no_grad()
def test_unet(unets, batch):
    ours, theirs = unets
    z, t, context = unet_inputs(ours, batch)
    assert_same(ours(z, t, context), theirs(z, t, encoder_hidden_states=context).sample)


@pytest.mark.parametrize("batch", BATCHES)
@torch.no_grad()
def test_unet_with_every_map_tapped(unets, batch):
    ours, theirs = unets
    z, t, context = unet_inputs(ours, batch)
    seen = []

    def look(site: Site) -> Callable:
        return lambda map, _, probabilities: seen.append((site.path, probabilities))

    hooks = [site.map.register_forward_hook(look(site)) for site in ours.sites()]
    try:
        out = ours(z, t, context)
    finally:
        for hook in hooks:
            hook.remove()
    assert_same(out, theirs(z, t, encoder_hidden_states=context).sample)
    assert [path for path, _ in seen] == [site.path for site in ours.sites()]  # visited in this order
    for _, probabilities in seen:
        assert torch.allclose(probabilities.sum(-1), torch.ones(()), atol=1e-5)


@torch.no_grad()
def test_unet_takes_one_number_for_the_whole_batch(unets):
    ours, _ = unets
    z, _, context = unet_inputs(ours, 3)
    each = ours(z, torch.full((3,), 500), context)
    assert_same(ours(z, 500, context), each)
    assert torch.equal(ours(z, ours.time(500), ours.text(context)), ours(z, 500, context))


def test_unet_gradient(unets):
    ours, theirs = unets
    z, t, context = unet_inputs(ours, 1)

    def gradient(predict) -> torch.Tensor:
        x = z.clone().requires_grad_()
        return torch.autograd.grad(predict(x).square().mean(), x)[0]

    assert_same(gradient(lambda x: ours(x, t, context)),
                gradient(lambda x: theirs(x, t, encoder_hidden_states=context).sample))


@pytest.fixture(scope="module", params=oracle.VAES)
def vaes(request):
    p = oracle.VAES[request.param]
    theirs = oracle.shaken(oracle.vae(p))
    return twin(VAE(p), theirs.state_dict()), theirs


@pytest.mark.parametrize("batch", BATCHES)
@torch.no_grad()
def test_vae(vaes, batch):
    ours, theirs = vaes
    x = torch.rand(batch, 3, 4 * ours.factor, 6 * ours.factor, generator=torch.Generator().manual_seed(0)) * 2 - 1
    posterior = theirs.encode(x).latent_dist
    mean, logvar = ours.posterior(x)
    assert_same(mean, posterior.mean)
    assert_same(logvar, posterior.logvar)
    z = ours.encode(x)
    scaling, shift = theirs.config.scaling_factor, theirs.config.shift_factor or 0
    assert_same(z, (posterior.mean - shift) * scaling)
    assert_same(ours.decode(z), theirs.decode(z / scaling + shift).sample)


@pytest.fixture(scope="module", params=oracle.TEXTS)
def texts(request):
    p = oracle.TEXTS[request.param]
    theirs = oracle.shaken(oracle.text(p))
    return twin(CLIPText(p), oracle.text_state(theirs)), theirs


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("length", (5, 20))
@torch.no_grad()
def test_text(texts, batch, length):
    ours, theirs = texts
    ids = torch.randint(0, ours.params.vocabulary, (batch, length), generator=torch.Generator().manual_seed(0))
    assert_same(ours(ids), theirs(ids).last_hidden_state)
