"""What is continued between two calls of the network is exact where it should be."""

import pytest
import torch

from sage.sampling.levels import DiffusionSchedule, FlowSchedule, upwards
from sage.sampling.skipping import Continued, evaluated
from sage.sampling.steps import ddim_step, from_output, renoise

Z = torch.randn(1, 4, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
EPS = torch.randn(2, 1, 4, 3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_the_steps_at_which_a_network_is_asked():
    assert evaluated(10, 1) == tuple(range(10))
    assert evaluated(10, 3) == (0, 3, 6, 9)
    assert evaluated(11, 3) == (0, 1, 4, 7, 10)  # the last, and every third before it
    assert evaluated(4, 100) == (0, 3) and evaluated(1, 5) == (0,) and evaluated(0, 5) == ()


def followed(edges, every, output, flow=False):
    continued, z, kind = Continued(flow), Z, "flow" if flow else "epsilon"
    for k, (here, there) in enumerate(edges):
        if k in evaluated(len(edges), every):
            seen = from_output(z, output(here), here, kind)
            continued.add(seen, here)
        else:
            seen = continued.at(z, here, there)
        z = renoise(seen, there)
    return z


def test_held_constant_the_steps_are_one_coarse_step_of_ddim():
    edges = upwards(DiffusionSchedule().levels(10, "leading", (8, 8)))
    many = followed(edges, 100, lambda level: EPS[0])
    one = ddim_step(Z, EPS[0], edges[0][0], edges[-1][1])
    assert torch.allclose(many, one, rtol=1e-5)


@pytest.mark.parametrize("flow", (False, True))
def test_what_changes_evenly_is_continued_exactly(flow):
    """After two calls; the integral of a + b s over a step is its value in the middle times the step."""
    levels = (FlowSchedule() if flow else DiffusionSchedule()).levels(12, "leading", (8, 8))
    edges = upwards(levels)[:11]  # a flow's last level has no signal

    def place(level):
        return level.noise if flow else level.noise / level.signal

    continued = Continued(flow)
    for here, _ in edges[:2]:
        z = torch.zeros_like(Z)
        output = EPS[0] + place(here) * EPS[1]
        continued.add(from_output(z, output, here, "flow" if flow else "epsilon"), here)
    z = Z
    for here, there in edges[2:]:
        z = renoise(continued.at(z, here, there), there)
    first, last = edges[2][0], edges[-1][1]
    a, b = place(first), place(last)
    moved = (b - a) * EPS[0] + (b * b - a * a) / 2 * EPS[1]
    exact = Z + moved if flow else last.signal * (Z / first.signal + moved)
    assert torch.allclose(z, exact, rtol=1e-6, atol=1e-6)
