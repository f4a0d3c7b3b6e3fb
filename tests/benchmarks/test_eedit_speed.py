"""The benchmark of the cache: what a whole edit is put together from, and its table."""

from benchmarks import eedit
from benchmarks.eedit import BASELINE, CACHED, CELLS, DENSE, TINY, counted, evaluated_of, kinds_of, report
from sage import EditConfig

LONG = EditConfig(steps=50, guided_steps=41, cache="eedit", inv_skip=4, fresh_threshold=4)


def test_steps_of_each_kind_are_counted():
    assert counted(LONG.but(cache="none")) == {"guided": 41, "whole": 9}
    # Guided at 0, 4, ..., 40; whole at 44, 48, the last, and at 5, where replacement ends; the rest between.
    assert counted(LONG) == {"guided": 11, "between": 35, "whole": 4}
    assert counted(LONG.but(replace=None))["between"] == 36
    assert kinds_of(LONG)[:5] == ["guided", "between", "between", "between", "guided"]
    assert len(evaluated_of(LONG)) == 14 and len(evaluated_of(LONG.but(cache="none"))) == 50


def test_the_table_says_how_many_times_as_fast():
    def row(total: float) -> dict:
        return {"call": 1.0, "steps": {"guided": 3.0}, "counts": {"guided": 2}, "calls": 5, "total": total}

    rows = {(TINY.name, name): [row(total), row(total)]
            for name, total in ((BASELINE, 100.0), (DENSE, 50.0), (CACHED, 20.0))}
    text = report([TINY], rows)
    assert "2.00 times as fast" in text and "| 5.00 times as fast | 4 times |" in text
    rows[TINY.name, BASELINE] = [{"failed": "no memory"}]
    assert "no memory" in report([TINY], rows) and "times as fast" not in report([TINY], rows)


def test_how_long_it_takes_is_said_first_and_what_is_done_is_kept(tmp_path, monkeypatch, capsys):
    made = []

    def measured_apart(module, *given):
        made.append(given[1:3])
        return {"call": 1.0, "steps": {"guided": 3.0}, "counts": {"guided": 2}, "calls": 5, "total": 10.0 * len(made)}

    monkeypatch.setattr(eedit, "measured_apart", measured_apart)
    monkeypatch.setattr(eedit, "rate", lambda dtype: 1e9)
    for _ in range(2):
        eedit.main(["--tiny", "--run", str(tmp_path)])
    assert made == [(TINY.name, name) for name in (BASELINE, DENSE, CACHED)]
    out, err = capsys.readouterr()
    assert err.count("minutes for 3 measurements") == 1 and out.count("# What the cache saves") == 2
    (tmp_path / "rows.jsonl").write_text((tmp_path / "rows.jsonl").read_text().replace('"call": 1.0', '"failed": "x"'))
    eedit.main(["--tiny", "--run", str(tmp_path)])
    assert len(made) == 6  # what failed is tried again


def test_the_estimate_goes_by_the_work(monkeypatch):
    monkeypatch.setattr(eedit, "rate", lambda dtype: 1e9)
    dense, cached, released = (eedit.work(TINY, name) for name in (DENSE, CACHED, BASELINE))
    assert 0 < cached < 0.7 * dense and released < dense
    assert eedit.estimate([(TINY, DENSE)]) == eedit.LOADING + dense / (eedit.ATTAINED * 1e9)
    monkeypatch.setattr(eedit, "available", lambda: 0)
    assert eedit.estimate([(TINY, DENSE)]) == 0  # it will not be tried


def test_the_cells_are_those_that_are_promised():
    assert {"sd14-256-float32", "sd14-256-bfloat16", "sd14-512-float32", "sd14-512-bfloat16"} <= set(CELLS)
