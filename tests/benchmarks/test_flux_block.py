"""What the benchmark of FLUX's blocks compares is the same on both sides, at any width."""

import pytest
import torch

from benchmarks.flux_block import blocks, measure
from tests.models import flux


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_both_sides_compute_the_same(dtype):
    torch.manual_seed(0)
    found = {name: measure(ours, theirs, "cpu", 3) for name, ours, theirs in blocks(flux.PARAMS, 16, 5, "cpu", dtype)}
    assert found.keys() == {"double", "single"}
    for one in found.values():
        assert one["apart"] < (1e-5 if dtype == torch.float32 else 0.03)
        assert 0 < one["least"] <= one["ratio"] <= one["most"]


def test_tokens_that_are_no_square_are_refused():
    with pytest.raises(SystemExit, match="no square"):
        next(blocks(flux.PARAMS, 15, 5, "cpu", torch.float32))
