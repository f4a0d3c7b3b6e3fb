"""The runner on a Ray cluster of this machine."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from sage.bench.configs import CONFIGURATIONS
from sage.bench.files import BenchmarkError
from sage.bench.runner import read_manifests, run
from sage.bench.scoring import DONE, FAILED
from sage.commands.main import main
from sage.errors import SettingsError
from tests.bench.workers import broken, make, wrong
from tests.bench.world import StubEngine, make_benchmark
from tests.models import tiny

ray = pytest.importorskip("ray")
pytest.importorskip("ray.data")
from sage.bench.cluster import RayPool  # noqa: E402

TOKEN = "for these tests alone, " * 2
ROOT = Path(__file__).resolve().parents[2]
BOTH = CONFIGURATIONS["plain"], CONFIGURATIONS["guidance"]


@pytest.fixture(scope="module")
def cluster():
    """Two CPUs, with authentication."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN", TOKEN)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
                 object_store_memory=100 * 2**20, runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}})
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    return make_benchmark(tmp_path_factory.mktemp("benchmark"), 7)


def plain_values(lines):
    return [{k: v for k, v in line.as_dict().items() if k != "seconds"} for line in lines]


def results(out):
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*.png"))}


def test_a_cluster_makes_what_one_process_makes(cluster, benchmark, tmp_path):
    alone = run(benchmark, BOTH, StubEngine(), tmp_path / "alone", batch=2)
    (tmp_path / "notes").mkdir()
    seen = []
    pool = RayPool(partial(make, tmp_path / "notes"), BOTH, workers=2)
    lines = run(benchmark, BOTH, pool, tmp_path / "out", batch=2, progress=lambda *a: seen.append(a))
    assert plain_values(lines) == plain_values(alone)
    assert results(tmp_path / "out") == results(tmp_path / "alone")
    assert seen == [("bench", i, 14) for i in range(15)]
    assert len(list((tmp_path / "notes").glob("busy-*"))) == 2

    # The folder is the same as one process makes: either goes on where the other was broken off.
    (tmp_path / "out" / lines[3].picture).unlink()
    (tmp_path / "alone" / lines[3].picture).unlink()
    assert plain_values(run(benchmark, BOTH, StubEngine(), tmp_path / "out", batch=2)) == plain_values(alone)
    assert plain_values(run(benchmark, BOTH, pool, tmp_path / "alone", batch=2)) == plain_values(alone)
    assert results(tmp_path / "out") == results(tmp_path / "alone")
    assert len((tmp_path / "alone/manifest.jsonl").read_text().splitlines()) == 15


def test_what_a_killed_worker_had_is_done_again(cluster, benchmark, tmp_path):
    alone = run(benchmark, BOTH, StubEngine(), tmp_path / "alone", batch=2)
    lines = run(benchmark, BOTH, RayPool(partial(make, tmp_path, 1), BOTH, workers=2), tmp_path / "out", batch=2)
    assert (tmp_path / "death-0").exists() and len(list(tmp_path.glob("worker-*"))) == 4  # one asked, two, one anew
    assert plain_values(lines) == plain_values(alone) and results(tmp_path / "out") == results(tmp_path / "alone")


def test_a_batch_that_ends_every_worker_fails_alone(cluster, benchmark, tmp_path):
    deadly = benchmark.cases[2].name
    lines = run(benchmark, BOTH[:1], RayPool(partial(make, tmp_path, 99, deadly), BOTH[:1], workers=2),
                tmp_path / "out", batch=2)
    assert [line.status for line in lines] == [DONE, DONE, FAILED, FAILED, DONE, DONE, DONE]
    assert lines[2].reason == "the worker was lost, 3 times" and (tmp_path / "death-2").exists()
    assert not (tmp_path / "death-3").exists()
    again = run(benchmark, BOTH[:1], StubEngine(), tmp_path / "out", batch=2)
    assert {line.status for line in again} == {DONE} and len(read_manifests(tmp_path / "out")) == 7


def test_workers_that_differ_are_refused(cluster, benchmark, tmp_path):
    with pytest.raises(BenchmarkError, match="the workers differ in stub"):
        run(benchmark, BOTH, RayPool(partial(make, tmp_path, version=None), BOTH, workers=2), tmp_path / "out")


def test_errors_come_back_as_they_are(cluster, benchmark, tmp_path):
    with pytest.raises(SettingsError, match="there is no such model"):
        RayPool(broken, BOTH)
    with pytest.raises(RuntimeError, match="in a worker: ZeroDivisionError"):
        run(benchmark, BOTH, RayPool(wrong, BOTH), tmp_path)
    with pytest.raises(SettingsError, match="3 workers with 1 CPUs each are more than the cluster's 2 CPUs"):
        RayPool(broken, BOTH, workers=3)
    with pytest.raises(SettingsError, match="and a GPU each"):
        RayPool(broken, BOTH, gpu=True)


def test_the_command_gives_the_same_tables_and_page(cluster, tmp_path, capsys):
    """With a real, small model."""
    tiny.make(tmp_path / "tiny")
    benchmark = make_benchmark(tmp_path / "benchmark", 4)
    command = ["bench", "piebench", "--data", str(benchmark.folder), "--model", str(tmp_path / "tiny"), "--batch", "2",
               "--config", "source", "plain:steps=2", "--threads", "1", "--device", "cpu", "--quiet"]
    assert main([*command, "--out", str(tmp_path / "one")]) == 0
    assert main([*command, "--out", str(tmp_path / "two"), "--engine", "ray", "--workers", "2"]) == 0
    for name in ("tables.json", "report.html", "run.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert "- machine: a cluster, 2 times: " in (tmp_path / "two/tables.md").read_text()
    assert main([*command, "--out", str(tmp_path / "two"), "--engine", "ray", "--device", "cuda:1"]) == 2
    assert "with --engine ray it is cpu or cuda" in capsys.readouterr().err


SCRIPT = """
import sys, time
from functools import partial
from pathlib import Path
from sage.bench.cluster import RayPool, connect
from sage.bench.configs import CONFIGURATIONS
from sage.bench.cases import read_benchmark
from sage.bench.runner import run
from tests.bench.workers import make
connect()
both = [CONFIGURATIONS["plain"], CONFIGURATIONS["guidance"]]
pool = RayPool(partial(make, Path(sys.argv[3]), pause=0.5), both)
run(read_benchmark(sys.argv[1]), both, pool, sys.argv[2], batch=2)
"""


@pytest.mark.slow
def test_the_process_that_leads_is_killed(benchmark, tmp_path):
    """Its cluster, which it started itself, ends with it."""
    alone = run(benchmark, BOTH, StubEngine(), tmp_path / "alone", batch=2)
    out, manifest = tmp_path / "out", tmp_path / "out/manifest.jsonl"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_AUTH_TOKEN": TOKEN, "RAY_ADDRESS": "local"}
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, benchmark.folder, out, tmp_path], cwd=ROOT,
                               env=environment)
    deadline = time.monotonic() + 600
    while not (manifest.exists() and manifest.stat().st_size) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 0 < len(read_manifests(out)) < 14
    assert plain_values(run(benchmark, BOTH, StubEngine(), out, batch=2)) == plain_values(alone)
    assert results(out) == results(tmp_path / "alone")
