"""What the benchmark of FLUX's blocks compares is the same on both sides, at any width."""

import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.flux_block import WAYS, blocks, counts, edits, fitted, measure, passes, report
from sage.methods.eedit import EEdit
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


def test_passes_of_an_edit_are_counted():
    """28 steps each way; the published ones are those that the released code has: 19 whole and 19 between."""
    found = {name: counts(EEdit().defaults(None).but(cache="eedit").but(**changes)) for name, changes in WAYS.items()}
    assert found == {"dense": {"whole": 56, "between": 0}, "skipping alone": {"whole": 38, "between": 0},
                     "holding alone": {"whole": 20, "between": 36}, "both": {"whole": 14, "between": 24},
                     "both, as published": {"whole": 19, "between": 19}}


def test_an_edit_is_put_together_from_its_blocks(monkeypatch):
    took = {("double", "whole"): 4.0, ("single", "whole"): 2.0, ("double", "between"): 1.0, ("single", "between"): 0.5}
    monkeypatch.setattr("benchmarks.flux_block.seconds", lambda run, device: run().item())
    runs = {key: lambda value=value: torch.tensor(value) for key, value in took.items()}
    found = edits(runs, flux.PARAMS, "cpu", 3)  # 2 double and 3 single blocks
    assert found["dense"]["seconds"] == 56 * (2 * 4 + 3 * 2) and found["dense"]["times fewer"] == 1
    assert found["both"]["seconds"] == 14 * (2 * 4 + 3 * 2) + 24 * (2 * 1 + 3 * 0.5)
    text = report({"tokens": 4, "text": 2, "dtype": "float32", "device": "cpu", "edit": found,
                   **dict.fromkeys(("double", "single"), {"ratio": 1.0, "least": 0.9, "most": 1.1, "apart": 1e-7})})
    assert f"| both | 14 | 24 | 280 | {56 / 20:.2f} | 2.4 |" in text and "| 1.000 | 0.900 to 1.100 |" in text


def test_every_round_has_passes_of_both_kinds(monkeypatch):
    took = {key: set() for key in itertools.product(("double", "single"), ("whole", "between"))}

    def operations(run, device):
        with FlopCounterMode(display=False) as counter:
            run()
        took[next(key for key in runs if runs[key] is run)].add(counter.get_total_flops())
        return 1.0

    monkeypatch.setattr("benchmarks.flux_block.seconds", operations)
    runs = passes(flux.PARAMS, 16, 5, "cpu", torch.float32)
    edits(runs, flux.PARAMS, "cpu", 4)
    assert all(len(counts) == 1 for counts in took.values())
    assert all(min(took[kind, "between"]) < 0.3 * min(took[kind, "whole"]) for kind in ("double", "single"))


def test_a_pass_between_takes_attention_from_the_whole_one_before():
    torch.manual_seed(0)
    runs = passes(flux.PARAMS, 16, 5, "cpu", torch.float32)
    with torch.no_grad():
        whole = {kind: runs[kind, "whole"]() for kind in ("double", "single")}
        for kind in whole:  # of the same tokens, so that whatever is taken over is what would be computed
            assert torch.allclose(runs[kind, "between"](), whole[kind], atol=1e-5)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        counted = []
        for how in ("whole", "between"):
            before = counter.get_total_flops()
            [runs[kind, how]() for kind in ("double", "single")]
            counted.append(counter.get_total_flops() - before)
    assert counted[1] < 0.3 * counted[0]


def test_rounds_are_left_out_until_it_fits():
    assert [fitted(9, 10, once, 60) for once in (1, 60, 200, 900)] == [9, 9, 2, 1]
