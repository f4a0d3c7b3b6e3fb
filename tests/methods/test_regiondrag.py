"""RegionDrag's rule: what is moved is the recorded latents elsewhere, step by step; onto itself it is the picture."""

import numpy as np
import pytest
import torch
from PIL import Image

import sage
from sage.bench import search
from sage.guidance.masks import harmonic
from sage.method import Request
from sage.methods.regiondrag import Settings
from sage.pictures.regions import Move, box_mask
from sage.sampling.steps import Prediction, renoise
from tests import small

SOURCE = "a cat on a mat"
H, W = 16, 24
ORIGINAL = dict(vacated="noise", unnamed=False)
FROM, TO = (4, 2, 8, 6), (14, 8, 18, 12)  # left, top, right, bottom in cells


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small.make(tmp_path_factory.mktemp("drag") / "tokenizer").model


def latents(seed: int) -> torch.Tensor:
    return torch.randn(1, 4, H, W, generator=torch.Generator().manual_seed(seed))


def cells(*box: int) -> Image.Image:
    """A mask at four pixels a cell."""
    return box_mask(tuple(4 * side for side in box), (4 * W, 4 * H))


def run(model, move=None, mask=None, **changes):
    settings = Settings(**dict(steps=8, guidance_scale=1.0, strength=0.75) | changes)
    request = Request(SOURCE, SOURCE, moves=() if move is None else (move,), mask=mask)
    noises = {}

    def noise(tag):
        return noises.setdefault(tag, torch.randn(1, 4, H, W, generator=torch.Generator().manual_seed(hash(tag) % 999)))

    steps = list(sage.run("regiondrag", model, latents(0), SOURCE, SOURCE, settings, noise, request=request))
    return [step.z for step in steps], noises


def test_nothing_moved_or_moved_onto_itself_is_the_picture(model):
    for move in (None, Move(cells(*FROM), cells(*FROM))):
        z, _ = run(model, move)
        assert torch.allclose(z[-1], latents(0), atol=1e-3)


def posterior(p: Prediction, here, there) -> tuple[torch.Tensor, float]:
    """Mean and deviation of q(z_there | z_here, x0), as of DDPM (2006.11239, eq. 6 and 7), by signal shares."""
    a, b = here.signal**2, there.signal**2
    step, z = a / b, here.signal * p.x0 + here.noise * p.eps
    mean = b**0.5 * (1 - step) / (1 - a) * p.x0 + step**0.5 * (1 - b) / (1 - a) * z
    return mean, ((1 - b) / (1 - a) * (1 - step)) ** 0.5


def test_step_by_step_as_the_rule_says(model):
    """By hand, without attention taken over: 6 of 8 steps, put anew while more than a quarter of the way is left."""
    z, noises = run(model, Move(cells(*FROM), cells(*TO)), keys="own", until=0.25, margin=0, alpha=0.8, **ORIGINAL)
    levels = model.schedule.levels(8, "leading", (H, W))[:7]
    text = model.embed([model.prompts.parse(SOURCE)])

    def seen(z, level):
        return model.predict(z, level, text)

    def put(z, of, vacant=None):
        out = z.clone()
        if vacant is not None:
            out[..., 2:6, 4:8] = vacant[..., 2:6, 4:8]
        out[..., 8:12, 14:18] = of[..., 2:6, 4:8]
        return out

    recorded = [latents(0)] + [renoise(Prediction(latents(0), noises[k,]), levels[k]) for k in range(1, 7)]
    us = {}
    with torch.no_grad():
        for k in range(6, 0, -1):
            mean, scale = posterior(seen(recorded[k], levels[k]), levels[k], levels[k - 1])
            scale = scale or 1.0
            us[k] = (recorded[k - 1] - mean) / scale
            recorded[k - 1] = mean + scale * us[k] if k > 1 else recorded[0]
        x = put(recorded[6], recorded[6], 0.6 * recorded[6] + 0.8 * noises[0, 1])
        free = torch.zeros(1, 1, H, W, dtype=torch.bool)
        free[..., 2:6, 4:8] = free[..., 8:12, 14:18] = True
        for i, k in enumerate(range(6, 0, -1)):
            mean, scale = posterior(seen(x, levels[k]), levels[k], levels[k - 1])
            x = mean + (scale or 1.0) * put(us[k], us[k], noises[1, i])
            if k - 1 > 2:
                x = put(x, recorded[k - 1])
            x = torch.where(free, x, recorded[k - 1])
            assert ((z[i] - x).norm() / x.norm()).item() < 1e-5, i


def test_what_is_left_behind_is_what_lies_around_it(model, monkeypatch):
    """By hand: from where it begins to the first step, keys of its own, and which picture lends them."""
    asked, predict = [], type(model).predict
    monkeypatch.setattr(type(model), "predict", lambda self, z, *rest: asked.append(z) or predict(self, z, *rest))
    z, noises = run(model, Move(cells(*FROM), cells(*TO)), keys="own", until=0.0, margin=0)
    level, below = model.schedule.levels(8, "leading", (H, W))[6:4:-1]
    vacant = torch.zeros(1, 1, H, W, dtype=torch.bool)
    vacant[..., 2:6, 4:8] = True
    floor = harmonic(latents(0), vacant)
    recorded, start = (renoise(Prediction(x, noise), level) for x, noise in ((latents(0), noises[6,]),
                                                                            (floor, noises[0, 1])))

    def put(z, of):
        out = z.clone()
        out[..., 8:12, 14:18] = of[..., 2:6, 4:8]
        return out

    x = put(torch.where(vacant, start, recorded), recorded)
    lender, target, negative = asked[-18:-15] if len(asked[-1]) == 1 else asked[-6].chunk(3)
    assert torch.allclose(target, x, atol=1e-4) and torch.equal(target, negative)
    assert torch.allclose(lender, put(torch.where(vacant, recorded + level.signal * (floor - latents(0)), recorded),
                                      recorded), atol=1e-4)
    seen = {}
    for name, prompt in (("named", SOURCE), ("unnamed", "")):
        text = model.embed([model.prompts.parse(prompt)])
        with torch.no_grad():
            seen[name] = posterior(model.predict(x, level, text), level, below)
    mean, scale = torch.where(vacant, seen["unnamed"][0], seen["named"][0]), seen["named"][1]
    assert torch.allclose(z[0][..., 2:6, 4:8], (mean + scale * noises[1, 0])[..., 2:6, 4:8], atol=1e-3)
    assert not torch.allclose(seen["unnamed"][0], seen["named"][0], atol=1e-2)


def test_a_hole_is_filled_from_around():
    y, x = torch.meshgrid(torch.arange(17.0), torch.arange(13.0), indexing="ij")
    plane = torch.stack([2 * x - y, x + 3 * y])[None]  # which solves Laplace's equation
    hole = torch.zeros(1, 1, 17, 13, dtype=torch.bool)
    hole[..., 4:12, 3:9] = True
    filled = harmonic(torch.where(hole, 1e3, plane), hole)
    assert torch.equal(filled[~hole.expand_as(plane)], plane[~hole.expand_as(plane)])
    assert (filled - plane).abs().max() < 0.05 * (plane.max() - plane.min())
    assert torch.equal(harmonic(plane, torch.zeros_like(hole)), plane)
    assert not harmonic(plane, torch.ones_like(hole)).any()
    edge = torch.zeros_like(hole)
    edge[..., 10:, 6:] = True
    assert torch.isfinite(harmonic(torch.where(edge, torch.inf, plane).nan_to_num(0), edge)).all()


def test_the_rim_of_a_region_is_left_too(model):
    """Places that it covers by less than half begin anew; they would stay behind as its outline."""
    four = tuple(4 * side for side in FROM)
    wider = box_mask((four[0] - 1, four[1] - 1, four[2] + 1, four[3] + 1), (4 * W, 4 * H))
    z, _ = run(model, Move(wider, cells(*TO)), margin=0)
    free = np.zeros((H, W), bool)
    free[1:7, 3:9] = free[8:12, 14:18] = True
    same = (z[-1] == latents(0)).all(1)[0].numpy()
    assert same[~free].all() and not same[free].any()
    z, _ = run(model, Move(wider, cells(*TO)), margin=0, **ORIGINAL)
    free[1:7, 3:9] = False
    free[2:6, 4:8] = True
    assert (z[-1] == latents(0)).all(1)[0].numpy()[~free].all()


def test_outside_the_regions_or_the_mask_the_latents_are_the_pictures(model):
    move = Move(cells(*FROM), cells(*TO))
    free = np.zeros((H, W), bool)
    free[1:7, 3:9] = free[7:13, 13:19] = True
    z, _ = run(model, move, margin=1)
    same = (z[-1] == latents(0)).all(1)[0].numpy()
    assert same[~free].all() and not same[free].any()
    z, _ = run(model, move, mask=cells(0, 0, W, 12))
    same = (z[-1] == latents(0)).all(1)[0].numpy()
    assert same[12:].all() and not same[:12].all()


@pytest.mark.parametrize("change", [dict(until=0.6), dict(drag_class="cut"), dict(alpha=0.3), dict(margin=3),
                                    dict(keys="both"), dict(keys="own"), dict(vacated="around"), dict(unnamed=True)])
def test_every_setting_changes_the_drag(model, change):
    move = Move(cells(*FROM), cells(*TO))
    assert not torch.equal(run(model, move, **ORIGINAL)[0][-1], run(model, move, **ORIGINAL | change)[0][-1])


def test_what_only_drags_know_is_no_part_of_a_search_on_prompts():
    names = {"vacated", "unnamed"}
    for name in ("regiondrag", "eedit"):
        method = sage.method(name)
        assert names <= method.Settings.searched().keys() and not names & search.space(method).keys()


def test_cut_puts_each_in_the_others_place(model):
    z, _ = run(model, Move(cells(*FROM), cells(*TO)), drag_class="cut", until=0.0, margin=0, strength=1.0)
    back, _ = run(model, Move(cells(*TO), cells(*FROM)), drag_class="cut", until=0.0, margin=0, strength=1.0)
    assert torch.allclose(z[0], back[0], atol=1e-4)
