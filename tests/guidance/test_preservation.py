"""SAGE's loss beside another editor, on a small network of random weights."""

import pytest
import torch

import sage
from sage.guidance.hooks import record
from sage.guidance.preservation import Preservation
from sage.job import Job
from sage.models.sites import Where
from tests import small

STEPS = 4


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small.make(tmp_path_factory.mktemp("preservation") / "tokenizer").model


def job(model, **changes):
    method = sage.method("p2p")
    settings = method.Settings(steps=STEPS, cross_level=0, **{"preserve_limit": 0.0, **changes})
    plan = method.plan(model.prompts, model.prompts.parse("a cat"), model.prompts.parse("a dog"), settings)
    z = torch.randn(2, *model.latent_shape((64, 64)), generator=torch.Generator().manual_seed(1))
    return Job(method, model, settings, [plan, plan], z)


def apart(job, level, source, z):
    """The mean distance of the maps, a picture."""
    maps = []
    with torch.no_grad(), record(job.model.sites().at(Where("self", job.settings.preserve_level))) as tap:
        for latents in (source, z):
            job.predict(latents, level, job.source)
            maps.append(torch.cat([m.flatten(1) for m in tap.pop()], dim=1))
    return (maps[1] - maps[0]).abs().mean(dim=1)


@pytest.mark.parametrize("step", (0, 2))
def test_a_small_step_lowers_the_distance_by_as_much_as_it_says(model, step):
    scale = 10.0
    of = job(model, preserve_scale=scale)
    (level, _), source = of.down[step], of.z0
    z = source + 0.3 * torch.randn(source.shape, generator=torch.Generator().manual_seed(2))
    pull = Preservation(of, STEPS).pull(step, level, source, z)
    gradient = pull / scale / (1 - step / STEPS)
    move = 1e-3 / gradient.flatten(1).norm(dim=1)[:, None, None, None] * gradient
    fell = apart(of, level, source, z) - apart(of, level, source, z - move)
    assert (fell > 0).all()
    assert fell.tolist() == pytest.approx((move * gradient).flatten(1).sum(dim=1).tolist(), rel=0.1)


def test_nothing_is_drawn_where_nothing_differs_or_nothing_is_asked(model):
    of = job(model, preserve_scale=10.0, preserve_fraction=0.5)
    (level, _), source = of.down[0], of.z0
    assert Preservation(of, STEPS).pull(0, level, source, source.clone()) == 0.0
    assert Preservation(of, STEPS).pull(2, level, source, source + 1) == 0.0  # after the first half of the steps
    assert Preservation(job(model), STEPS).pull(0, level, source, source + 1) == 0.0


def test_a_step_is_no_longer_than_the_limit(model):
    of = job(model, preserve_scale=1e9, preserve_limit=0.02)
    (level, _), source = of.down[0], of.z0
    short = Preservation(of, STEPS).pull(0, level, source, source + 0.1)
    assert short.square().mean(dim=(1, 2, 3)).sqrt().tolist() == pytest.approx([0.02, 0.02])
