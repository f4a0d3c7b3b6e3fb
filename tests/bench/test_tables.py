import json
import re

import numpy as np
import pytest

from sage.bench.metrics import METRICS
from sage.bench.scoring import DONE, FAILED, Line
from sage.bench.tables import Results, as_json, as_markdown, as_record, as_text, interval

PSNR, LPIPS = (next(m for m in METRICS if m.key == key) for key in ("inside_psnr", "inside_lpips"))


def lines(values, name="a", key="inside_psnr"):
    return [Line(name, str(i), i % 2, FAILED if v is None else DONE, scores={} if v is None else {key: v})
            for i, v in enumerate(values)]


def test_an_interval_covers_the_mean_as_often_as_it_says():
    rng, hits = np.random.default_rng(1), 0
    for _ in range(200):
        found = interval(rng.normal(3, 2, 60))
        hits += found.low <= 3 <= found.high
    assert 178 <= hits <= 199
    assert found.high - found.low == pytest.approx(2 * 1.96 * 2 / 60**0.5, rel=0.3)
    found = interval([i**1.5 for i in range(30)])  # the draws are always the same
    assert (found.low, found.high) == pytest.approx((45.38024168788569, 80.23987444628766), rel=1e-12)
    assert interval([]) is None and interval([2.0]).low == interval([2.0]).high == 2.0


def test_means_by_kind_leave_out_what_has_no_value():
    rows = lines([1.0, 5.0, 3.0, None]) + [Line("a", "9", 0, DONE, scores={"inside_psnr": None})]
    results = Results(rows)
    assert results.mean("a", "inside_psnr").mean == 3 and results.mean("a", "inside_psnr").count == 3
    assert results.mean("a", "inside_psnr", 0).mean == 2
    assert results.mean("a", "clip_whole") is None
    assert len(results.failed("a")) == len(results.failed("a", 1)) == 1 and not results.failed("a", 0)
    assert results.metrics == [PSNR]


def test_each_wording_has_a_table_beside_that_of_all():
    results = Results(lines([1.0, 5.0, 3.0, 7.0]))
    text = as_record("t", results, {}, {"full": {"0", "1"}, "short": {"2", "3"}})
    assert [part.splitlines()[0] for part in text.split("\n## ")[1:]] == ["full prompts", "short prompts", "mixed",
                                                                         "change object"]
    assert as_markdown(Results(lines([1.0, 5.0]))) in text.split("## short")[0].split("## full")[1]
    assert "prompts" not in as_record("t", results, {}, {"full": {"0", "1", "2", "3"}}) == as_record("t", results, {})


def test_comparisons_are_paired():
    rng = np.random.default_rng(0)
    hard = rng.normal(20, 8, 50)
    results = Results(lines(hard + 0.5) + lines(hard, "b"))
    c = results.compare("a", "b", PSNR)
    assert c.difference.mean == pytest.approx(0.5) and c.difference.low > 0.49 and c.wins == 1
    assert results.mean("a", "inside_psnr").low < results.mean("b", "inside_psnr").high  # unpaired, nothing is certain
    assert results.compare("b", "a", PSNR).difference.mean == pytest.approx(-0.5)
    assert c.difference.negated() == results.compare("b", "a", PSNR).difference


def test_winning_is_smaller_where_smaller_is_better_and_ties_are_shared():
    key = "inside_lpips"
    results = Results(lines([1.0, 2.0, 3.0, None], key=key) + lines([2.0, 2.0, 1.0, 1.0], "b", key))
    assert results.compare("a", "b", LPIPS).wins == pytest.approx(0.5)
    assert results.compare("a", "b", LPIPS).difference.count == 3
    assert Results(lines([None]) + lines([1.0], "b")).compare("a", "b", PSNR) is None


def test_the_same_lines_give_the_same_text():
    values = list(np.random.default_rng(2).normal(size=30))
    texts = {as_json(Results(lines(values) + lines(values[::-1], "b"))) for _ in range(2)}
    assert len(texts) == 1
    found = json.loads(texts.pop())
    assert [row["kind"] for row in found["table"]] == [None, None, "mixed", "mixed", "change object", "change object"]
    assert found["comparisons"][0]["difference"]["count"] == 30


def test_tables_are_in_the_units_of_the_papers():
    text = as_markdown(Results(lines([0.05, 0.05], key="inside_lpips")))
    assert text == "|  | LPIPS inside x 1000 |\n| --- | --- |\n| a | 50.00 [50.00, 50.00] |\n"


def test_a_table_for_a_terminal_has_a_row_for_each_figure_and_no_line_beyond_its_width():
    names = ["plain", "guidance:steps=3,guidance_scale=1.5", "recommended", "p2p"]
    both = [line for name in names for key in ("inside_psnr", "inside_lpips") for line in lines([1.0, 2.0], name, key)]
    merged: dict = {}
    for line in both:
        merged.setdefault((line.configuration, line.case), line).scores.update(line.scores)
    results = Results(merged.values())
    for width, blocks in ((200, 1), (80, 2), (20, 4)):
        text = as_text(results, width)
        assert text.count("PSNR inside") == blocks == text.count("\n\n") + 1
        assert width < 60 or max(map(len, text.splitlines())) <= width
        assert re.sub(r"\s", "", text).count("1.50[1.00,2.00]") == 4
    head = [line.split() for line in as_text(results, 200).splitlines()[:2]]
    assert head == [["guidance:", "steps=3,"], ["plain", "guidance_scale=1.5", "recommended", "p2p"]]
    assert as_text(Results([]), 80) == ""
