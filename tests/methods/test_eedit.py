"""EEdit on a small FLUX: both ways by hand, what it may not change, and each slip of the released code."""

import numpy as np
import pytest
import torch
from PIL import Image

import sage
from sage.errors import SettingsError
from sage.guidance.caching import Cache, Slips
from sage.guidance.masks import harmonic
from sage.guidance.refresh import on_grid, preprocessed
from sage.method import Request
from sage.methods.eedit import COMPOSE, DRAG, PROMPT, EEdit, Settings
from sage.pictures.regions import Move, box_mask
from sage.pictures.tensors import to_mask
from sage.settings import Cached
from tests.methods import eedit_original as original
from tests.models import flux

SOURCE, TARGET = "a cat on a mat", "a dog on a mat"
H, W = 12, 16
FROM, TO = (2, 2, 6, 6), (8, 4, 12, 8)
DENSE = dict(steps=6, guidance_scale=2.0, cache="none", eta=0.5, gamma=0.4, stop=3)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return flux.make(tmp_path_factory.mktemp("eedit") / "words")[0]


@pytest.fixture(scope="module")
def z0():
    return torch.randn(1, 16, H, W, generator=torch.Generator().manual_seed(0))


def mask(*box: int) -> Image.Image:
    """At eight pixels a cell."""
    return box_mask(tuple(8 * side for side in box), (8 * W, 8 * H))


def drawn(tag):
    return torch.randn(1, 16, H, W, generator=torch.Generator().manual_seed(sum(3 * n + 1 for n in tag)))


def run(model, z0, request=None, **changes):
    settings = Settings(**DENSE | changes)
    request = request or Request(SOURCE, TARGET)
    return [step.z for step in sage.run("eedit", model, z0, SOURCE, TARGET, settings, drawn, request=request)]


def drag(source=FROM, target=TO) -> Request:
    return Request(SOURCE, TARGET, moves=(Move(mask(*source), mask(*target)),))


def test_both_ways_by_hand(model, z0):
    """In velocities: Y += (u + gamma (u_c - u)) dt, and back with eta, as the fact of a straight line has them."""
    times = [level.t for level in model.schedule.levels(6, "leading", (H, W))]
    empty, target = (model.embed([model.prompts.parse(prompt)]) for prompt in ("", TARGET))
    y, y1, u, n = z0, drawn((1,)), None, drawn((0, 0))
    asked = []
    with torch.no_grad():
        for i in range(6):
            t, dt = times[i], times[i + 1] - times[i]
            if i % 3 == 0 or i == 5:
                u = model.predict(y, model.schedule.level(t), model.prepare(empty, 1.0)).velocity
                asked.append(i)
            y = y + (u + 0.4 * ((y1 - y) / (1 - t) - u)) * dt
        x, free = y, torch.zeros(1, 1, H, W, dtype=torch.bool)
        free[..., 4:8, 4:10] = True
        for i in range(6):
            t, s = times[6 - i], times[5 - i]
            v = model.predict(x, model.schedule.level(t), model.prepare(target, 2.0)).velocity
            if 1 <= i < 3:
                v = v + 0.5 * ((x - z0) / t - v)
            x = x + v * (s - t)
            x = torch.where(free, x, (1 - s) * z0 + s * n)
    z = run(model, z0, Request(SOURCE, TARGET, mask=mask(4, 4, 10, 8)), start=1, inv_skip=3, cache="eedit",
            use_cache=False, reuse="held")
    assert asked == [0, 3, 5]
    assert torch.allclose(z[-1], x, atol=1e-4)
    assert torch.equal(torch.where(free, 0, z[-1]), torch.where(free, 0, z0))


def test_outside_the_mask_the_picture_is_the_autoencoders(model, z0):
    z = run(model, z0, Request(SOURCE, TARGET, mask=mask(0, 0, 2, 2)), cache="eedit", fresh_threshold=3)
    same = (z[-1] == z0).all(1)[0]
    assert same.sum() == H * W - 4 and not same[:2, :2].any()
    with pytest.raises(SettingsError, match="no white place"):  # nothing may change: no edit is made of that
        run(model, z0, Request(SOURCE, TARGET, mask=Image.new("L", (64, 48))))


def test_drawn_outside_every_step_leads_straight_to_the_picture(model, z0):
    free = torch.zeros(H, W, dtype=torch.bool)
    free[2:8, 2:9] = True
    z = run(model, z0, Request(SOURCE, TARGET, mask=mask(2, 2, 9, 8)), put_back="drawn", exact=False, eta=0.0)
    far = [(x - z0)[..., ~free].norm() for x in z]
    assert all(a > b for a, b in zip(far, far[1:], strict=False))
    assert torch.allclose(z[-1][..., ~free], z0[..., ~free], atol=1e-5)
    assert not torch.allclose(z[-1][..., free], z0[..., free], atol=1e-1)


def test_a_drag_onto_itself_is_the_picture(model, z0):
    z = run(model, z0, drag(FROM, FROM), alpha=0.0, eta=1.0, stop=6, gamma=0.0, cache="eedit")
    assert torch.allclose(z[-1], z0, atol=1e-4)


def test_a_drag_is_drawn_to_the_picture_as_if_it_were_moved(model, z0):
    """With eta 1 in every step the way back ends there: the thing at its new place, its old one filled from around."""
    z = run(model, z0, drag(), eta=1.0, stop=6, gamma=0.0)
    vacant = torch.zeros(1, 1, H, W, dtype=torch.bool)
    vacant[..., 2:6, 2:6] = True
    moved = harmonic(z0, vacant)
    moved[..., 4:8, 8:12] = z0[..., 2:6, 2:6]
    assert torch.allclose(z[-1], moved, atol=1e-4) and not torch.allclose(z[-1], z0, atol=0.1)


def test_what_is_dragged_comes_from_the_trajectory(model, z0):
    """With regions put anew to the end, the last step starts from what the way to noise had at its first level."""
    z = run(model, z0, drag(), t_prime_ratio=0.0, eta=0.0, gamma=0.0, alpha=0.5)
    y = list(_way(model, z0))
    outside = torch.ones(H, W, dtype=torch.bool)
    outside[2:6, 2:6] = outside[4:8, 8:12] = False
    assert torch.equal(z[-1][..., outside], z0[..., outside])
    near = (z[-1][..., 4:8, 8:12] - z0[..., 2:6, 2:6]).norm() / z0[..., 2:6, 2:6].norm()
    far = (z[-1][..., 4:8, 8:12] - z0[..., 4:8, 8:12]).norm() / z0[..., 4:8, 8:12].norm()
    assert len(y) == 7 and near < 0.7 < far


def _way(model, z0):
    settings = Settings(**DENSE | dict(gamma=0.0, eta=0.0))
    from sage.job import Job
    from sage.prompts.plan import Plan
    plan = Plan(model.prompts.parse(SOURCE), model.prompts.parse(TARGET))
    with torch.no_grad():
        return EEdit().invert(Job(EEdit(), model, settings, [plan], z0, noises=drawn)).latents


@pytest.mark.parametrize("request_, change", [
    ("mask", dict(mask_timestep=3)), ("mask", dict(put_back="before")),
    ("mask", dict(put_back="drawn")), ("mask", dict(region_bonus=1.0)),
    ("mask", dict(cascade_num=0)), ("mask", dict(exact=False, mask_timestep=5)), ("drag", dict(drag_class="cut")),
    ("drag", dict(t_prime_ratio=0.9)), ("drag", dict(vacated="noise")), ("drag", dict(unnamed=False)),
    ("noise", dict(alpha=0.3)), ("noise", dict(blur="half")),
    ("mask", dict(fwd_skip=2)),
    ("mask", dict(text_offset=False)), ("mask", dict(held_modulation=True)),
    ("mask", dict(grid="released")), ("mask", dict(grid="released, regions")), ("mask", dict(whole_by="steps"))])
def test_every_setting_and_slip_changes_the_edit(model, z0, request_, change):
    request = Request(SOURCE, TARGET, mask=mask(2, 2, 9, 8)) if request_ == "mask" else drag()
    base = dict(steps=8, cache="eedit", fresh_threshold=3, inv_skip=3, fresh_ratio=0.25, tailing_step=0)
    base |= dict(vacated="noise") if request_ == "noise" else {}
    one, other = run(model, z0, request, **base), run(model, z0, request, **base | change)
    assert torch.isfinite(other[-1]).all() and not torch.equal(one[-1], other[-1])


def test_a_gate_too_many_reaches_no_picture(model, z0):
    """Between whole steps the text reaches the picture through attention alone, and that is held."""
    request = Request(SOURCE, TARGET, mask=mask(2, 2, 9, 8))
    base = dict(steps=8, cache="eedit", fresh_threshold=3, inv_skip=3, fresh_ratio=0.25, tailing_step=0)
    one, other = run(model, z0, request, **base), run(model, z0, request, **base, twice_gated=True)
    assert torch.equal(one[-1], other[-1])


def test_places_drawn_on_the_way_are_those_drawn_before(model, z0):
    request = Request(SOURCE, TARGET, mask=mask(2, 2, 9, 8))
    base = dict(cache="eedit", fresh_threshold=3, fresh_ratio=0.2)
    before, online = (run(model, z0, request, **base, cache_type=kind) for kind in ("ours_predefine", "ours_cache"))
    assert all(map(torch.equal, before, online))


def test_without_skipping_and_holding_it_is_the_dense_run_to_the_bit(model, z0):
    dense = run(model, z0)
    for change in (dict(fresh_threshold=1, inv_skip=1), dict(use_cache=False, inv_skip=1)):
        assert all(map(torch.equal, dense, run(model, z0, **dict(cache="eedit") | change)))


@pytest.mark.parametrize("name, settings", [("published", PROMPT), ("published-drag", DRAG),
                                            ("published-composition", COMPOSE)])
def test_the_published_settings_run_and_ask_as_often_as_the_released_code(model, z0, name, settings, monkeypatch):
    calls, predict = [], type(model).predict
    monkeypatch.setattr(type(model), "predict", lambda self, z, level, text: calls.append(level.t) or predict(
        self, z, level, text))
    request = drag() if name.endswith("drag") else Request(SOURCE, TARGET, mask=mask(2, 2, 9, 8))
    found = sage.method("eedit").preset(name)
    steps = list(sage.run("eedit", model, z0, SOURCE, TARGET, found, drawn, request=request))
    assert len(steps) == 28 and torch.isfinite(steps[-1].z).all()
    wanted = {"published": (10, 28), "published-drag": (10, 29), "published-composition": (15, 29)}[name]
    up = calls[:-28]
    assert len(up) == wanted[0] and up[-1] == pytest.approx((wanted[1] - 2) / wanted[1])


# ---- the cache on FLUX's blocks


@torch.no_grad()
def test_with_all_tokens_a_pass_between_is_the_network_with_the_attention_that_was_held(model, z0):
    """By the blocks' own layers in plain calls."""
    transformer, words = model.transformer, model.embed([model.prompts.parse(SOURCE)])
    levels = model.schedule.levels(4, "leading", (H, W))[:0:-1]
    edges = tuple(zip(levels, (*levels[1:], levels[-1]), strict=True))
    cache = Cache(model, Cached(cache="eedit", fresh_ratio=1.0), edges, [True, False, False, False], None, (H, W),
                  words.tokens.shape[1])
    held = {}
    for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
        block.attn.register_forward_hook(lambda m, i, o: held.setdefault(m, o))
    prepared = model.prepare(words, 2.0)
    try:
        with cache.around(levels[0], ["a"]):
            first = model.predict(z0, levels[0], prepared).velocity
        assert torch.equal(first, model.predict(z0, levels[0], prepared).velocity)
        z = drawn((7,))
        for block in held:
            block._forward_hooks.clear()
        with cache.around(levels[1], ["a"]):
            ours = model.predict(z, levels[1], prepared).velocity
        for attention, output in held.items():
            attention.forward = lambda *inputs, output=output: output
        theirs = model.predict(z, levels[1], prepared).velocity
        assert torch.allclose(ours, theirs, atol=1e-6)
    finally:
        for attention in held:
            del attention.forward
            attention._forward_hooks.clear()


def test_places_in_single_blocks_are_counted_behind_the_text_or_by_slip_from_its_start(model):
    levels = model.schedule.levels(3, "leading", (H, W))
    edges = tuple(zip(levels, levels[1:], strict=False))
    places, text = H * W // 4, 24

    def lists(slip: bool):
        region = torch.zeros(1, 1, H, W)
        region[..., 8:, :] = 1  # the last third of the places
        cached = Cached(cache="eedit", fresh_ratio=0.3, cascade_num=1)
        cache = Cache(model, cached, edges, [True, False, False], region, (H, W), text, slips=Slips(offset=slip))
        name = next(name for name, block in cache.refreshed.items() if block.module is
                    model.transformer.single_transformer_blocks[0].proj_mlp)
        return cache.lists[1, name][0]

    right, slipped = lists(False), lists(True)
    assert len(right) == int(0.3 * (places + text)) and len(slipped) == int(0.3 * places)
    assert slipped.max() < places  # of [text; picture] the last are never drawn
    assert (right >= text + 2 * places // 3).float().mean() > 0.5


def test_lists_are_plain_data(model):
    assert preprocessed({}, [True, False]) == {}


# ---- the released code, step by step

POINTS = ((10, 10, 35, 20), (11, 12, 36, 23), (17, 10, 43, 20), (18, 17, 42, 30), (35, 20, 10, 42))  # at 4 a cell
MASK = (4, 4, 11, 9)  # in cells, and not on tokens


@pytest.fixture(scope="module")
def original_of(tmp_path_factory):
    """Our model, and what makes the oracle of lists, embeddings and guidance."""
    made, theirs = flux.make(tmp_path_factory.mktemp("original") / "words")
    texts = made.embed([made.prompts.parse(prompt) for prompt in ("", TARGET)])
    rows = {name: (texts.tokens[[i]], texts.pooled[[i]]) for i, name in enumerate(("empty", "target"))}
    return made, lambda lists, every: original.Network(theirs[0], rows, 7.0, 28, every, 1, lists)


def some_lists(model, every: int):
    """Tokens of every step that is not whole, by our layers and by the oracle's."""
    t, text, image = model.transformer, 24, H * W // 4
    generator, ours, theirs = torch.Generator().manual_seed(3), {}, {}
    doubles, singles = len(t.transformer_blocks), len(t.single_transformer_blocks)
    layers = [(f"transformer_blocks.{i}.{layer}", i, name, count) for i in range(doubles)
              for layer, name, count in (("ff", "mlp", image), ("ff_context", "cross-mlp", text))]
    layers += [(f"single_transformer_blocks.{i}.{layer}", doubles + i, name, text + image) for i in range(singles)
               for layer, name in (("proj_mlp", "norm"), ("proj_out", "mlp"))]
    for step in (step for step in range(27) if step % every):
        for path, number, name, count in layers:
            places = torch.randperm(count, generator=generator)[:count // 4]
            ours[step, path] = theirs[step, number, name] = places
    return ours, theirs


@pytest.mark.parametrize("case", ["prompt", "prompt, skipping", "composition", "drag", "cut"])
def test_every_step_of_the_published_settings_is_that_of_the_released_code(original_of, z0, case):
    model, make = original_of
    case, _, skipping = case.partition(", ")
    name = {"prompt": "published", "composition": "published-composition"}.get(case, "published-drag")
    settings = sage.method("eedit").preset(name, **dict(drag_class="cut", alpha=0.6) if case == "cut" else {},
                                           fwd_skip=2 if skipping else 1)
    ours, theirs = some_lists(model, 3)
    net = make(theirs, 3)
    sigmas = [level.t for level in model.schedule.levels(28, "leading", (H, W))][::-1]
    background = torch.randn(z0.shape, generator=torch.Generator().manual_seed(8))
    y1, noise = drawn((1,)), drawn((0, 0))
    more: dict = {}
    if case in ("prompt", "composition"):
        request = Request(SOURCE, TARGET, mask=mask(*MASK))
        free = torch.zeros(1, 1, H, W)
        free[..., MASK[1]:MASK[3], MASK[0]:MASK[2]] = 1
        if case == "prompt":
            way = original.inversion(net, z0, y1, 0.7, 3, 28, "target")
            wanted = original.by_mask(net, z0, way[-1], sigmas, noise, free, z0, 0.7, 6, 18, settings.fwd_skip)
            assert net.passes[9] == (26, False)  # the last call of the inversion is no whole one
        else:
            more["background"] = background
            way = original.inversion(net, z0, y1, 0.6, 2, 29, "empty")
            wanted = original.by_mask(net, z0, way[-1], sigmas, noise, free, background, 0.6, 10, 28)
    else:
        request = Request(SOURCE, TARGET, points=POINTS)
        way = original.inversion(net, z0, y1, 1.0, 3, 29, "empty")
        wanted = original.by_points(net, z0, way, sigmas, noise, drawn((0, 1)), np.array(POINTS) // 8, case == "cut",
                                    settings.alpha, 0.5, 1.0, 6)
    found = [step.z for step in sage.run("eedit", model, z0, SOURCE, TARGET, settings, drawn, request=request,
                                         places=ours, **more)]
    assert len(found) == 28
    for z, x in zip(found, wanted, strict=True):
        assert (z - x).norm() / x.norm() < 1e-5


def test_what_is_given_and_does_not_fit_is_said_in_one_line(model, z0):
    settings = sage.method("eedit").preset("published")
    request = Request(SOURCE, TARGET, mask=mask(*MASK))
    layer, tokens = "single_transformer_blocks.0.proj_mlp", torch.arange(4)
    for places, said in (({(1, "blocks.7"): tokens}, "no feed-forward layer 'blocks.7'"),
                         ({(1, layer): tokens + 10_000}, "whole numbers from 0 to 71"),
                         ({(1, layer): tokens}, "no places were given of step 26 of transformer_blocks.0.ff")):
        with pytest.raises(SettingsError, match=said):
            list(sage.run("eedit", model, z0, SOURCE, TARGET, settings, drawn, request=request, places=places))
    for more, said in ((dict(background=z0[:, :4]), r"background is of shape \(1, 4, 12, 16\)"),
                       (dict(request=Request(SOURCE, TARGET, points=((1, 2, 3),))), "four numbers a pair"),
                       (dict(settings=settings.but(cache="none"), places={}), "with cache none all of them are"),
                       (dict(request=Request(SOURCE, TARGET, edits=("a",))), "eedit does not read edits")):
        with pytest.raises(SettingsError, match=said):
            list(sage.run("eedit", model, z0, SOURCE, TARGET, noises=drawn, **dict(settings=settings) | more))


@pytest.mark.parametrize("name, tag", (("published", (0, 0)), ("published-composition", (1,))))
def test_plain_noise_is_where_the_released_code_starts_without_inversion(model, z0, name, tag):
    """For prompts that of the outside."""
    settings = sage.method("eedit").preset(name, use_rf_inversion=False)
    paths, found = [], EEdit()
    kept = found.invert
    found.invert = lambda job: paths.append(kept(job)) or paths[-1]
    next(sage.run(found, model, z0, SOURCE, TARGET, settings, drawn, request=Request(mask=mask(*MASK))))
    assert torch.equal(paths[0].latents[-1], drawn(tag))


def test_the_text_is_drawn_from_as_far_as_the_picture_goes_where_places_are_drawn_on_the_way(model):
    levels = model.schedule.levels(3, "leading", (4, 8))
    edges = tuple(zip(levels, levels[1:], strict=False))
    cache = Cache(model, Cached(cache="eedit", fresh_ratio=0.5), edges, [True, False, False], None, (4, 8), 24,
                  slips=Slips(offset=True, cut=True))
    name = next(name for name, block in cache.refreshed.items() if block.tokens == ("text",))
    assert len(cache.lists[1, name][0]) == 4 and cache.lists[1, name].max() < 8


def test_tokens_of_the_region_are_those_of_the_masks_middle_pixels():
    region = torch.zeros(1, 1, H, W)
    region[..., 3:5, 3:5] = 1
    assert on_grid(region, 6, 8).sum() == 4
    assert on_grid(region, 6, 8, nearest=True).nonzero().tolist() == [[0, 0, 1, 1]]
    pixels = np.zeros((8 * H, 8 * W), np.uint8)
    pixels[12:41, 20:41] = 255
    picture = Image.fromarray(pixels)
    cells = to_mask(picture, (W, H), "nearest")
    assert torch.equal(cells[0, 0], torch.from_numpy(pixels[::8, ::8] > 0).float())
    tokens = picture.resize((W // 2, H // 2), Image.Resampling.NEAREST)  # as the released code has them
    found = on_grid(cells, H // 2, W // 2, nearest=True)[0, 0]
    assert torch.equal(found, torch.from_numpy(np.array(tokens) > 0).float())


@pytest.mark.parametrize("box", ((20, 12, 41, 41), (16, 8, 24, 40), (13, 3, 47, 95)))
def test_places_of_a_box_are_those_from_where_it_begins_to_before_where_it_ends(box):
    left, top, right, bottom = box
    pixels = np.zeros((8 * H, 8 * W), np.uint8)
    pixels[top:bottom, left:right] = 255
    cells = to_mask(Image.fromarray(pixels), (W, H), "box")
    wanted = torch.zeros(H, W)
    wanted[top // 8:bottom // 8, left // 8:right // 8] = 1
    assert torch.equal(cells[0, 0], wanted)
    tokens = torch.zeros(H // 2, W // 2)
    tokens[top // 16:int(bottom / 16 + 0.5), left // 16:int(right / 16 + 0.5)] = 1
    assert torch.equal(on_grid(cells, H // 2, W // 2)[0, 0], tokens)


def test_a_list_of_the_noises_that_the_released_code_draws_is_enough_and_in_its_order(model, z0):
    request = Request(SOURCE, TARGET, mask=mask(*MASK))
    for name, more, tags in (("published", {}, ((0, 0), (1,))), ("published-composition", {}, ((0, 0), (1,))),
                             ("published-drag", dict(request=Request(SOURCE, TARGET, points=POINTS)),
                              ((0, 0), (1,), (0, 1)))):
        settings = sage.method("eedit").preset(name)
        given = [[step.z for step in sage.run("eedit", model, z0, SOURCE, TARGET, settings, noises, **{
            "request": request} | more)] for noises in ([drawn(tag) for tag in tags], drawn)]
        assert all(torch.equal(a, b) for a, b in zip(*given, strict=True))


def test_on_the_way_places_are_drawn_at_the_steps_that_the_network_is_asked_at(model):
    """And tokens age only there: no place is of an age that a skipped step would have given it."""
    levels = model.schedule.levels(6, "leading", (4, 8))
    edges = tuple(zip(levels, levels[1:], strict=False))
    cached = Cached(cache="eedit", fresh_ratio=0.5, soft_fresh_weight=100.0, fresh_threshold=3)
    ways = {name: Cache(model, cached, edges, [True, *[False] * 5], None, (4, 8), 24, online=online)
            for name, online in (("before", False), ("asked", True))}
    for step in (0, 2, 4):
        with ways["asked"].around(edges[step][0], ["target"]):
            pass
    assert sorted({step for step, _ in ways["asked"].lists}) == [2, 4]
    assert sorted({step for step, _ in ways["before"].lists}) == [1, 2, 3, 4, 5]
    for name in ways["before"].draws:  # the second list on the way is the second of all
        assert torch.equal(ways["asked"].lists[4, name], ways["before"].lists[2, name])
