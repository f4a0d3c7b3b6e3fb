"""DDIM and its inverse against diffusers' schedulers, today's and those of 0.21.4."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler
from torch import Tensor

from sage.sampling.levels import Level, ScheduleParams, make_schedule
from sage.sampling.steps import clean, ddim_step, from_prediction, renoise, walk

RECORDED = json.loads((Path(__file__).parents[1] / "data" / "diffusers_0_21_4.json").read_text())


def out(z: Tensor, t: int) -> Tensor:
    """What stands for a network here: anything that both sides can compute."""
    return torch.sin(3 * z + t / 100)


def denoiser(prediction: str):
    return lambda z, level: from_prediction(z, out(z, level.t), level.alpha, prediction)


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
    s = make_schedule(ScheduleParams(steps_offset=offset, set_alpha_to_one=to_one), steps, spacing)

    z, oracle = latents(), DDIMInverseScheduler(**options)
    oracle.set_timesteps(steps)
    for (start, end), t in zip(s.inversion, oracle.timesteps.tolist(), strict=True):
        assert end.t == t  # today's inverse scheduler is told the end of the step
        output = out(z, start.t)
        (ours,) = walk(lambda z, level, output=output: from_prediction(z, output, level.alpha, prediction), z,
                       [(start, end)])
        theirs = oracle.step(output, t, z).prev_sample
        assert_close(ours, theirs)
        z = theirs

    oracle = DDIMScheduler(**options)
    oracle.set_timesteps(steps)
    for (start, end), t in zip(s.sampling, oracle.timesteps.tolist(), strict=True):
        assert start.t == t
        (ours,) = walk(denoiser(prediction), z, [(start, end)])
        theirs = oracle.step(out(z, t), t, z)
        assert_close(ours, theirs.prev_sample)
        assert_close(denoiser(prediction)(z, start)[0], theirs.pred_original_sample, 1e-4)
        z = theirs.prev_sample


@pytest.mark.parametrize("case", RECORDED, ids=lambda c: f"{c['config']['timestep_spacing']}-{c['steps']}-"
                                                         f"{c['config']['prediction_type']}")
def test_released_grid_is_that_of_diffusers_0_21_4(case):
    c, steps = case["config"], case["steps"]
    s = make_schedule(ScheduleParams(steps_offset=1, set_alpha_to_one=c["set_alpha_to_one"]), steps,
                      c["timestep_spacing"], "released")
    assert [start.t for start, _ in s.sampling] == case["forward_timesteps"]
    assert [start.t for start, _ in s.inversion] == [0, *case["forward_timesteps"][:0:-1]]
    # Their own inverse timesteps, which the released code does not use, agree from the second on.
    assert [start.t for start, _ in s.inversion][1:] == case["inverse_timesteps"][1:]
    z = torch.linspace(-1.5, 1.5, 5)
    for edges, recorded in ((s.inversion, case["inversion"]), (s.sampling, case["sampling"])):
        steps = list(walk(denoiser(c["prediction_type"]), z, edges))
        for ours, row in zip(steps, recorded, strict=True):
            assert ours.tolist() == pytest.approx(row, rel=2e-4, abs=2e-4)
        z = steps[-1]


def test_consistent_grid_is_not_that_of_diffusers_0_21_4():
    case = RECORDED[0]
    *_, z = walk(denoiser("epsilon"), torch.linspace(-1.5, 1.5, 5), make_schedule(ScheduleParams(), 50).inversion)
    assert max(abs(a - b) for a, b in zip(z.tolist(), case["inversion"][-1], strict=True)) > 2e-3


@pytest.mark.parametrize("dtype, tolerance", ((torch.float64, 1e-12), (torch.float32, 5e-5)))
@pytest.mark.parametrize("spacing", ("leading", "trailing", "linspace"))
@pytest.mark.parametrize("steps", (1, 7, 50))
def test_there_and_back_with_the_same_noise_is_exact(steps, spacing, dtype, tolerance):
    s = make_schedule(ScheduleParams(), steps, spacing)
    z = first = latents().to(dtype)
    noises = [latents(seed).to(dtype) for seed in range(1, steps + 1)]
    for (start, end), eps in zip(s.inversion, noises, strict=True):
        z = ddim_step(z, eps, start.alpha, end.alpha)
    assert steps == 1 or (z - first).norm() / first.norm() > 0.3
    for (start, end), eps in zip(s.sampling, reversed(noises), strict=True):
        z = ddim_step(z, eps, start.alpha, end.alpha)
    assert ((z - first).norm() / first.norm()).item() <= tolerance


@pytest.mark.parametrize("alpha", (1.0, 0.99915, 0.5, 0.00466))
def test_predictions_rebuild_the_latents(alpha):
    x0, eps = latents(1).double(), latents(2).double()
    z = renoise(x0, eps, alpha)
    v = alpha**0.5 * eps - (1 - alpha) ** 0.5 * x0
    for output, prediction in ((eps, "epsilon"), (v, "v_prediction")):
        for ours, true in zip(from_prediction(z, output, alpha, prediction), (x0, eps), strict=True):
            assert torch.allclose(ours, true, atol=1e-9)
    assert torch.allclose(clean(z, eps, alpha), x0, atol=1e-9)


def test_v_prediction_survives_a_level_of_pure_noise():
    a = make_schedule(ScheduleParams(zero_terminal_snr=True), 5, "trailing").sampling[0][0]
    assert a == Level(999, 0.0)
    x0, eps = from_prediction(latents(1), latents(2), a.alpha, "v_prediction")
    assert torch.equal(x0, -latents(2)) and torch.equal(eps, latents(1))


def test_walk_gives_every_step_and_calls_the_network_once_each():
    seen, s = [], make_schedule(ScheduleParams(), 5)

    def denoise(z: Tensor, level: Level):
        seen.append(level)
        return z, torch.zeros_like(z)

    assert len(list(walk(denoise, latents(), s.inversion))) == 5
    assert seen == [start for start, _ in s.inversion]


def test_unknown_prediction():
    with pytest.raises(ValueError, match="'sample' is not one of epsilon, v_prediction"):
        from_prediction(latents(), latents(), 0.5, "sample")
