"""The networks of FLUX.1 give what diffusers' and transformers' give with the same weights: 1e-5 relative."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.loaders import single_file_utils
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import nn

from sage.errors import ModelError, SettingsError
from sage.guidance.hooks import listen, record, rewrite, swap
from sage.models.flow.singlefile import autoencoder, is_flux, take_apart
from sage.models.flow.t5 import T5Text, buckets
from sage.models.flow.transformer import FluxParams, FluxTransformer
from sage.models.sd.vae import VAE, VAEParams
from sage.models.sites import Where
from sage.models.weights import Stored
from sage.sampling.levels import FlowParams, FlowSchedule
from tests.models import bfl, oracle
from tests.models.test_parity import assert_same, twin

BATCHES = (1, 3)
DEV, SCHNELL = FluxParams(), FluxParams(guidance=False)
VAE_16 = VAEParams(latent_channels=16, scaling=0.3611, shift=0.1159, quant_convs=False)


@pytest.fixture(scope="module", params=oracle.FLUXES)
def fluxes(request):
    p = oracle.FLUXES[request.param]
    theirs = oracle.shaken(oracle.flux(p))
    return twin(FluxTransformer(p), theirs.state_dict()), theirs


def inputs(p: FluxParams, batch: int, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(batch, p.channels, 6 * p.patch, 4 * p.patch, generator=g)
    context, pooled = torch.randn(batch, 7, p.context_width, generator=g), torch.randn(batch, p.pooled_width,
                                                                                       generator=g)
    return z, torch.tensor([0.931, 0.0, 0.5])[:batch], context, pooled, torch.tensor([3.5, 1.0, 7.0])[:batch]


def theirs_of(theirs: nn.Module, p: FluxParams, z, t, context, pooled, guidance):
    return oracle.velocity(theirs, z, t, context, pooled, guidance if p.guidance else None, p.patch)


@pytest.mark.parametrize("batch", BATCHES)
@torch.no_grad()
def test_transformer(fluxes, batch):
    ours, theirs = fluxes
    given = inputs(ours.params, batch)
    assert_same(ours(*given), theirs_of(theirs, ours.params, *given))


@torch.no_grad()
def test_every_input_counts(fluxes):
    ours, _ = fluxes
    z, t, context, pooled, guidance = inputs(ours.params, 1)
    base = ours(z, t, context, pooled, guidance)
    others = [ours(z, t + 0.01, context, pooled, guidance), ours(z, t, -context, pooled, guidance),
              ours(z, t, context, -pooled, guidance), ours(z.flip(-1), t, context, pooled, guidance).flip(-1)]
    assert all((other - base).norm() / base.norm() > 1e-3 for other in others)
    assert torch.equal(ours(z, t, context, pooled, guidance + 1), base) == (not ours.params.guidance)
    assert torch.equal(ours(z, float(t), context, pooled, float(guidance)), base)


def test_gradient(fluxes):
    ours, theirs = fluxes
    z, *more = inputs(ours.params, 1)

    def gradient(predict: Callable) -> torch.Tensor:
        x = z.clone().requires_grad_()
        return torch.autograd.grad(predict(x).square().mean(), x)[0]

    assert_same(gradient(lambda x: ours(x, *more)), gradient(lambda x: theirs_of(theirs, ours.params, x, *more)))


@torch.no_grad()
def test_bfloat16_is_as_near_to_float32_as_theirs(fluxes):
    ours, theirs = fluxes
    given = inputs(ours.params, 3)
    exact = theirs_of(theirs, ours.params, *given)
    half = FluxTransformer(ours.params)
    half.load_state_dict(ours.state_dict())
    for module in half.modules():
        if isinstance(module, nn.Linear):
            module.to(torch.bfloat16)
    rounded = oracle.flux(ours.params)
    rounded.load_state_dict(theirs.state_dict())
    rounded.to(torch.bfloat16)
    z, t, context, pooled, guidance = given
    # Theirs rounds the time to bfloat16, which is another question: it is asked at times that are none the worse.
    t = t.bfloat16().float()
    exact = theirs_of(theirs, ours.params, z, t, context, pooled, guidance)
    low = [x.bfloat16() for x in (z, t, context, pooled, guidance)]
    error = ((half(z, t, context, pooled, guidance).float() - exact).norm() / exact.norm()).item()
    their_error = ((theirs_of(rounded, ours.params, *low).float() - exact).norm() / exact.norm()).item()
    assert 1e-4 < error < 1.2 * their_error and error < 0.05


# Sites: two views of one joint attention

@torch.no_grad()
def test_every_map_tapped(fluxes):
    ours, theirs = fluxes
    given = inputs(ours.params, 3)
    sites = ours.sites()
    with record(sites) as maps, listen(sites) as pairs:
        out = ours(*given)
    assert_same(out, theirs_of(theirs, ours.params, *given))
    for site, seen, pair in zip(sites, maps.pop(), pairs.pop(), strict=True):
        assert seen.shape == (3, ours.params.heads, 24, 24 if site.kind == "self" else 7)
        assert torch.allclose(seen.sum(-1), torch.ones(()), atol=1e-5)
        assert torch.allclose(seen, pair.map(), atol=1e-5)


@torch.no_grad()
def test_one_kind_of_map_tapped(fluxes):
    ours, theirs = fluxes
    given = inputs(ours.params, 1)
    for kind in ("self", "cross"):
        with record([site for site in ours.sites() if site.kind == kind]):
            assert_same(ours(*given), theirs_of(theirs, ours.params, *given))


def test_sites_are_found_by_kind_level_place_and_depth(fluxes):
    sites, p = fluxes[0].sites(), fluxes[0].params
    layers, level = p.depth + p.depth_single, p.patch - 1
    for kind in ("self", "cross"):
        assert len(sites.at(Where(kind, level))) == layers
        assert [s.place for s in sites.at(Where(kind))] == ["double"] * p.depth + ["single"] * p.depth_single
        assert len(sites.at(Where(kind, place="double"))) == p.depth
        assert len(sites.at(Where(kind, blocks=(0.5, 1.0)))) == layers - -(-layers // 2)
    assert sites[0].grid(6 * p.patch, 4 * p.patch) == (6, 4)
    with pytest.raises(SettingsError, match="level 5"):
        sites.at(Where("self", 5))


def joint(q, k, v, text: int, change: Callable) -> torch.Tensor:
    """Attention of [text; image] with the maps of the image's rows changed, formed as a whole and in plain words."""
    scores = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).exp()
    of_text, of_image = scores[..., text:, :text], scores[..., text:, text:]
    total_text, total_image = of_text.sum(-1, keepdim=True), of_image.sum(-1, keepdim=True)
    a_text, a_image = change(of_text / total_text, of_image / total_image)
    changed = torch.cat([a_text * total_text, a_image * total_image], dim=-1) / (total_text + total_image)
    whole = torch.cat([(scores / scores.sum(-1, keepdim=True))[..., :text, :], changed], dim=-2)
    return (whole @ v).transpose(1, 2).flatten(2)


@torch.no_grad()
def test_rewritten_blocks_are_put_back_into_the_joint_map():
    from sage.models.flow.attention import JointAttention
    from sage.models.sites import Projection
    g = torch.Generator().manual_seed(0)
    parts = [torch.randn(2, 3, 11, 8, generator=g) for _ in range(3)]
    text, image = (Projection(*(t[:, :, rows] for t in parts)) for rows in (slice(4), slice(4, None)))
    attention = JointAttention("a", 1, "double", 3, 8)
    columns = torch.tensor([1.0, 0.0, 2.0, 0.5])
    with rewrite([attention.text], lambda m, site: m * columns), rewrite([attention.image], lambda m, site: m.flip(-1)):
        ours = torch.cat(attention(text, image), dim=1)
    assert_same(ours, joint(*parts, 4, lambda t, i: (t * columns, i.flip(-1))))
    with rewrite([attention.text], lambda m, site: m * columns):
        ours = torch.cat(attention(text, image), dim=1)
    assert_same(ours, joint(*parts, 4, lambda t, i: (t * columns, i)))
    with swap([attention.image], lambda p, site: p._replace(values=-p.values)):
        ours = torch.cat(attention(text, image), dim=1)
    values = torch.cat([parts[2][:, :, :4], -parts[2][:, :, 4:]], dim=2)
    assert_same(ours, joint(parts[0], parts[1], values, 4, lambda t, i: (t, i)))


# Autoencoder and text

@pytest.mark.parametrize("batch", BATCHES)
@torch.no_grad()
def test_t5(batch):
    p = oracle.T5S["one"]
    theirs = oracle.shaken(oracle.t5(p))
    ours = twin(T5Text(p), {k: v for k, v in theirs.state_dict().items() if k != "encoder.embed_tokens.weight"})
    ids = torch.randint(0, p.vocabulary, (batch, 40), generator=torch.Generator().manual_seed(0))
    assert_same(ours(ids), theirs(ids).last_hidden_state)


def test_buckets_of_distances():
    p = replace(oracle.T5S["one"], buckets=32, max_distance=128)
    found = buckets(p, 600)
    assert found[0].tolist()[:9] == [0, 17, 18, 19, 20, 21, 22, 23, 24]
    assert (found[10, 9], found[599, 0], found[0, 599], found.max()) == (1, 15, 31, 31)


# Full size, on the meta device: names, shapes and numbers of the published checkpoints

@pytest.mark.parametrize(("params", "numbers", "keys", "authors"), (
    (DEV, 11_901_408_320, 1160, 780), (SCHNELL, 11_891_178_560, 1156, 776)))
def test_published_names_and_shapes(params, numbers, keys, authors, tmp_path):
    with torch.device("meta"):
        ours, theirs = FluxTransformer(params), oracle.flux(params)
        stored = bfl.transformer(ours.state_dict())
        converted = single_file_utils.convert_flux_transformer_checkpoint_to_diffusers(dict(stored))
    shapes = {key: tuple(value.shape) for key, value in ours.state_dict().items()}
    assert shapes == {key: tuple(value.shape) for key, value in theirs.state_dict().items()}
    assert sum(p.numel() for p in ours.parameters()) == numbers
    assert (len(shapes), len(stored)) == (keys, authors)
    for prefix in ("", "model.diffusion_model."):
        tensors = {prefix + key: Stored(tmp_path, None, key, tuple(value.shape), "BF16")
                   for key, value in stored.items()}
        assert is_flux(tensors)
        read, renamed = take_apart(tmp_path, tensors)
        assert read == params
        assert {key: value.shape for key, value in renamed.items()} == shapes
    assert converted.keys() == shapes.keys()
    assert sum(p.numel() for p in ours.transformer_blocks[0].parameters()) == 339_831_296
    assert sum(p.numel() for p in ours.single_transformer_blocks[0].parameters()) == 141_591_808


def test_published_autoencoder(tmp_path):
    with torch.device("meta"):
        ours, theirs = VAE(VAE_16), oracle.vae(VAE_16)
        stored = bfl.autoencoder(ours.state_dict())
    shapes = {key: tuple(value.shape) for key, value in ours.state_dict().items()}
    assert shapes == {key: tuple(value.shape) for key, value in theirs.state_dict().items()}
    assert (sum(p.numel() for p in ours.parameters()), len(shapes)) == (83_819_683, 244)
    params, renamed = autoencoder(tmp_path, {key: Stored(tmp_path, None, key, tuple(value.shape), "F32")
                                             for key, value in stored.items()})
    assert params == VAE_16 and renamed.keys() == shapes.keys()


def test_another_kind_of_file_is_no_transformer(tmp_path):
    assert not is_flux({"model.diffusion_model.input_blocks.0.0.weight": None, "transformer_blocks.0.x": None})
    with pytest.raises(ModelError, match="is no autoencoder"):
        autoencoder(tmp_path, {"decoder.x": Stored(tmp_path, None, "decoder.x", (1,), "F32")})


# Levels

@pytest.mark.parametrize("size", ((16, 16), (64, 48), (128, 128), (23, 31)))
@pytest.mark.parametrize("steps", (1, 4, 28))
@pytest.mark.parametrize("dynamic", (True, False))
def test_levels_are_those_of_diffusers(size, steps, dynamic):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0 if dynamic else 3.0, use_dynamic_shifting=dynamic)
    tokens = -(-size[0] // 2) * -(-size[1] // 2)
    scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps, dtype=torch.float64).tolist(),
                            mu=calculate_shift(tokens, 256, 4096, 0.5, 1.15) if dynamic else None)
    levels = FlowSchedule(FlowParams(dynamic=dynamic, shift=3.0)).levels(steps, "leading", size)
    assert [level.t for level in levels[::-1]] == pytest.approx(scheduler.sigmas.tolist(), abs=2e-7)
    assert (levels[0].signal, levels[0].noise, levels[-1].signal, levels[-1].noise) == (1, 0, 0, 1)
    assert all(level.signal + level.noise == 1 for level in levels)


def test_the_shift_is_that_of_the_sheet():
    levels = FlowSchedule().levels(28, "leading", (64, 64))  # 1,024 tokens
    assert [round(level.t, 4) for level in levels[-1:-4:-1]] == [1, 0.9807, 0.9606]
    assert round(levels[1].t, 3) == 0.065
    assert torch.tensor(FlowSchedule().shift((16, 16))).log() == pytest.approx(0.4675, abs=1e-4)


def test_no_other_levels():
    for spacing, steps in (("trailing", 4), ("leading", 0)):
        with pytest.raises(SettingsError, match="spacing|steps"):
            FlowSchedule().levels(steps, spacing, (16, 16))
