"""Maps are formed where somebody listens, nowhere else, and never after the context."""

import pytest
import torch

from sage.errors import SettingsError
from sage.guidance.hooks import listen, record, rewrite, select
from sage.models.sd.attention import AttentionMap
from sage.models.sd.unet import UNet
from tests import small


@pytest.fixture(scope="module")
def unet() -> UNet:
    torch.manual_seed(0)
    return UNet(small.UNET).eval().requires_grad_(False)


@pytest.fixture
def formed(monkeypatch) -> list[str]:
    """Paths of the sites whose maps were formed."""
    paths, forward = [], AttentionMap.forward
    monkeypatch.setattr(AttentionMap, "forward", lambda site, q, k: paths.append(site.path) or forward(site, q, k))
    return paths


@torch.no_grad()
def run(unet: UNet, batch: int = 1, height: int = 16, width: int = 24) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    return unet(torch.randn(batch, 4, height, width, generator=g), 500, torch.randn(batch, 7, 32, generator=g))


def hooks(unet: UNet) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in unet.modules())


def test_no_map_is_formed_when_nobody_listens(unet, formed):
    before = run(unet)
    assert formed == []
    sites = select(unet.sites(), "self", 1)
    with record(sites) as tap:
        during = run(unet)
    assert formed == [site.path for site in sites] and 0 < len(sites) < len(list(unet.sites()))
    assert [m.shape[-2:] for m in tap.pop()] == [(96, 96)] * len(sites)
    assert torch.allclose(during, before, atol=1e-5)
    run(unet)
    assert len(formed) == len(sites) and hooks(unet) == 0


def test_sites_are_told_apart_by_name_not_by_size(unet):
    """At 8 x 32 the places of level 1 are 64, as many as those of level 1 of a square; the mid block's are 4."""
    for kind, level in (("self", 0), ("self", 2), ("cross", 0), ("cross", 2)):
        sites = select(unet.sites(), kind, level)
        places = (8 >> level) * (32 >> level)
        with record(sites) as tap:
            run(unet, 2, 8, 32)
        for site, map in zip(sites, tap.pop(), strict=True):
            assert (site.kind, site.level, site.place) == (kind, level, site.path.partition("_")[0])
            assert map.shape[0] == 2 and map.shape[2:] == (places, places if kind == "self" else 7)
    assert len(select(unet.sites(), "self", 1)) == 3  # one down, two up


def test_a_level_without_attention_is_refused_with_those_there_are(unet):
    with pytest.raises(SettingsError, match=r"no cross-attention at level 3: it has levels 0, 1, 2$"):
        select(unet.sites(), "cross", 3)


def test_hooks_are_gone_after_an_error(unet):
    sites = select(unet.sites(), "self", 1)
    with pytest.raises(KeyError), record(sites), rewrite(sites, lambda map, site: map):
        assert hooks(unet) == 2 * len(sites)
        raise KeyError
    assert hooks(unet) == 0

    def fail(map, site):
        raise ArithmeticError

    with pytest.raises(ArithmeticError), rewrite(sites, fail):
        run(unet)
    assert hooks(unet) == 0


def test_contexts_act_in_the_order_in_which_they_were_entered(unet):
    sites = select(unet.sites(), "cross", 2)[:1]
    with record(sites) as first, rewrite(sites, lambda m, _: m * 2), record(sites) as second, \
            rewrite(sites, lambda m, _: m + 1), record(sites) as third:
        run(unet)
    (a,), (b,), (c,) = first.pop(), second.pop(), third.pop()
    assert torch.equal(b, a * 2) and torch.equal(c, a * 2 + 1)
    assert torch.allclose(a.sum(-1), torch.ones(()), atol=1e-5)


def test_a_rewritten_map_is_what_the_layer_uses(unet):
    sites = select(unet.sites(), "self", 0)
    seen = []
    with rewrite(sites, lambda map, site: seen.append(site) or torch.zeros_like(map)):
        changed = run(unet)
    assert seen == sites
    assert not torch.allclose(changed, run(unet), atol=1e-3)
    with rewrite(sites, lambda map, site: map):
        assert torch.allclose(run(unet), run(unet), atol=1e-5)


def test_maps_are_handed_over_once(unet):
    sites = select(unet.sites(), "self", 1)
    with record(sites) as tap:
        with pytest.raises(LookupError, match=sites[0].path):
            tap.pop()
        run(unet)
        tap.pop()
        with pytest.raises(LookupError, match="no map was recorded"):
            tap.pop()
        run(unet)
        run(unet, 2)
        assert tap.pop()[0].shape[0] == 2  # the latest pass


def test_a_site_that_was_not_visited_is_named(unet):
    stranger = AttentionMap("elsewhere.attn1", "self", 1, "down")
    sites = select(unet.sites(), "self", 1)
    with record([*sites, stranger]) as tap:
        run(unet)
        with pytest.raises(LookupError, match="no map was recorded at elsewhere.attn1$"):
            tap.pop()


def test_gradients_pass_through_recorded_maps(unet):
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with record(select(unet.sites(), "self", 1)) as tap:
        unet(z, 500, torch.zeros(1, 7, 32))
        loss = sum(m.square().mean() for m in tap.pop())
    (g,) = torch.autograd.grad(loss, z)
    assert torch.isfinite(g).all() and g.abs().max() > 0


def test_listening_changes_nothing_and_tells_what_a_map_is_made_of(unet):
    sites = [*select(unet.sites(), "self", 1), *select(unet.sites(), "cross", 0)]
    plain = run(unet)
    with listen(sites) as heard:
        assert torch.equal(run(unet), plain) and not any(site.tapped for site in sites)
    with record(sites) as tap:
        run(unet)
        for pair, map in zip(heard.pop(), tap.pop(), strict=True):
            assert torch.allclose(pair.map(), map, atol=1e-6) and pair.queries.shape[2] == map.shape[2]


def test_nothing_after_the_last_site_keeps_a_graph(unet):
    sites = select(unet.sites(), "self", 1)
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with listen(sites) as heard:
        whole = unet(z, 500, torch.zeros(1, 7, 32))
        g = torch.autograd.grad(sum(t.square().sum() for pair in heard.pop() for t in pair), z)[0]
    with listen(sites, last=True) as heard:
        out = unet(z, 500, torch.zeros(1, 7, 32))
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()
    cut = torch.autograd.grad(sum(t.square().sum() for pair in heard.pop() for t in pair), z)[0]
    assert whole.requires_grad and not out.requires_grad
    assert torch.equal(out, whole) and torch.equal(cut, g)
