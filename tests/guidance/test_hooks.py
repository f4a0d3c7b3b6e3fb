"""Maps are formed where somebody listens, nowhere else, and never after the context."""

import pytest
import torch

from sage.errors import SettingsError
from sage.guidance.hooks import detour, hear_features, listen, record, rewrite, swap, swap_outputs, watch
from sage.models.sd.unet import UNet
from sage.models.sites import AttentionMap, Projection, Site, Sites, Where
from tests import small


@pytest.fixture(scope="module")
def unet() -> UNet:
    torch.manual_seed(0)
    return UNet(small.UNET).eval().requires_grad_(False)


@pytest.fixture
def formed(monkeypatch, unet) -> list[str]:
    """Paths of the sites whose maps were formed."""
    paths, forward, of = [], AttentionMap.forward, {site.map: site.path for site in unet.sites()}
    monkeypatch.setattr(AttentionMap, "forward", lambda map, q, k: paths.append(of[map]) or forward(map, q, k))
    return paths


@torch.no_grad()
def run(unet: UNet, batch: int = 1, height: int = 16, width: int = 24) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    return unet(torch.randn(batch, 4, height, width, generator=g), 500, torch.randn(batch, 7, 32, generator=g))


def test_no_map_is_formed_when_nobody_listens(unet, formed):
    before = run(unet)
    assert formed == []
    sites = unet.sites().at(Where("self", 1))
    with record(sites) as tap:
        during = run(unet)
    assert formed == [site.path for site in sites] and 0 < len(sites) < len(list(unet.sites()))
    assert [m.shape[-2:] for m in tap.pop()] == [(96, 96)] * len(sites)
    assert torch.allclose(during, before, atol=1e-5)
    run(unet)
    assert len(formed) == len(sites) and small.hooks(unet) == []


def test_sites_are_told_apart_by_name_not_by_size(unet):
    """At 8 x 32 the places of level 1 are 64, as many as those of level 1 of a square; the mid block's are 4."""
    for kind, level in (("self", 0), ("self", 2), ("cross", 0), ("cross", 2)):
        sites = unet.sites().at(Where(kind, level))
        places = (8 >> level) * (32 >> level)
        with record(sites) as tap:
            run(unet, 2, 8, 32)
        for site, map in zip(sites, tap.pop(), strict=True):
            assert (site.kind, site.level, site.place) == (kind, level, site.path.partition("_")[0])
            assert map.shape[0] == 2 and map.shape[2:] == (places, places if kind == "self" else 7)
    assert len(unet.sites().at(Where("self", 1))) == 3  # one down, two up


def test_a_level_without_attention_is_refused_with_those_there_are(unet):
    with pytest.raises(SettingsError, match=r"no cross-attention at level 3: it has levels 0, 1, 2$"):
        unet.sites().at(Where("cross", 3))


def test_what_is_refused_says_where_there_is_some():
    def sites(*places):
        return Sites(Site(f"{i}", "self", 0, place) for i, place in enumerate(places))

    for where, there, message in ((Where("self"), ("mid", "mid"), "in its middle alone, which is left out unless"),
                                  (Where("self", place="up"), ("down",), "no such self-attention: it has some in down"),
                                  (Where("self", blocks=(0.5, 1.0)), ("",), "no such self-attention: it has some"),
                                  (Where("cross", 0), ("down",), "no such cross-attention at level 0: it has none")):
        with pytest.raises(SettingsError, match=message):
            sites(*there).at(where)


def test_hooks_are_gone_after_an_error(unet):
    sites = unet.sites().at(Where("self", 1))
    with pytest.raises(KeyError), record(sites), rewrite(sites, lambda map, site: map):
        assert len(small.hooks(unet)) == 2 * len(sites)
        raise KeyError
    assert small.hooks(unet) == []

    def fail(map, site):
        raise ArithmeticError

    with pytest.raises(ArithmeticError), rewrite(sites, fail):
        run(unet)
    assert small.hooks(unet) == []


def test_contexts_act_in_the_order_in_which_they_were_entered(unet):
    sites = unet.sites().at(Where("cross", 2))[:1]
    with record(sites) as first, rewrite(sites, lambda m, _: m * 2), record(sites) as second, \
            rewrite(sites, lambda m, _: m + 1), record(sites) as third:
        run(unet)
    (a,), (b,), (c,) = first.pop(), second.pop(), third.pop()
    assert torch.equal(b, a * 2) and torch.equal(c, a * 2 + 1)
    assert torch.allclose(a.sum(-1), torch.ones(()), atol=1e-5)


def test_a_rewritten_map_is_what_the_layer_uses(unet):
    sites = unet.sites().at(Where("self", 0))
    seen = []
    with rewrite(sites, lambda map, site: seen.append(site) or torch.zeros_like(map)):
        changed = run(unet)
    assert tuple(seen) == sites
    assert not torch.allclose(changed, run(unet), atol=1e-3)
    with rewrite(sites, lambda map, site: map):
        assert torch.allclose(run(unet), run(unet), atol=1e-5)


def test_maps_are_handed_over_once(unet):
    sites = unet.sites().at(Where("self", 1))
    with record(sites) as tap:
        with pytest.raises(LookupError, match=sites[0].path):
            tap.pop()
        run(unet)
        tap.pop()
        with pytest.raises(LookupError, match="nothing was heard"):
            tap.pop()
        run(unet)
        run(unet, 2)
        assert tap.pop()[0].shape[0] == 2  # the latest pass


def test_a_site_that_was_not_visited_is_named(unet):
    stranger = Site("elsewhere.attn1", "self", 1, "down")
    sites = unet.sites().at(Where("self", 1))
    with record([*sites, stranger]) as tap:
        run(unet)
        with pytest.raises(LookupError, match="nothing was heard at elsewhere.attn1$"):
            tap.pop()


def test_gradients_pass_through_recorded_maps(unet):
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with record(unet.sites().at(Where("self", 1))) as tap:
        unet(z, 500, torch.zeros(1, 7, 32))
        loss = sum(m.square().mean() for m in tap.pop())
    (g,) = torch.autograd.grad(loss, z)
    assert torch.isfinite(g).all() and g.abs().max() > 0


def test_listening_changes_nothing_and_tells_what_a_map_is_made_of(unet):
    sites = [*unet.sites().at(Where("self", 1)), *unet.sites().at(Where("cross", 0))]
    plain = run(unet)
    with listen(sites) as heard:
        assert torch.equal(run(unet), plain) and not any(site.tapped for site in sites)
    with record(sites) as tap:
        run(unet)
        for pair, map in zip(heard.pop(), tap.pop(), strict=True):
            assert torch.allclose(pair.map(), map, atol=1e-6) and pair.queries.shape[2] == map.shape[2]


def test_nothing_after_the_last_site_keeps_a_graph(unet):
    sites = unet.sites().at(Where("self", 1))
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


def test_what_is_watched_is_the_map_as_it_is_applied_and_nothing_changes(unet):
    sites = unet.sites().at(Where("cross", 1))
    plain = run(unet)
    with watch(sites) as seen:
        assert torch.equal(run(unet), plain)
    (free, *_) = seen.pop()
    with rewrite(sites, lambda m, _: m * torch.tensor([1.0, 0, 1, 1, 1, 1, 1])):
        changed = run(unet)
        with watch(sites) as seen:
            assert torch.equal(run(unet), changed)
        (map, *_) = seen.pop()
    assert map.shape == free.shape == (1, 96, 7) and (free[..., 1] > 0).all() and not map[..., 1].any()


def test_queries_keys_and_values_can_be_swapped(unet):
    sites = unet.sites().at(Where("self", 1))
    with swap(sites, lambda p, site: p):
        assert torch.equal(run(unet), run(unet))
    with swap(sites, lambda p, site: Projection(p.queries, p.keys, torch.zeros_like(p.values))):
        silent = run(unet)
    with rewrite(sites, lambda m, _: torch.zeros_like(m)):
        assert torch.allclose(run(unet), silent, atol=1e-5)
    assert not torch.allclose(silent, run(unet), atol=1e-3)


def test_what_layers_and_blocks_give_can_be_heard_and_swapped(unet):
    features = unet.features()
    assert features[0].path == "down_blocks.0.resnets.0" and len({f.path for f in features}) == len(features)
    assert [f.level for f in features if f.place == "down"] == [0, 1, 2, 3]
    assert [f.level for f in features if f.place == "up"] == [3, 3, 2, 2, 1, 1, 0, 0]
    plain = run(unet)
    with hear_features(features[:2]) as tap:
        run(unet)
    first, second = tap.pop()
    with swap_outputs(features[:1], lambda x, place: first):
        assert torch.equal(run(unet), plain)
    for places in (features[:1], unet.sites()[:1]):
        with swap_outputs(places, lambda x, place: torch.zeros_like(x)):
            assert not torch.allclose(run(unet), plain, atol=1e-4)


def test_a_detour_is_taken_inside_the_context_and_gone_after_it(unet):
    block, seen, plain = unet.mid_block, [], run(unet)

    def around(forward, module, *inputs):
        seen.append(module)
        return forward(*inputs) * 0

    with pytest.raises(ValueError), detour([block], around):
        assert not torch.allclose(run(unet), plain, atol=1e-4)
        raise ValueError
    assert seen == [block] and "forward" not in vars(block) and torch.equal(run(unet), plain)


def test_sites_are_found_by_depth(unet):
    kin = [s for s in unet.sites() if s.kind == "self"]
    late = unet.sites().at(Where("self", blocks=(0.5, 1.0)))
    assert [s.path for s in late] == [s.path for s in kin[len(kin) // 2 + len(kin) % 2:] if s.place != "mid"]
    assert [s.path for s in unet.sites().at(Where("self", place="mid"))] == [
        "mid_block.attentions.0.transformer_blocks.0.attn1"]
    assert kin[0].grid(17, 24) == (17, 24) and late[-1].heads * late[-1].width == 32
