"""DDIM and its inverse against diffusers' schedulers, today's and those of 0.21.4."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler
from torch import Tensor

from sage.sampling.levels import DiffusionSchedule, Level, ScheduleParams, downwards, upwards
from sage.sampling.steps import (
    Prediction,
    advance,
    affine,
    ancestral,
    clean,
    ddim_step,
    from_output,
    renoise,
    walk,
)

RECORDED = json.loads((Path(__file__).parents[1] / "data" / "diffusers_0_21_4.json").read_text())


def out(z: Tensor, t: int) -> Tensor:
    """What stands for a network here: anything that both sides can compute."""
    return torch.sin(3 * z + t / 100)


def denoiser(prediction: str):
    return lambda z, level: from_output(z, out(z, level.t), level, prediction)


def latents(seed: int = 0) -> Tensor:
    return torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(seed))


def config(**options) -> dict:
    return dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False) | options


def assert_close(ours: Tensor, theirs: Tensor, tolerance: float = 5e-5) -> None:
    # diffusers' table is float32: near t = 0 its 1 - alpha is off by 4e-5.
    assert ((ours - theirs).norm() / theirs.norm()).item() <= tolerance


@pytest.mark.parametrize("to_one", (False, True))
@pytest.mark.parametrize("offset", (0, 1))
@pytest.mark.parametrize("prediction", ("epsilon", "v_prediction"))
@pytest.mark.parametrize("spacing, steps", (("leading", 50), ("leading", 7), ("trailing", 20), ("trailing", 8)))
def test_both_ways_agree_with_diffusers_step_by_step(spacing, steps, prediction, offset, to_one):
    options = config(steps_offset=offset, set_alpha_to_one=to_one, prediction_type=prediction, timestep_spacing=spacing)
    levels = DiffusionSchedule(ScheduleParams(steps_offset=offset, set_alpha_to_one=to_one)).levels(steps, spacing)

    z, oracle = latents(), DDIMInverseScheduler(**options)
    oracle.set_timesteps(steps)
    for (start, end), t in zip(upwards(levels), oracle.timesteps.tolist(), strict=True):
        assert end.t == t  # today's inverse scheduler is told the end of the step
        output = out(z, start.t)
        (ours,) = walk(lambda z, level, output=output: from_output(z, output, level, prediction), z,
                       [(start, end)])
        theirs = oracle.step(output, t, z).prev_sample
        assert_close(ours, theirs)
        z = theirs

    oracle = DDIMScheduler(**options)
    oracle.set_timesteps(steps)
    for (start, end), t in zip(downwards(levels), oracle.timesteps.tolist(), strict=True):
        assert start.t == t
        (ours,) = walk(denoiser(prediction), z, [(start, end)])
        theirs = oracle.step(out(z, t), t, z)
        assert_close(ours, theirs.prev_sample)
        assert_close(denoiser(prediction)(z, start).x0, theirs.pred_original_sample, 1e-4)
        z = theirs.prev_sample


@pytest.mark.parametrize("case", RECORDED, ids=lambda c: f"{c['config']['timestep_spacing']}-{c['steps']}-"
                                                         f"{c['config']['prediction_type']}")
def test_released_grid_is_that_of_diffusers_0_21_4(case):
    c, steps = case["config"], case["steps"]
    up, down = DiffusionSchedule(ScheduleParams(set_alpha_to_one=c["set_alpha_to_one"])).inferred(
        steps, c["timestep_spacing"])
    assert [start.t for start, _ in down] == case["forward_timesteps"]
    assert [start.t for start, _ in up] == [0, *case["forward_timesteps"][:0:-1]]
    # Their own inverse timesteps, which the released code does not use, agree from the second on.
    assert [start.t for start, _ in up][1:] == case["inverse_timesteps"][1:]
    z = torch.linspace(-1.5, 1.5, 5)
    for edges, recorded in ((up, case["inversion"]), (down, case["sampling"])):
        steps = list(walk(denoiser(c["prediction_type"]), z, edges))
        for ours, row in zip(steps, recorded, strict=True):
            assert ours.tolist() == pytest.approx(row, rel=2e-4, abs=2e-4)
        z = steps[-1]


def test_consistent_grid_is_not_that_of_diffusers_0_21_4():
    case = RECORDED[0]
    *_, z = walk(denoiser("epsilon"), torch.linspace(-1.5, 1.5, 5), upwards(DiffusionSchedule().levels(50)))
    assert max(abs(a - b) for a, b in zip(z.tolist(), case["inversion"][-1], strict=True)) > 2e-3


@pytest.mark.parametrize("dtype, tolerance", ((torch.float64, 1e-12), (torch.float32, 5e-5)))
@pytest.mark.parametrize("spacing", ("leading", "trailing", "linspace"))
@pytest.mark.parametrize("steps", (1, 7, 50))
def test_there_and_back_with_the_same_noise_is_exact(steps, spacing, dtype, tolerance):
    levels = DiffusionSchedule().levels(steps, spacing)
    z = first = latents().to(dtype)
    noises = [latents(seed).to(dtype) for seed in range(1, steps + 1)]
    for (start, end), eps in zip(upwards(levels), noises, strict=True):
        z = ddim_step(z, eps, start, end)
    assert steps == 1 or (z - first).norm() / first.norm() > 0.3
    for (start, end), eps in zip(downwards(levels), reversed(noises), strict=True):
        z = ddim_step(z, eps, start, end)
    assert ((z - first).norm() / first.norm()).item() <= tolerance


@pytest.mark.parametrize("level", (Level.of(0, 1.0), Level.of(0, 0.99915), Level.of(500, 0.5), Level(0.3, 0.7, 0.3)))
def test_predictions_rebuild_the_latents(level):
    x0, eps = latents(1).double(), latents(2).double()
    z = renoise(Prediction(x0, eps), level)
    v = level.signal * eps - level.noise * x0
    for output, prediction in ((eps, "epsilon"), (v, "v_prediction")):
        if prediction == "v_prediction" and level.t == 0.3:
            continue  # whose signal and noise are no sine and cosine
        p = from_output(z, output, level, prediction)
        assert torch.allclose(p.x0, x0, atol=1e-9) and torch.allclose(p.eps, eps, atol=1e-9)
    assert torch.allclose(clean(z, eps, level), x0, atol=1e-9)


def test_v_prediction_survives_a_level_of_pure_noise():
    level = DiffusionSchedule(ScheduleParams(zero_terminal_snr=True)).levels(5, "trailing")[-1]
    assert level == Level(999, 0.0, 1.0)
    p = from_output(latents(1), latents(2), level, "v_prediction")
    assert torch.equal(p.x0, -latents(2)) and torch.equal(p.eps, latents(1))


def test_one_step_serves_diffusions_and_flows():
    """A DDIM step, an Euler step of a flow, the affine form and the advance of a prediction are one thing."""
    x0, eps = latents(1).double(), latents(2).double()
    for here, there in ((Level.of(600, 0.2), Level.of(400, 0.5)), (Level(0.8, 0.2, 0.8), Level(0.5, 0.5, 0.5))):
        p = Prediction(x0, eps)
        z, after = renoise(p, here), renoise(p, there)
        a, b = affine(here, there)
        assert torch.allclose(a * z + b * eps, after) and torch.allclose(z + advance(p, here, there), after)
    here, there = Level(0.8, 0.2, 0.8), Level(0.5, 0.5, 0.5)
    assert torch.allclose(renoise(p, here) + (0.5 - 0.8) * p.velocity, renoise(p, there))


def test_predictions_add_up():
    a, b = Prediction(latents(1), latents(2)), Prediction(latents(3), latents(4))
    p = a + 2.5 * (b - a)
    assert torch.equal(p.x0, a.x0 + 2.5 * (b.x0 - a.x0)) and torch.equal(p.eps, a.eps + 2.5 * (b.eps - a.eps))
    first, second = Prediction(torch.cat([a.x0, b.x0]), torch.cat([a.eps, b.eps])).chunk(2)
    assert torch.equal(first.x0, a.x0) and torch.equal(second.eps, b.eps)


@pytest.mark.parametrize("eta", (0.0, 0.3, 1.0))
def test_a_stochastic_step_is_that_of_diffusers(eta):
    oracle = DDIMScheduler(**config(steps_offset=1, set_alpha_to_one=False))
    oracle.set_timesteps(10)
    z, noise = latents(), latents(7)
    for (here, there), t in zip(downwards(DiffusionSchedule().levels(10)), oracle.timesteps.tolist(), strict=True):
        mean, deviation = ancestral(denoiser("epsilon")(z, here), here, there, eta)
        theirs = oracle.step(out(z, t), t, z, eta=eta, variance_noise=noise).prev_sample
        assert_close(mean + deviation * noise, theirs, 2e-4)
        z = theirs


def test_walk_gives_every_step_and_calls_the_network_once_each():
    seen, up = [], upwards(DiffusionSchedule().levels(5))

    def predict(z: Tensor, level: Level):
        seen.append(level)
        return Prediction(z, torch.zeros_like(z))

    assert len(list(walk(predict, latents(), up))) == 5
    assert seen == [start for start, _ in up]


def test_unknown_prediction():
    with pytest.raises(ValueError, match="'sample' is not one of epsilon, v_prediction"):
        from_output(latents(), latents(), Level.of(500, 0.5), "sample")
