"""Edits of places: the truth is best, the untouched picture is where it was, and plain pixels lie between."""

import numpy as np
import pytest

from sage.bench.metrics import METRICS, Extractors
from sage.bench.places import FIRST_SEED, KINDS, TUNING_SEED, places
from sage.bench.region_metrics import correlation, place_error
from sage.bench.scoring import score

SIDE = 64
READS = {"source", "target", "mask", "moves"}


@pytest.fixture(scope="module")
def benchmark():
    return places(1, SIDE)


@pytest.mark.parametrize("kind", KINDS)
def test_the_truth_is_best_and_plain_pixels_lie_between(benchmark, kind):
    case = benchmark.ready(benchmark.cases[KINDS.index(kind)])
    before, after = benchmark.source(case), benchmark.truth(case)
    truth, source, naive = (score(case, before, after, picture, Extractors())
                            for picture in (after, before, case.by_pixels(before)))
    assert truth["inside_psnr"] > 50 and truth["outside_psnr"] > 50
    assert source["inside_psnr"] < 30 and source["outside_psnr"] > naive["outside_psnr"] - 1
    if kind in ("move", "swap"):
        assert truth["place_error"] == 0 and naive["place_error"] < 0.05 < source["place_error"]
        assert truth["ghost"] < 1e-6 and source["ghost"] > naive["ghost"]
    if kind != "remove":
        assert truth["iou"] == 1
    if kind in ("move", "remove"):
        assert truth["revealed_psnr"] > naive["revealed_psnr"] > source["revealed_psnr"]
    assert set(truth) <= {metric.key for metric in METRICS}


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_method_is_given(benchmark, kind):
    """Moves for one that reads them; any other edits the plain pixels, and what may not change stays."""
    case = benchmark.ready(benchmark.cases[KINDS.index(kind)])
    source = benchmark.source(case)
    asked, other = case.asked(source, READS), case.asked(source, READS - {"moves"})
    assert len(asked.request.moves) == {"move": 1, "scale": 1, "swap": 2}.get(kind, 0)
    assert (asked.picture is source) is (asked.around is None) is bool(asked.request.moves)
    assert other.picture.tobytes() == case.by_pixels(source).tobytes() and other.around is source
    assert np.array_equal(np.asarray(other.request.mask) > 0, case.where(source.size)) and other.mask
    assert other.request.source == other.request.target == case.target
    assert case.asked(source, set()).request.mask is None
    wordless = case.asked(source, READS, worded=False).request
    assert wordless.target == (case.source if wordless.moves else case.target)


@pytest.mark.slow
def test_cases_are_known_by_their_scenes():
    reported, tuning = places(2, SIDE), places(2, SIDE, TUNING_SEED)
    assert [case.name for case in reported.cases[:6]] == [*(f"{kind}-000" for kind in KINDS), "move-001"]
    assert reported.cases[5].seed == FIRST_SEED + 1 and reported == places(2, SIDE)
    hashes = {b.mapping_hash() for b in (reported, tuning, places(2, 32), places(1, SIDE))}
    assert len(hashes) == 4 and reported.mapping_hash() in hashes


def test_a_thing_is_found_where_it_has_gone():
    rng = np.random.default_rng(0)
    truth, mask = rng.random((SIDE, SIDE, 3)), np.zeros((SIDE, SIDE), bool)
    mask[20:35, 20:30] = True
    assert place_error(truth, truth, mask) == 0
    assert place_error(np.roll(truth, (3, -4), (0, 1)), truth, mask) == pytest.approx(5 / SIDE)
    assert correlation(truth, 2 * truth + 1) == pytest.approx(1) and correlation(truth, np.ones_like(truth)) == 0
