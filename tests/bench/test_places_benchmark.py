"""Edits of places: the truth is best, the untouched picture is where it was, and a killed run goes on."""

import json

import numpy as np
import pytest
from PIL import Image

from sage.bench.places import (
    KINDS,
    METRICS,
    ROWS,
    WAYS,
    Way,
    correlation,
    figures,
    page,
    place_error,
    run_places,
    task,
)

SIDE = 64
BOUNDS = tuple(way for way in WAYS if way.makes in ("source", "pixels"))


@pytest.fixture(scope="module")
def tasks():
    return {kind: task(i, 0, SIDE) for i, kind in enumerate(KINDS)}


@pytest.mark.parametrize("kind", KINDS)
def test_the_truth_is_best_and_plain_pixels_lie_between(tasks, kind):
    case = tasks[kind]
    truth, source, naive = (figures(picture, case) for picture in (case.truth, case.source, case.naive))
    assert truth["changed_psnr"] > 50 and truth["kept_psnr"] > 50
    assert source["changed_psnr"] < 30 and source["kept_psnr"] > naive["kept_psnr"] - 1
    if kind in ("move", "swap"):
        assert truth["place_error"] == 0 and naive["place_error"] < 0.05 < source["place_error"]
        assert truth["ghost"] < 1e-6 and source["ghost"] > naive["ghost"]
    if kind != "remove":
        assert truth["iou"] == 1
    if kind in ("move", "remove"):
        assert truth["revealed_psnr"] > naive["revealed_psnr"] > source["revealed_psnr"]
    assert set(truth) <= {metric.key for metric in METRICS}


def test_a_thing_is_found_where_it_has_gone():
    rng = np.random.default_rng(0)
    truth, mask = rng.random((SIDE, SIDE, 3)), np.zeros((SIDE, SIDE), bool)
    mask[20:35, 20:30] = True
    assert place_error(truth, truth, mask) == 0
    assert place_error(np.roll(truth, (3, -4), (0, 1)), truth, mask) == pytest.approx(5 / SIDE)
    assert correlation(truth, 2 * truth + 1) == pytest.approx(1) and correlation(truth, np.ones_like(truth)) == 0


class Model:
    def fingerprint(self):
        return "f" * 64


def test_what_is_made_is_kept(tmp_path):
    seen = []
    path = run_places(Model(), tmp_path, 1, SIDE, lambda *step: seen.append(step), BOUNDS)
    rows = (tmp_path / ROWS).read_text()
    assert len(rows.splitlines()) == len(KINDS) * len(BOUNDS) == len(seen) - 1
    (tmp_path / ROWS).write_text(rows + '{"way": "cut sho')
    assert run_places(Model(), tmp_path, 1, SIDE, lambda *step: None, BOUNDS).read_text() == path.read_text()
    assert (tmp_path / ROWS).read_text().startswith(rows)
    text = path.read_text()
    assert "## Drag" in text and "## Removal" in text and "## Composition" in text and "| untouched |" in text
    assert len(list((tmp_path / "edits" / "plain-pixels").iterdir())) == len(KINDS)
    assert page([json.loads(line) for line in rows.splitlines()], BOUNDS) == text


def test_every_way_names_a_method_that_there_is():
    import sage
    for way in WAYS:
        if way.makes == "edit":
            sage.method(way.method).Settings().but(**way.settings)
    assert Way("a").kinds == KINDS and isinstance(task(0, 1, SIDE).naive, Image.Image)
