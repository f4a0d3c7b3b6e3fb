import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sage import pictures
from sage.bench.configs import CONFIGURATIONS
from sage.bench.files import BenchmarkError
from sage.bench.metrics import Extractors
from sage.bench.runner import Here, read_manifests, run
from sage.bench.scoring import DONE, FAILED, score_folder
from sage.errors import SettingsError
from tests.bench.world import StubEngine, make_benchmark

PLAIN, GUIDANCE = CONFIGURATIONS["plain"], CONFIGURATIONS["guidance"]
BOTH = (PLAIN, GUIDANCE)
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    return make_benchmark(tmp_path_factory.mktemp("benchmark"))


def plain_values(lines):
    """Everything but the time."""
    return [{k: v for k, v in line.as_dict().items() if k != "seconds"} for line in lines]


def results(out):
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*.png"))}


@pytest.fixture(scope="module")
def unbroken(benchmark, tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken")
    return plain_values(run(benchmark, BOTH, StubEngine(), out, batch=2)), results(out)


def test_a_run_scores_and_keeps_everything(benchmark, unbroken, tmp_path):
    seen = []
    lines = run(benchmark, BOTH, StubEngine(), tmp_path, batch=2, progress=lambda *a: seen.append(a))
    assert plain_values(lines) == unbroken[0] and results(tmp_path) == unbroken[1]
    assert [(line.configuration, line.case) for line in lines] == [
        (c.name, case.name) for c in BOTH for case in benchmark.cases]
    assert all(line.status == DONE and line.notes == ("a note",) for line in lines)
    assert {"inside_psnr", "outside_ssim", "background_mse"} <= set(lines[0].scores)
    assert seen == [("bench", i, 10) for i in range(11)]
    written = [json.loads(text) for text in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    assert len(written) == 10 and {w["configuration"] for w in written} == {"plain", "guidance"}
    settings = pictures.read_settings(tmp_path / lines[0].picture)
    assert settings["case"] == lines[0].case and settings["picture"]["sha256"] == benchmark.source_hash(
        benchmark.cases[0])


class Killed(BaseException):
    pass


@pytest.mark.parametrize("after", range(0, 36, 5))
def test_broken_off_anywhere_and_started_again(benchmark, unbroken, tmp_path, monkeypatch, after):
    """Every write of a picture, rename and line is a moment at which a run may end."""
    left = after

    def breaking(function):
        def wrapped(*args, **kwargs):
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return function(*args, **kwargs)
        return wrapped

    with monkeypatch.context() as patch:
        for name in ("replace", "write"):
            patch.setattr(os, name, breaking(getattr(os, name)))
        patch.setattr(Image.Image, "save", breaking(Image.Image.save))
        try:
            run(benchmark, BOTH, StubEngine(), tmp_path, batch=2)
        except Killed:
            pass
    before = results(tmp_path)
    stamps = {p: (tmp_path / p).stat().st_mtime_ns for p in before}
    had = {key for key, line in read_manifests(tmp_path).items() if line.status == DONE}
    assert plain_values(run(benchmark, BOTH, StubEngine(), tmp_path, batch=2)) == unbroken[0]
    assert results(tmp_path) == unbroken[1]
    for line in read_manifests(tmp_path).values():
        if (line.configuration, line.case) in had:
            assert (tmp_path / line.picture).stat().st_mtime_ns == stamps[line.picture]


def test_nothing_is_done_twice(benchmark, tmp_path):
    run(benchmark, [PLAIN], StubEngine(), tmp_path, batch=2)
    text = (tmp_path / "manifest.jsonl").read_bytes()
    asked = []
    run(benchmark, [PLAIN], StubEngine(before=asked.append), tmp_path, batch=2)
    assert not asked and (tmp_path / "manifest.jsonl").read_bytes() == text
    run(benchmark, BOTH, StubEngine(before=asked.append), tmp_path, batch=2)
    assert len(asked) == 3


def counting(version):
    """Networks that say what they saw."""
    return Extractors(image=lambda x: np.array([1.0, x.mean()]), text=lambda t: np.ones(2), similarity="prompt",
                      versions={"stub": version})


@pytest.mark.parametrize("again", [(1, 1), (1, 2)])
def test_other_networks_judge_what_is_there_without_making_it_again(benchmark, tmp_path, again):
    asked = []
    engine = StubEngine(before=asked.append, fails=["000000000003"])
    reconstruct = CONFIGURATIONS["reconstruct"]
    for shard in ((1, 2), (2, 2)):
        bare = run(benchmark, (PLAIN, reconstruct), engine, tmp_path, batch=2, shard=shard)
    made, before = len(asked), results(tmp_path)
    seen = []
    lines = run(benchmark, (PLAIN, reconstruct), engine, tmp_path, batch=2, shard=again, extractors=counting("1"),
                progress=lambda *a: seen.append(a[1:]))
    failed = [line for line in lines if line.status == FAILED]
    assert results(tmp_path) == before and len(asked) - made == len(failed) == (2 if again == (1, 1) else 0)
    assert len(seen) == 1 + len(lines)
    whole = run(benchmark, (PLAIN, reconstruct), StubEngine(fails=["000000000003"]), tmp_path / "new", batch=2,
                shard=again, extractors=counting("1"))
    assert plain_values([replace(line, anew=0) for line in lines]) == plain_values(whole)
    assert "prompt_whole" in lines[0].scores
    found = read_manifests(tmp_path)
    assert all(found[line.configuration, line.case].scores == line.scores for line in lines)

    # Judged already, judged by a newer version, and no networks at hand
    count = len(asked)
    text = {p: p.read_bytes() for p in tmp_path.glob("*.jsonl")}
    run(benchmark, (PLAIN,), engine, tmp_path, batch=2, shard=(1, 2), extractors=counting("1"))
    assert text == {p: p.read_bytes() for p in tmp_path.glob("*.jsonl")} and bare
    newer = run(benchmark, (PLAIN,), engine, tmp_path, batch=2, shard=(1, 2), extractors=counting("2"))
    assert {line.judges for line in newer} == {counting("2").identity()} and len(asked) == count
    assert plain_values(run(benchmark, (PLAIN,), engine, tmp_path, batch=2, shard=(1, 2))) == plain_values(newer)


def test_a_line_cut_short_is_cut_off(benchmark, unbroken, tmp_path):
    run(benchmark, BOTH, StubEngine(), tmp_path, batch=2)
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_bytes(manifest.read_bytes()[:-25])
    assert plain_values(run(benchmark, BOTH, StubEngine(), tmp_path, batch=2)) == unbroken[0]
    assert all(json.loads(line) for line in manifest.read_text().splitlines())


def test_a_lost_picture_is_made_again(benchmark, unbroken, tmp_path):
    lines = run(benchmark, BOTH, StubEngine(), tmp_path, batch=2)
    (tmp_path / lines[3].picture).unlink()
    run(benchmark, BOTH, StubEngine(), tmp_path, batch=2)
    assert results(tmp_path) == unbroken[1]


def test_shards_together_are_the_whole(benchmark, unbroken, tmp_path):
    first = run(benchmark, BOTH, StubEngine(), tmp_path, batch=2, shard=(1, 2))
    second = run(benchmark, BOTH, StubEngine(), tmp_path, batch=2, shard=(2, 2))
    assert (len(first), len(second)) == (6, 4)
    assert plain_values(run(benchmark, BOTH, StubEngine(), tmp_path, batch=2)) == unbroken[0]
    assert results(tmp_path) == unbroken[1]
    assert not (tmp_path / "manifest.jsonl").read_bytes()


def test_a_failure_is_recorded_and_stops_nothing(benchmark, tmp_path):
    name = benchmark.cases[1].name
    lines = run(benchmark, [PLAIN], StubEngine(fails=[name]), tmp_path, batch=2)
    assert [line.status for line in lines] == [DONE, FAILED, DONE, DONE, DONE]
    assert lines[1].reason == "it is too hard" and not lines[1].scores
    asked = []
    again = run(benchmark, [PLAIN], StubEngine(before=asked.append), tmp_path, batch=2)
    assert [line.status for line in again] == [DONE] * 5 and len(asked) == 1


def test_a_source_that_cannot_be_read_is_a_failure(tmp_path):
    benchmark = make_benchmark(tmp_path / "benchmark", 3)
    (tmp_path / "benchmark/annotation_images" / benchmark.cases[1].picture).write_bytes(b"nothing")
    lines = run(benchmark, [PLAIN], StubEngine(), tmp_path / "out", batch=3)
    assert [line.status for line in lines] == [DONE, FAILED, DONE] and "no picture" in lines[1].reason


class Twice(Here):
    """A pool whose workers come late, in the wrong order and with what others had sent already."""

    def results(self, works):
        found = [result for work in works for result in super(Twice, self).results([work])]
        yield from found[3:]
        yield from found[::-1]


def test_a_pool_may_send_in_any_order_and_twice(benchmark, unbroken, tmp_path):
    seen = []
    lines = run(benchmark, BOTH, Twice(StubEngine(), Extractors()), tmp_path, batch=2,
                progress=lambda *a: seen.append(a[1]))
    assert plain_values(lines) == unbroken[0] and results(tmp_path) == unbroken[1] and seen == list(range(11))
    assert len((tmp_path / "manifest.jsonl").read_text().splitlines()) == 10


def test_another_run_in_the_same_folder_is_refused(benchmark, tmp_path):
    run(benchmark, [PLAIN], StubEngine(), tmp_path, batch=2)
    with pytest.raises(BenchmarkError, match="holds another run .batch differ"):
        run(benchmark, [PLAIN], StubEngine(), tmp_path, batch=3)
    with pytest.raises(BenchmarkError, match=r"\(engine stub differ"):
        run(benchmark, [PLAIN], StubEngine(version=2), tmp_path, batch=2)
    other = make_benchmark(tmp_path / "other", 2)
    with pytest.raises(BenchmarkError, match="benchmark, cases differ"):
        run(other, [PLAIN], StubEngine(), tmp_path, batch=2)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(BenchmarkError, match="damaged"):
        run(benchmark, [PLAIN], StubEngine(), tmp_path, batch=2)


def test_two_processes_do_not_write_one_manifest(benchmark, tmp_path):
    def intrude(cases):
        with pytest.raises(BenchmarkError, match="another process"):
            run(benchmark, [PLAIN], StubEngine(), tmp_path, batch=5)

    run(benchmark, [PLAIN], StubEngine(before=intrude), tmp_path, batch=5)


@pytest.mark.parametrize("options", [{"batch": 0}, {"shard": (0, 2)}, {"shard": (3, 2)}])
def test_senseless_arguments(benchmark, tmp_path, options):
    with pytest.raises(SettingsError):
        run(benchmark, [PLAIN], StubEngine(), tmp_path, **options)


def test_the_same_configuration_twice_is_refused(benchmark, tmp_path):
    with pytest.raises(SettingsError, match="once"):
        run(benchmark, [PLAIN, PLAIN], StubEngine(), tmp_path)


def test_a_damaged_manifest_is_read_as_far_as_it_goes(tmp_path):
    good = {"configuration": "a", "case": "b", "kind": 1, "status": "done", "scores": {"inside_psnr": 3.0}}
    bad = [{**good, "scores": {"x": "1"}}, {**good, "kind": "1"}, {**good, "extra": 1}, {**good, "case": None}, [], 3]
    text = "\n".join([*map(json.dumps, bad), "{", "", json.dumps(good)])
    (tmp_path / "manifest.jsonl").write_bytes(text.encode() + b"\n\xff\xfe\n")
    [line] = read_manifests(tmp_path).values()
    assert line.scores == {"inside_psnr": 3.0}


SCRIPT = """
import sys, time
from sage.bench.configs import CONFIGURATIONS
from sage.bench.cases import read_benchmark
from sage.bench.runner import run
from tests.bench.world import StubEngine
engine = StubEngine(before=lambda cases: time.sleep(float(sys.argv[3])))
run(read_benchmark(sys.argv[1]), [CONFIGURATIONS["plain"], CONFIGURATIONS["guidance"]], engine, sys.argv[2], batch=2)
"""


def test_killed_with_kill_9(benchmark, unbroken, tmp_path):
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, benchmark.folder, tmp_path, "0.2"], cwd=ROOT)
    manifest, deadline = tmp_path / "manifest.jsonl", time.monotonic() + 60
    while not (manifest.exists() and manifest.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 0 < len(manifest.read_text().splitlines()) < 10
    assert plain_values(run(benchmark, BOTH, StubEngine(), tmp_path, batch=2)) == unbroken[0]
    assert results(tmp_path) == unbroken[1]


# ---- folders of anybody's results


def test_any_folder_can_be_scored(benchmark, tmp_path):
    lines = run(benchmark, [PLAIN], StubEngine(), tmp_path, batch=2)
    again = score_folder(benchmark, tmp_path / "plain", "plain", Extractors())
    assert [line.scores for line in again] == [line.scores for line in lines]

    strips = tmp_path / "strips"
    for case in benchmark.cases[:4]:
        strip = Image.new("RGB", (64, 32))
        strip.paste(Image.open(tmp_path / "plain/annotation_images" / case.picture), (32, 0))
        (strips / case.picture).parent.mkdir(parents=True)
        strip.save((strips / case.picture).with_suffix(".webp"), lossless=True)
    scored = score_folder(benchmark, strips, "theirs", Extractors())
    assert [line.scores for line in scored[:4]] == [line.scores for line in lines[:4]]
    assert scored[4].status == FAILED and "there is no 4_kind" in scored[4].reason


def test_a_folder_of_nothing_is_refused(benchmark, tmp_path):
    with pytest.raises(BenchmarkError, match="holds no result"):
        score_folder(benchmark, tmp_path, "empty", Extractors())
    with pytest.raises(BenchmarkError, match="no folder"):
        score_folder(benchmark, tmp_path / "missing", "missing", Extractors())
