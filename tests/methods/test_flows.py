"""Methods on rectified flows, on a tiny FLUX.1, held to renditions of their formulas step by step.

In float64, where differences of up to 6e-15 are left.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import sage
from sage.editing import check_prompts, edit_batch
from sage.errors import SettingsError
from sage.method import Request
from tests import small
from tests.methods import flows_original as original
from tests.methods.precise import EXACT, in_float64
from tests.models import flux

SOURCE, TARGET = "a cat on a mat", "a dog on a mat"
N = 5
CLOSE = 1e-5  # in float32
SHAPE = (1, 16, 8, 12)  # 4 x 6 tokens


@pytest.fixture(scope="module", params=(True, False), ids=("dev", "schnell"))
def networks(request, tmp_path_factory):
    """Our model, the oracle's transformer, and whether guidance is an input of it."""
    model, theirs = flux.make(tmp_path_factory.mktemp("flows") / "words", request.param)
    return model, theirs[0], request.param


@pytest.fixture
def made(networks):
    """Our model and the oracle's network; all of a test is in float64."""
    model, theirs, distilled = networks
    with in_float64(model, theirs):
        texts = model.embed([model.prompts.parse(prompt) for prompt in (SOURCE, TARGET, "")])
        rows = {name: (texts.tokens[[i]], texts.pooled[[i]]) for i, name in enumerate(("source", "target", "empty"))}
        yield model, original.Net(theirs, rows, distilled)


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    return flux.make(tmp_path_factory.mktemp("flow") / "words", guidance=False)[0]


def picture() -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(5))


def drawn(count: int) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(11)
    return [torch.randn(SHAPE, generator=g) for _ in range(count)]


def times(model, steps: int = N) -> list[float]:
    """From 0 to 1."""
    return [level.t for level in model.schedule.levels(steps, "leading", SHAPE[2:])]


def off(a, b) -> float:
    return ((a - b).norm() / b.norm()).item()


def ours(model, method: str, settings, noises=None, target: str = TARGET, mask: Image.Image | None = None):
    """The latents of each step back, and of the way to noise."""
    found, paths = sage.method(method), []
    kept = found.invert
    found.invert = lambda job: paths.append(kept(job)) or paths[-1]
    try:
        steps = [step.z for step in sage.run(found, model, picture(), SOURCE, target, settings, noises,
                                             request=Request(SOURCE, target, mask=mask))]
    finally:
        del found.invert
    return paths[0].latents, steps


def held(found, wanted, close: float = EXACT):
    for ours, theirs in zip(found, wanted, strict=True):
        assert len(ours) == len(theirs)
        assert max(map(off, ours, theirs)) < close


def box(left: int = 2, top: int = 1, right: int = 5, bottom: int = 4) -> Image.Image:
    """A mask of whole tokens, given in them, of a picture of 4 x 6."""
    pixels = np.zeros((4, 6), np.uint8)
    pixels[top:bottom, left:right] = 255
    return Image.fromarray(pixels).resize((48, 32), Image.Resampling.NEAREST)


# ---- FlowEdit

FLOWEDIT = {
    "plain": dict(strength=0.8),
    "guided": dict(strength=0.8, source_guidance_scale=1.5, guidance_scale=5.5),
    "averages": dict(strength=0.6, averages=3),
    "sampled": dict(strength=0.8, sampled_fraction=0.4, guidance_scale=3.0),
}


@pytest.mark.parametrize("case", FLOWEDIT)
def test_every_step_of_flowedit_is_that_of_its_formulas(made, case):
    model, net = made
    s = sage.method("flowedit").Settings(**dict(steps=N, guidance_scale=1.0) | FLOWEDIT[case])
    theirs = original.flowedit(net, picture(), drawn(12), times(model)[::-1], round(s.strength * N),
                               round(s.sampled_fraction * N), s.averages, s.source_guidance_scale, s.guidance_scale)
    held([ours(model, "flowedit", s, drawn(12))[1]], [theirs])


def test_the_mask_of_flowedit_is_on_the_increment(made):
    model, net = made
    s = sage.method("flowedit").Settings(steps=N, strength=0.8, source_guidance_scale=1.5, guidance_scale=4.0)
    mask = torch.zeros(1, 1, 8, 12)
    mask[..., 2:8, 4:10] = 1
    theirs = original.flowedit(net, picture(), drawn(4), times(model)[::-1], 4, 0, 1, 1.5, 4.0, mask)
    steps = ours(model, "flowedit", s, drawn(4), mask=box())[1]
    held([steps], [theirs])
    assert torch.equal(steps[-1] * (1 - mask), picture() * (1 - mask))


def test_the_published_steps_of_flowedit_are_24_of_28(flow):
    s = sage.method("flowedit").preset("published")
    assert len(ours(flow, "flowedit", s)[1]) == 24


def test_as_published_a_flow_that_does_not_take_guidance_has_none(made):
    model, net = made
    s = sage.method("flowedit").preset("published", steps=N, strength=0.8)
    theirs = original.flowedit(net.as_published(), picture(), drawn(4), times(model)[::-1], 4, 0, 1, 1.5, 5.5)
    held([ours(model, "flowedit", s, drawn(4))[1]], [theirs])
    guided = ours(model, "flowedit", s.but(guidance_by="passes"), drawn(4))[1]
    assert torch.equal(guided[-1], ours(model, "flowedit", s, drawn(4))[1][-1]) == net.distilled


# ---- UniEdit-Flow


@pytest.mark.parametrize("strength, published", [(0.6, True), (1.0, True), (0.6, False)])
def test_every_step_of_uni_edit_is_that_of_its_formulas(made, strength, published):
    model, net = made
    found = sage.method("uni-edit")
    s = (found.preset("flow") if published else found.Settings()).but(steps=N, strength=strength, guidance_scale=2.0)
    theirs = original.uni_edit(net, picture(), times(model)[:1 + round(strength * N)], 2.0, published)
    held(ours(model, "uni-edit", s), theirs)


def test_the_authors_code_for_flows_rounds_the_share_of_steps(flow):
    assert [len(ours(flow, "uni-edit", sage.method("uni-edit").preset("flow", steps=N, strength=share))[1])
            for share in (0.42, 0.5, 0.53)] == [2, 2, 3]


# ---- RF-inversion


@pytest.mark.parametrize("conventions", ("consistent", "published"))
@pytest.mark.parametrize("power", (0.0, 1.5))
def test_every_step_of_rf_inversion_is_that_of_its_formulas(made, conventions, power):
    model, net = made
    s = sage.method("rf-inversion").preset("published", steps=N, start=0.2, stop=0.6, decay=power,
                                           conventions=conventions)
    theirs = original.rf_inversion(net.as_published(), picture(), drawn(1)[0], times(model)[::-1], gamma=0.5, eta=0.9,
                                   start=0.2, stop=0.6, power=power, w=3.5, published=conventions == "published")
    held(ours(model, "rf-inversion", s, drawn(1)), theirs)


@pytest.mark.parametrize("strength, taken", [(0.8, 8), (0.55, 6)])
def test_of_a_part_of_the_way_rf_inversion_has_the_grid_of_the_original_code(made, strength, taken):
    """The last levels, times spread over them alone, and shares of all steps from the first that is taken."""
    model, net = made
    s = sage.method("rf-inversion").preset("published", steps=10, strength=strength, start=0.1, stop=0.4, decay=1.0)
    theirs = original.rf_inversion(net.as_published(), picture(), drawn(1)[0], times(model, 10)[taken::-1], gamma=0.5,
                                   eta=0.9, start=0.1, stop=0.4, power=1.0, w=3.5, published=True, of=10)
    held(ours(model, "rf-inversion", s, drawn(1)), theirs)


def test_a_strength_is_counted_as_the_original_code_counts(made):
    settings = sage.method("rf-inversion").Settings
    assert settings(steps=50, strength=0.56, conventions="published").taken == 29
    assert settings(steps=50, strength=0.56).taken == 28


def test_rf_inversion_drawn_all_the_way_reaches_both_ends(made):
    s = sage.method("rf-inversion").Settings(steps=N, gamma=1.0, eta=1.0, stop=1.0)
    up, down = ours(made[0], "rf-inversion", s, drawn(1))
    assert off(up[-1], drawn(1)[0]) < EXACT and off(down[-1], picture()) < EXACT


def test_the_mask_of_rf_inversion_leaves_the_rest(made):
    s = sage.method("rf-inversion").Settings(steps=N, guidance_scale=2.0)
    z = ours(made[0], "rf-inversion", s, mask=box())[1][-1]
    assert torch.equal(z[..., :2], picture()[..., :2]) and off(z[..., 2:8, 4:10], picture()[..., 2:8, 4:10]) > 1e-2


def test_on_a_diffusion_rf_inversion_has_no_published_times(tmp_path):
    model = small.make(tmp_path / "tokenizer").model
    s = sage.method("rf-inversion").Settings(steps=N, conventions="published")
    with pytest.raises(SettingsError, match="small is no rectified flow"):
        sage.edit(model, small.picture(), SOURCE, TARGET, s)


# ---- RF-Solver and FireFlow


@pytest.mark.parametrize("shared", (0, 2))
@pytest.mark.parametrize("name, by", (("rf-solver", "input"), ("rf-solver", "passes"), ("fireflow", "input")))
def test_every_step_of_second_order_is_that_of_its_formulas(made, name, by, shared):
    model, net = made
    s = sage.method(name).preset("published", steps=N, guidance_scale=2.0, guidance_by=by, shared_steps=shared,
                                 first_block=0.5)
    net = net.as_published() if by == "input" else net
    theirs = {"rf-solver": original.rf_solver, "fireflow": original.fireflow}[name](
        net, picture(), times(model), 2.0, shared, first=1)  # of 2 double and 3 single blocks the last 2
    held(ours(model, name, s), theirs)


@pytest.mark.slow
@pytest.mark.parametrize("name", ("rf-solver", "fireflow"))
def test_steps_of_second_order_lead_back_better_than_eulers(flow, name):
    """Halving the steps divides the error by 2, or by 4."""
    def error(method: str, steps: int, **more) -> float:
        s = sage.method(method).Settings(steps=steps, guidance_scale=1.0, **more)
        return off(ours(flow, method, s, target=SOURCE)[1][-1], picture())

    few, many = (error(name, steps, shared_steps=0) for steps in (16, 32))
    assert few > 2.5 * many and many < 0.5 * error("plain", 32)


def test_a_network_that_is_no_flow_is_refused_in_one_line(tmp_path):
    model = small.make(tmp_path / "tokenizer").model
    for name, why in (("rf-solver", "no rectified flow"), ("fireflow", "no rectified flow"),
                      ("kv-edit", "computes all places or none")):
        with pytest.raises(SettingsError, match=f"{name} cannot edit with small: it .*{why}|{name} .* it is {why}"):
            sage.edit(model, small.picture(), SOURCE, TARGET, method=name)


# ---- KV-Edit


@pytest.mark.parametrize("pairing, scale", (("transition", 0.0), ("level", 0.0), ("transition", 2.0)))
def test_every_step_of_kv_edit_is_as_if_everything_were_computed_and_the_rest_put_back(made, pairing, scale):
    model, net = made
    s = sage.method("kv-edit").Settings(steps=N, strength=0.8, source_guidance_scale=1.5, guidance_scale=4.0,
                                        pairing=pairing, attn_scale=scale)
    inside = torch.zeros(1, 1, 8, 12)
    inside[..., 2:8, 4:10] = 1
    outside = torch.tensor([i for i in range(24) if not (1 <= i // 6 < 4 and 2 <= i % 6 < 5)])
    theirs = original.kv_edit(net, picture(), times(model)[:5], 1.5, 4.0, outside, inside, pairing == "level",
                               scale=scale)
    up, down = ours(model, "kv-edit", s, mask=box())
    held((up, down), theirs)
    assert torch.equal(down[-1] * (1 - inside), picture() * (1 - inside))


@pytest.mark.parametrize("renewed", (0.0, 1.0))
def test_every_step_of_kv_edit_as_published_begins_a_step_early_and_confines_to_cells(made, renewed):
    model, net = made
    s = sage.method("kv-edit").preset("published", steps=N, strength=0.8, renewed=renewed)
    pixels = np.zeros((8 * 4, 12 * 4), np.uint8)
    pixels[9:22, 22:31] = 255  # the pixels beside the middle of a cell are its second and third
    cells = torch.zeros(1, 1, 8, 12)
    cells[..., 2:6, 5:8] = 1
    inside = torch.zeros(1, 1, 8, 12)
    inside[..., 2:6, 4:8] = 1
    outside = torch.tensor([i for i in range(24) if not (1 <= i // 6 < 3 and 2 <= i % 6 < 4)])
    noise = drawn(1)[0] if renewed else None
    theirs = original.kv_edit(net.as_published(), picture(), times(model)[:5], 1.5, 5.5, outside, inside, False, cells,
                              noise, scale=1.0)
    up, down = ours(model, "kv-edit", s, drawn(1), mask=Image.fromarray(pixels))
    held((up, down), theirs)
    assert torch.equal(down[-1] * (1 - cells), picture() * (1 - cells))


def test_what_is_outside_is_looked_at_the_more_with_maps_formed_too(flow):
    """Who watches has the maps formed, and changes nothing."""
    s = sage.method("kv-edit").Settings(steps=3, guidance_scale=2.0, attn_scale=3.0)
    want, plain = (ours(flow, "kv-edit", s.but(attn_scale=scale), mask=box())[1] for scale in (3.0, 0.0))
    sites = flow.sites()
    with sage.kit.rewrite(sites, lambda map, site: map):
        formed = ours(flow, "kv-edit", s, mask=box())[1]
    held([formed], [want], CLOSE)
    assert off(want[-1], plain[-1]) > 1e-2


def test_the_network_works_on_the_tokens_of_the_mask_alone(flow):
    seen = []
    handle = flow.transformer.x_embedder.register_forward_pre_hook(lambda module, given: seen.append(given[0].shape[1]))
    try:
        ours(flow, "kv-edit", sage.method("kv-edit").Settings(steps=2, guidance_scale=1.0), mask=box())
    finally:
        handle.remove()
    assert seen == [24, 24, 9, 9]


def test_without_a_mask_kv_edit_is_plain_and_a_whole_mask_is_no_mask(made):
    model = made[0]
    s = sage.method("kv-edit").Settings(steps=N, guidance_scale=3.0)
    plain = sage.method("plain").Settings(steps=N, guidance_scale=3.0, negative="empty")
    unmasked, whole = ours(model, "kv-edit", s)[1], ours(model, "kv-edit", s, mask=box(0, 0, 6, 4))[1]
    held([unmasked, whole], [ours(model, "plain", plain)[1]] * 2)


def test_masks_of_a_batch_are_each_as_if_alone(flow):
    settings = sage.method("kv-edit").Settings(steps=3, guidance_scale=2.0, renewed=0.3, attn_scale=1.5, size=64)
    images = [small.picture(64, 64, seed) for seed in range(2)]
    masks = [box(0, 0, 3, 2).resize((64, 64)), box(2, 1, 6, 4).resize((64, 64))]
    requests = [Request(SOURCE, TARGET, mask=mask) for mask in masks]
    plans = [check_prompts(flow, SOURCE, TARGET, settings)] * 2
    together = edit_batch(flow, images, plans, settings, requests=requests)
    for image, mask, found in zip(images, masks, together, strict=True):
        alone = sage.edit(flow, image, SOURCE, TARGET, settings, mask=mask)
        assert off(found.latents, alone.latents) < 1e-4
        assert torch.equal(found.masks[0], alone.masks[0]) and 0 < found.masks[0].mean() < 0.8
        kept = alone.trajectory.latents[0]
        assert torch.equal(torch.where(alone.masks[0] > 0, kept, alone.latents), kept)


def test_fresh_noise_inside_forgets_what_was_there(flow):
    found = [ours(flow, "kv-edit", sage.method("kv-edit").Settings(steps=N, guidance_scale=1.0, renewed=share),
                  drawn(1), SOURCE, box())[1][-1] for share in (0.0, 0.5, 1.0)]
    away = [off(z, picture()) for z in found]
    assert away[0] < away[1] < away[2]


# ---- SAGE


def test_sage_on_a_flow_inverted_with_a_look_ahead_retraces_it(made):
    model, net = made
    s = sage.method("sage").Settings(steps=N, inversion="uni", guidance_scale=1.0, reconstruction="none", replace=None,
                                     blend=None, self_level=1, cross_level=1)
    held([ours(model, "sage", s, target=SOURCE)[0]], [original.uni_inversion(net, picture(), times(model))])
    ahead, euler = (off(ours(model, "sage", s.but(steps=10, inversion=name), target=SOURCE)[1][-1], picture())
                    for name in ("uni", "ddim"))
    assert ahead < 0.5 * euler


def test_the_maps_of_a_look_ahead_are_those_of_its_own_latents(flow):
    """What SAGE is held to is what the latents of the way give at their levels, whichever way it is."""
    s = sage.method("sage").Settings(steps=3, inversion="uni", self_level=1, cross_level=1, guidance_scale=1.5)
    result = sage.edit(flow, small.picture(), SOURCE, TARGET, s)
    path = result.trajectory
    text = flow.embed(path.source)
    here = flow.schedule.levels(3, "leading", path.noise.shape[-2:])[1]
    with torch.no_grad(), sage.kit.listen(flow.sites().at(sage.kit.Where("self", 1))) as tap:
        flow.predict(path.latents[1], here, text)
    for pair, kept in zip(tap.pop(), path.maps[1].self, strict=True):
        assert off(pair.keys, kept.keys) < CLOSE
    assert result.losses and torch.isfinite(result.latents).all()


def test_what_is_recorded_is_not_taken_for_what_is_recorded_otherwise(flow):
    """Queries and keys of SAGE's way are no keys and values of KV-Edit's."""
    image = small.picture()
    path = sage.invert(flow, image, SOURCE, sage.method("sage").Settings(steps=3, self_level=1, cross_level=1))
    s = sage.method("kv-edit").Settings(steps=3)
    with pytest.raises(SettingsError, match="invert again"):
        sage.edit(flow, image, SOURCE, TARGET, s, trajectory=path)
    assert type(replace(sage.invert(flow, image, SOURCE, s))).kind == "lent"


@pytest.mark.parametrize("name", ("rf-inversion", "eedit"))
def test_no_noise_is_that_which_the_autoencoders_sample_is_drawn_with(flow, name):
    """Which is that of the seed without a tag."""
    settings, tags = sage.method(name).preset("published", steps=N), []
    list(sage.run(name, flow, picture(), SOURCE, TARGET, settings, lambda tag: tags.append(tag) or drawn(1)[0]))
    assert settings.encode == "sample" and tags and () not in tags
