"""What a cache takes from earlier passes: each branch's own, what was computed, and nothing where something is new."""

import pytest
import torch
from einops import rearrange

import sage
from sage.errors import SettingsError
from sage.guidance.caching import Cache
from sage.guidance.hooks import listen, record, rewrite
from sage.guidance.refresh import Draws, favour, on_grid, preprocessed, rings
from sage.models.sites import Where
from sage.settings import Cached
from tests import small

SOURCE, TARGET = "a cat on a mat", "a dog on a mat"
H, W = 16, 24


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small.make(tmp_path_factory.mktemp("cache") / "tokenizer").model


def latents(seed: int, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 4, H, W, generator=torch.Generator().manual_seed(seed))


def cache(model, steps: int = 6, mask=None, **settings) -> tuple[Cache, tuple]:
    down = model.schedule.levels(steps, "leading", (H, W))[::-1]
    edges = tuple(zip(down, down[1:], strict=False))
    cached = Cached(cache="eedit", tailing_step=0, **settings)
    return Cache(model, cached, edges, [cached.whole(i, steps) for i in range(steps)], mask, (H, W)), edges


def text(model, prompt: str = SOURCE):
    return model.embed([model.prompts.parse(prompt)])


# ---- a pass between, against the same by hand


def by_hand(model, z, level, embedded, held, full):
    """The network's first and last blocks in plain calls; attention and what lies deeper are taken from `held`."""
    unet, time = model.unet, model.unet.time(int(level.t))
    words = unet.text(embedded.tokens)

    def attended(place, x):
        height, residual = x.shape[-2], x
        tokens = rearrange(place.proj_in(place.norm(x)), "b c h w -> b (h w) c")
        for block in place.transformer_blocks:
            for norm, attention, context in ((block.norm1, block.attn1, None), (block.norm2, block.attn2,
                                                                                 words[block.attn2])):
                if full:
                    held[attention] = attention(norm(tokens), *([] if context is None else [context]))
                tokens = tokens + held[attention]
            tokens = tokens + block.ff(block.norm3(tokens))
        return place.proj_out(rearrange(tokens, "b (h w) c -> b c h w", h=height)) + residual

    def through(block, x, skips):
        for resnet, place in zip(block.resnets, block.attentions, strict=True):
            if block is unet.up_blocks[-1]:
                x = torch.cat([x, skips.pop()], dim=1)
            x = attended(place, resnet(x, time))
            if block is unet.down_blocks[0]:
                skips.append(x)
        return x

    x = unet.conv_in(z)
    skips = [x]
    x = through(unet.down_blocks[0], x, skips)
    if full:
        x = unet.down_blocks[0].downsamplers[0](x)
        deep = [x]
        for block in list(unet.down_blocks)[1:]:
            x, more = block(x, time, words)
            deep += more
        x = unet.mid_block(x, time, words)
        for block in list(unet.up_blocks)[:-1]:
            x = block(x, deep, time, words)
        held["deep"] = x
    x = through(unet.up_blocks[-1], held["deep"], skips)
    return unet.conv_out(torch.nn.functional.silu(unet.conv_norm_out(x)))


@torch.no_grad()
def test_with_all_tokens_a_pass_between_is_the_network_with_what_was_held(model):
    cached, edges = cache(model, fresh_threshold=3, fresh_ratio=1.0)
    words, held = text(model), {}
    for i, (here, _) in enumerate(edges):
        z = latents(i)
        with cached.around(here, ["a"]):
            ours = model.predict(z, here, words).eps
        assert torch.allclose(ours, by_hand(model, z, here, words, held, full=i % 3 == 0), atol=1e-5)
        dense = model.predict(z, here, words).eps
        assert torch.equal(ours, dense) == (i % 3 == 0)


@torch.no_grad()
def test_tokens_that_are_not_drawn_keep_what_they_had(model):
    words, z = text(model), latents(0)
    found = {}
    for ratio in (0.0, 0.3, 1.0):
        cached, edges = cache(model, fresh_threshold=3, fresh_ratio=ratio)
        for here, _ in edges[:2]:
            with cached.around(here, ["a"]):
                found[ratio] = model.predict(z, here, words).eps
    assert not torch.equal(found[0.0], found[0.3]) and not torch.equal(found[0.3], found[1.0])
    held = cached._held["a", 0]
    assert all(held.given[name].shape == (1, H * W, 32) for name in cached.refreshed)


@torch.no_grad()
def test_branches_hold_each_their_own_together_or_alone(model):
    one, two, words, others = latents(1), latents(2), text(model), text(model, TARGET)
    outs = []
    for together in (True, False):
        cached, edges = cache(model, fresh_threshold=4)
        for i, (here, _) in enumerate(edges[:3]):
            if together or i == 1:  # what was held in passes of their own serves one of both, and the other way
                with cached.around(here, ["source", "target"]):
                    both = model.predict(torch.cat([one, two]), here, sage.models.backbone.Text.cat([words, others]))
                found = both.eps.chunk(2)
            else:
                found = []
                for name, z, said in (("target", two, others), ("source", one, words)):
                    with cached.around(here, [name]):
                        found.insert(0, model.predict(z, here, said).eps)
        outs.append(found)
    for ours, theirs in zip(*outs, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)
    assert not torch.allclose(*outs[0], atol=1e-3)


@torch.no_grad()
def test_two_passes_of_one_name_at_a_level_are_two_branches(model):
    cached, edges = cache(model, fresh_threshold=3, fresh_ratio=1.0)
    words, states = text(model), [latents(1), latents(2)]
    for here, _ in edges[:2]:
        found = []
        for z in states:
            with cached.around(here, ["a"]):
                found.append(model.predict(z, here, words).eps)
    alone, edges = cache(model, fresh_threshold=3, fresh_ratio=1.0)
    for here, _ in edges[:2]:
        with alone.around(here, ["a"]):
            second = model.predict(states[1], here, words).eps
    assert torch.equal(found[1], second)


# ---- hooks and gradients


def passes(model, hooks, steps: int = 3):
    """What passes give, and whether each was computed whole, with a context for each step."""
    cached, edges = cache(model, fresh_threshold=steps)
    words, whole, taps = text(model), [], []
    for i, (here, _) in enumerate(edges[:steps]):
        with torch.no_grad(), hooks(i) as tap:
            with cached.around(here, ["a"]):
                seen = model.predict(latents(i), here, words).eps
            taps.append(tap.pop() if tap is not None else None)
        whole.append(torch.equal(seen, _dense(model, hooks, i, here, words)))
    return whole, taps


def _dense(model, hooks, i, here, words):
    with torch.no_grad(), hooks(i):
        return model.predict(latents(i), here, words).eps


def test_who_only_hears_hears_what_was_held(model):
    sites = model.sites().at(Where("cross", 1))
    whole, maps = passes(model, lambda i: record(sites))
    assert whole == [True, False, False]
    assert all(torch.equal(a, b) for later in maps[1:] for a, b in zip(maps[0], later, strict=True))


def test_who_has_to_hear_this_very_pass_has_it_computed(model):
    sites = model.sites().at(Where("self", 1))
    whole, pairs = passes(model, lambda i: listen(sites))
    assert whole == [True, True, True]
    assert not torch.equal(pairs[0][0].queries, pairs[1][0].queries)


def test_a_hook_that_changes_something_new_has_the_pass_computed(model):
    from contextlib import nullcontext
    sites = model.sites().at(Where("cross", 0))

    def changed(map, site):
        return map.flip(-1)

    whole, _ = passes(model, lambda i: rewrite(sites, changed) if i >= 1 else nullcontext(), 4)
    assert whole == [True, True, False, False]  # new at the second step, held from it on
    whole, _ = passes(model, lambda i: record(sites) if i >= 2 else nullcontext(), 4)
    assert whole == [True, False, True, False]  # nothing was heard there before


def test_with_a_gradient_everything_is_computed_and_nothing_stays(model):
    cached, edges = cache(model, fresh_threshold=3)
    words = text(model)
    for i, (here, _) in enumerate(edges[:2]):
        z = latents(i).requires_grad_()
        with torch.enable_grad(), cached.around(here, ["a"]):
            seen = model.predict(z, here, words).eps
        assert torch.equal(seen, model.predict(z, here, words).eps)
        (g,) = torch.autograd.grad(seen.sum(), z)
        assert g.abs().sum() > 0
    assert not any(t.requires_grad for t in cached._held["a", 0].given.values())
    assert small.hooks(model) == [] and not any("forward" in vars(m) for m in model.unet.modules())


# ---- token lists


def test_rings_and_their_bonus():
    mask = torch.zeros(1, 1, 7, 7)
    mask[..., 3, 3] = 1
    ring = rings(mask, 3).view(7, 7)
    assert ring[3].tolist() == [-1, 2, 1, 0, 1, 2, -1] and ring[2, 2] == 1  # eight neighbours
    assert (rings(mask, 0) == -1).all() and (rings(mask, 1) >= 0).sum() == 1
    assert favour(torch.tensor([0, 1, 2, -1])).tolist() == pytest.approx([2.6, 2.28, 2.024, 1])
    assert favour(torch.tensor([0, 1, 2]), 1.0).tolist() == pytest.approx([1.8, 1.64, 1.512])
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 3, 4] = 1
    assert on_grid(mask, 4, 4)[0, 0].nonzero().tolist() == [[1, 2]]


def draws(seed: int = 0, weight: float = 0.25, ratio: float = 0.25) -> Draws:
    ring = torch.full((2, 64), -1)
    ring[1, :16] = 0
    return Draws(favour(ring), ratio, weight, 3, torch.Generator().manual_seed(seed))


def test_lists_drawn_beforehand_are_those_drawn_on_the_way():
    whole = [i % 3 == 0 for i in range(10)]
    lists = preprocessed({"a": draws(0), "b": draws(1)}, whole)
    online = {"a": draws(0), "b": draws(1)}
    for step, all_of_it in enumerate(whole):
        for name in ("b", "a"):  # the layers' order does not matter: each has numbers of its own
            if all_of_it:
                online[name].forget()
                assert (step, name) not in lists
            else:
                assert torch.equal(lists[step, name], online[name].next())
    assert len(lists) == 12 and not torch.equal(lists[1, "a"], lists[1, "b"])


def test_places_of_the_mask_are_drawn_more_often_and_the_old_before_the_new():
    one, counts = draws(), torch.zeros(2, 64)
    for _ in range(200):
        counts.scatter_add_(1, one.next(), torch.ones(2, 16))
        one.forget()
    assert counts.sum(dim=1).tolist() == [3200, 3200]
    assert counts[1, :16].sum() > 0.6 * 3200 and counts[0, :16].sum() < 0.35 * 3200  # a quarter by chance
    aged = draws(weight=100.0)
    drawn = torch.cat([aged.next()[0] for _ in range(4)])
    assert sorted(drawn.tolist()) == list(range(64))  # with age alone each has its turn


def test_pictures_of_a_batch_are_drawn_for_as_if_alone():
    both = draws()
    alone = Draws(both.favour[1:], 0.25, 0.25, 3, torch.Generator().manual_seed(0))
    for _ in range(3):
        assert torch.equal(both.next()[1:], alone.next())


# ---- whole edits


def picture():
    return small.picture(64, 96)


@pytest.fixture(scope="module")
def settings():
    return sage.EditConfig(steps=8, guidance_scale=2.0, cross_level=0, reconstruction_scale=10.0, guided_steps=6,
                           cache="eedit")


def test_an_edit_asks_the_network_less(model, settings, monkeypatch):
    calls, predict = [], type(model).predict
    monkeypatch.setattr(type(model), "predict", lambda self, z, level, text: calls.append(
        (level.t, torch.is_grad_enabled())) or predict(self, z, level, text))
    counts = {}
    for cache in ("none", "eedit"):
        calls.clear()
        sage.edit(model, picture(), SOURCE, TARGET, settings.but(cache=cache))
        counts[cache] = len(calls), sum(grad for _, grad in calls)
    assert counts["none"][1] == 6 and counts["eedit"][1] == 2  # at steps 0 and 4
    assert counts["none"][0] - counts["eedit"][0] == 5 + 4  # 3 of 8 on the way to noise; four steps in one batch


@pytest.mark.parametrize("change", [dict(inv_skip=2), dict(fresh_threshold=3), dict(fresh_ratio=0.5),
                                    dict(tailing_step=3), dict(soft_fresh_weight=5.0), dict(cache="none")])
def test_every_setting_changes_the_edit(model, settings, change):
    config = settings.but(fresh_threshold=4)
    before = sage.edit(model, picture(), SOURCE, TARGET, config).latents
    after = sage.edit(model, picture(), SOURCE, TARGET, config.but(**change)).latents
    assert torch.isfinite(after).all() and not torch.equal(before, after)


def test_a_trajectory_of_another_way_is_refused(model, settings):
    path = sage.invert(model, picture(), SOURCE, settings)
    assert len(path.latents) == 9
    again = sage.edit(model, picture(), SOURCE, TARGET, settings.but(fresh_threshold=2), trajectory=path)
    assert torch.isfinite(again.latents).all()
    for other in (dict(cache="none"), dict(inv_skip=2)):
        with pytest.raises(SettingsError, match="made with cache="):
            sage.edit(model, picture(), SOURCE, TARGET, settings.but(**other), trajectory=path)


def test_attention_of_skipped_steps_is_that_of_the_last_one_asked(model, settings):
    path = sage.invert(model, picture(), SOURCE, settings)
    selfs = [maps.self for maps in path.maps]
    assert selfs[2] and selfs[4] is not None
    assert all(a is b for a, b in zip(selfs[4], selfs[3], strict=True))
    assert not torch.equal(selfs[7][0].queries, selfs[6][0].queries)
