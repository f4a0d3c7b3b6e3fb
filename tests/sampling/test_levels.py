"""Noise levels and grids against known values and diffusers' schedulers."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler

from sage.errors import SettingsError
from sage.sampling.levels import (
    DiffusionSchedule,
    Level,
    ScheduleParams,
    alphas_cumprod,
    downwards,
    timesteps,
    upwards,
)

EVERY_N = (*range(1, 61), 64, 75, 77, 99, 100, 123, 128, 200, 250, 333, 334, 499, 500)


def theirs(**options) -> DDIMScheduler:
    return DDIMScheduler(**dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
                                set_alpha_to_one=False, steps_offset=1) | options)


def test_alphas_of_stable_diffusion():
    a = alphas_cumprod(ScheduleParams())
    assert a.dtype == torch.float64 and a.shape == (1000,)
    known = {0: 0.99915, 1: 0.998296, 20: 0.981314, 249: 0.675432, 499: 0.27767, 749: 0.056623, 961: 0.007282,
             981: 0.005776, 999: 0.00466}
    assert {t: a[t].item() for t in known} == pytest.approx(known, abs=5e-7)
    # One factor after another, in another order of arithmetic.
    roots = np.sqrt(0.00085) + (np.sqrt(0.012) - np.sqrt(0.00085)) * np.arange(1000) / 999
    assert a.numpy() == pytest.approx(np.exp(np.cumsum(np.log1p(-roots**2))), rel=1e-12)


@pytest.mark.parametrize("schedule", ("linear", "scaled_linear"))
@pytest.mark.parametrize("length", (1000, 77))
def test_alphas_are_those_of_diffusers(schedule, length):
    ours = alphas_cumprod(ScheduleParams(train_steps=length, beta_start=0.0001, beta_end=0.02, beta_schedule=schedule))
    oracle = theirs(num_train_timesteps=length, beta_start=0.0001, beta_end=0.02, beta_schedule=schedule)
    assert ours.numpy() == pytest.approx(oracle.alphas_cumprod.numpy(), rel=2e-4)  # theirs is float32
    assert (ours.diff() < 0).all()


def test_zero_terminal_snr():
    ours = alphas_cumprod(ScheduleParams(zero_terminal_snr=True))
    oracle = theirs(rescale_betas_zero_snr=True).alphas_cumprod
    assert ours[-1] == 0
    assert ours[0] == pytest.approx(alphas_cumprod(ScheduleParams())[0].item(), rel=1e-12)
    assert ours.numpy() == pytest.approx(oracle.numpy(), rel=1e-3, abs=1e-6)
    assert abs(ours - alphas_cumprod(ScheduleParams())).max() > 1e-3


@pytest.mark.parametrize("offset", (0, 1))
@pytest.mark.parametrize("spacing", ("leading", "trailing", "linspace"))
def test_timesteps_are_those_of_diffusers(spacing, offset):
    oracle, odd = theirs(timestep_spacing=spacing, steps_offset=offset), []
    for n in EVERY_N:
        oracle.set_timesteps(n)
        ours, grid = timesteps(ScheduleParams(steps_offset=offset), n, spacing), oracle.timesteps.tolist()[::-1]
        if len(grid) != n:  # np.arange may end one step too late: a step from nowhere, labelled -1
            assert grid[0] == -1
            grid, odd = grid[1:], [*odd, n]
        assert ours == grid, f"{n} steps"
        assert len(ours) == n and all(isinstance(t, int) for t in ours)
    assert len(odd) < 10


def test_the_grid_of_consistency_models_is_that_of_diffusers():
    schedule, original = DiffusionSchedule(), LCMScheduler()
    for steps in range(1, 51):
        original.set_timesteps(steps)
        levels = schedule.consistency(steps)
        assert [level.t for level in levels] == [0, *original.timesteps.tolist()[::-1]]
        assert [level.alpha for level in levels[1:]] == pytest.approx(
            [original.alphas_cumprod[t].item() for t in original.timesteps.flip(0)], rel=1e-12)
    for steps in (0, 51):
        with pytest.raises(SettingsError, match="1 to 50"):
            schedule.consistency(steps)


def test_timesteps_of_fifty_steps():
    p = ScheduleParams()
    assert timesteps(p, 50) == list(range(1, 1000, 20))
    assert timesteps(p, 50, "trailing") == list(range(19, 1000, 20))
    assert timesteps(p, 30)[-1] == 958
    assert timesteps(p, 1, "linspace") == [0]
    assert timesteps(p, 1000, "trailing") == list(range(1000))


@pytest.mark.parametrize("to_one", (False, True))
@pytest.mark.parametrize("spacing", ("leading", "trailing", "linspace"))
@pytest.mark.parametrize("steps", (1, 7, 50))
def test_consistent_grid_walks_the_same_levels_both_ways(steps, spacing, to_one):
    params = ScheduleParams(set_alpha_to_one=to_one)
    levels = DiffusionSchedule(params).levels(steps, spacing)
    up, down = upwards(levels), downwards(levels)
    assert len(levels) == steps + 1 and len(up) == len(down) == steps
    assert down == tuple((b, a) for a, b in reversed(up))
    start, table = levels[0], alphas_cumprod(params).tolist()
    assert start.t == 0 and start == Level.of(0, 1.0 if to_one or spacing == "linspace" else table[0])
    assert all(level.signal == table[level.t]**0.5 and level.noise == (1 - table[level.t])**0.5 for level in levels[1:])
    assert [level.t for level in levels[1:]] == timesteps(params, steps, spacing)
    assert all(a.signal > b.signal for a, b in up)  # no step of no length


def test_released_grid_of_fifty_steps():
    """The table of methods/sage.md: labels 0, 1, 21 ... 961 climb to 20, 21, 41 ... 981."""
    a = theirs().alphas_cumprod.tolist()  # its very table, in float32
    up, down = DiffusionSchedule().inferred(50)
    assert [start.t for start, _ in up] == [0, *range(1, 962, 20)]
    assert [end.t for _, end in up] == [20, *range(21, 982, 20)]
    assert [start.t for start, _ in down] == list(range(981, 0, -20))
    assert down[-1][1] == Level.of(0, a[0])
    assert all(level == Level.of(level.t, a[level.t]) for edge in (*up, *down) for level in edge)


def test_released_grid_with_trailing_steps():
    up, _ = DiffusionSchedule().inferred(10, "trailing")
    assert [(start.t, end.t) for start, end in up] == [(0, 100), *((t, t + 100) for t in range(99, 900, 100))]


@pytest.mark.parametrize("call, said", (
    (lambda: timesteps(ScheduleParams(), 0), "steps is 0: must be between 1 and 1000"),
    (lambda: timesteps(ScheduleParams(), 1001), "steps is 1001"),
    (lambda: timesteps(ScheduleParams(), 1000), "pass timestep 999"),
    (lambda: timesteps(ScheduleParams(), 10, "karras"), "leading, trailing, linspace"),
    (lambda: DiffusionSchedule().levels(10, "other"), "leading, trailing, linspace"),
    (lambda: DiffusionSchedule().inferred(10, "other"), "leading, trailing, linspace"),
    (lambda: ScheduleParams(beta_schedule="cosine"), "scaled_linear or linear")))
def test_what_cannot_be_is_refused_in_one_line(call, said):
    with pytest.raises(SettingsError, match=said) as caught:
        call()
    assert "\n" not in str(caught.value)
