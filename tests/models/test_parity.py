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
    """Latents, timesteps, text, and where the network is told them pooled text and sizes."""
    g, p = torch.Generator().manual_seed(seed), unet.params
    z = torch.randn(batch, 4, 2 * unet.side_multiple, 3 * unet.side_multiple, generator=g)
    context = torch.randn(batch, 7, p.context_width, generator=g)
    sizes = torch.tensor([[512, 768, 0, 64, 512, 704]]) + torch.arange(batch)[:, None]
    told = (torch.randn(batch, p.pooled_width, generator=g), sizes) if p.added_width else None
    return z, torch.tensor([981, 1, 500])[:batch], context, told


def noise(unet: UNet, z, t, context, told) -> torch.Tensor:
    return unet(z, t, context, None if told is None else unet.added(*told))


@pytest.mark.parametrize("batch", BATCHES)
@torch.no_grad()
def test_unet(unets, batch):
    ours, theirs = unets
    given = unet_inputs(ours, batch)
    assert_same(noise(ours, *given), oracle.noise(theirs, *given))


@pytest.mark.parametrize("batch", BATCHES)
@torch.no_grad()
def test_unet_with_every_map_tapped(unets, batch):
    ours, theirs = unets
    given = unet_inputs(ours, batch)
    seen = []

    def look(site: Site) -> Callable:
        return lambda map, _, probabilities: seen.append((site.path, probabilities))

    hooks = [site.map.register_forward_hook(look(site)) for site in ours.sites()]
    try:
        out = noise(ours, *given)
    finally:
        for hook in hooks:
            hook.remove()
    assert_same(out, oracle.noise(theirs, *given))
    assert [path for path, _ in seen] == [site.path for site in ours.sites()]  # visited in this order
    for _, probabilities in seen:
        assert torch.allclose(probabilities.sum(-1), torch.ones(()), atol=1e-5)


@torch.no_grad()
def test_unet_takes_one_number_for_the_whole_batch(unets):
    ours, _ = unets
    z, _, context, told = unet_inputs(ours, 3)
    each = noise(ours, z, torch.full((3,), 500), context, told)
    assert_same(noise(ours, z, 500, context, told), each)
    time = ours.time(500, None if told is None else ours.added(*told))
    assert torch.equal(ours(z, time, ours.text(context)), noise(ours, z, 500, context, told))


def test_unet_gradient(unets):
    ours, theirs = unets
    z, *given = unet_inputs(ours, 1)

    def gradient(predict) -> torch.Tensor:
        x = z.clone().requires_grad_()
        return torch.autograd.grad(predict(x).square().mean(), x)[0]

    assert_same(gradient(lambda x: noise(ours, x, *given)), gradient(lambda x: oracle.noise(theirs, x, *given)))


@torch.no_grad()
def test_unet_is_told_the_sizes_of_all_pictures_at_once():
    ours = UNet(oracle.UNETS["XL"])
    z, t, context, (pooled, sizes) = unet_inputs(ours, 3)
    one = noise(ours, z, t, context, (pooled, sizes[:1]))
    assert_same(one, noise(ours, z, t, context, (pooled, sizes[:1].expand(3, -1))))
    assert (one[1] - noise(ours, z, t, context, (pooled, sizes))[1]).abs().max() > 1e-4


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


@pytest.mark.parametrize("batch", BATCHES)
@torch.no_grad()
def test_what_xl_takes_of_its_text_encoders(texts, batch):
    """What enters the last layer, and the projected end mark."""
    ours, theirs = texts
    ids = torch.randint(2, ours.params.vocabulary, (batch, 20), generator=torch.Generator().manual_seed(0))
    ids[:, 11], ids[:, 12:] = 1, 0  # the end mark, and the padding of the second tokenizer
    said = theirs(ids, output_hidden_states=True)
    before, last = ours.states(ids)
    assert_same(before, said.hidden_states[-2])
    if ours.params.projection:
        assert_same(ours.pooled(last, 11), said.text_embeds)
