import json
import os
import platform
import re
import subprocess
import sys
import warnings
from dataclasses import replace
from datetime import UTC, datetime
from importlib import metadata

import pytest

import sage
from sage.bench import engine as engines
from sage.bench.experiments import BOUNDS, EXPERIMENTS
from sage.commands.main import main
from sage.models.known import KNOWN, find_model
from tests.bench.world import StubEngine, make_benchmark
from tests.models import tiny


@pytest.fixture
def stubbed(monkeypatch):
    """No model is loaded; returns the engine that works instead."""
    engine = StubEngine()
    monkeypatch.setattr(sage, "load_model", lambda *args, **kwargs: None)
    monkeypatch.setattr(engines, "ModelEngine", lambda *given: engine)
    return engine


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    return make_benchmark(tmp_path_factory.mktemp("benchmark"), 4)


def bench(benchmark, out, *more):
    return main(["bench", "piebench", "--data", str(benchmark.folder), "--out", str(out), "--quiet", *more])


def test_a_run_from_the_command_line(stubbed, benchmark, tmp_path, capsys):
    assert bench(benchmark, tmp_path, "--config", "plain", "guidance:steps=3") == 0
    out = capsys.readouterr().out
    assert [row.split("|")[1].strip() for row in out.splitlines()] == ["", "---", "plain", "guidance:steps=3"]
    first = (tmp_path / "tables.json").read_bytes()
    assert bench(benchmark, tmp_path, "--config", "plain", "guidance:steps=3", "--json") == 0
    assert capsys.readouterr().out.encode() == first == (tmp_path / "tables.json").read_bytes()


def test_shards_end_with_the_tables_of_one_run(stubbed, benchmark, tmp_path):
    assert bench(benchmark, tmp_path / "one", "--config", "plain", "source", "--batch", "2") == 0
    for shard in ("2/2", "1/2"):
        assert bench(benchmark, tmp_path / "two", "--config", "plain", "source", "--batch", "2", "--shard", shard) == 0
    for name in ("tables.json", "report.html"):  # without dates, so that they can be compared
        one, two = ((tmp_path / folder / name).read_bytes() for folder in ("one", "two"))
        assert one == two


def test_the_record_says_what_when_where_and_how(stubbed, benchmark, tmp_path, capsys):
    assert bench(benchmark, tmp_path, "--config", "plain", "guidance:steps=3", "--quick", "--threads", "1") == 0
    text = (tmp_path / "tables.md").read_text()
    facts = dict(re.findall(r"^- (.*?): (.*)$", text, re.MULTILINE))
    assert facts["date"] == datetime.now(UTC).date().isoformat()
    assert facts["machine"].endswith(f"{os.cpu_count()} cores, 1 thread") and platform.node() not in text
    assert facts["versions"].startswith(f"sage {sage.__version__}, Python {platform.python_version()}, torch "
                                        f"{metadata.version('torch')}, transformers ")
    assert facts["cases"] == "4" and facts["command"] == (
        "sage bench piebench --quick --config plain guidance:steps=3 --model sd-1.4 --batch 1 --threads 1")
    assert str(tmp_path) not in text and str(benchmark.folder.parent) not in text
    assert text.count("| plain |") == 5 and "## change object" in text
    assert capsys.readouterr().err == f"sage: report in {tmp_path / 'report.html'}\n"


@pytest.mark.slow
def test_a_second_run_gives_the_same_tables(benchmark, tmp_path):
    """With a real, small model, to the last digit, and the same page."""
    tiny.make(tmp_path / "tiny")
    for out in ("one", "two"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert bench(benchmark, tmp_path / out, "--config", "source", "plain:steps=2", "guidance:steps=2",
                         "--model", str(tmp_path / "tiny"), "--batch", "3") == 0
    for name in ("tables.json", "report.html"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    record = (tmp_path / "one/tables.md").read_text()
    assert "--model tiny --batch 3" in record and str(tmp_path) not in record and record.count("- versions: sage ") == 1


def test_an_experiment_with_a_student_tells_seconds_and_differences_and_leaves_out_what_is_not_there(
        stubbed, benchmark, tmp_path, capsys, monkeypatch):
    rows = ("plain:steps=2", "plain@student:steps=2", "plain@no-kl:steps=2", "plain@single-step:steps=2")
    monkeypatch.setitem(EXPERIMENTS, "turbo", replace(EXPERIMENTS["turbo"], configurations=rows, baseline=rows[1]))
    stubbed.configure = lambda c: {"name": c.name, "model": {"weights": c.model}}
    assert bench(benchmark, tmp_path, "--experiment", "turbo", "--models", "no-kl=/some/where/no-kl") == 0
    assert "rows on single-step are left out" in capsys.readouterr().err
    names = [row["configuration"] for row in json.loads((tmp_path / "tables.json").read_text())["table"]]
    assert list(dict.fromkeys(names)) == [*BOUNDS, *rows[:3]]
    assert json.loads((tmp_path / "run.json").read_text())["batch"] == 1
    text = (tmp_path / "tables.md").read_text()
    assert "| seconds | network calls |" in text and "- @no-kl: weights no-kl\n" in text
    assert "--experiment turbo --model sd-1.4 --models no-kl=no-kl --batch 1" in text and "/some" not in text
    [head, _, *body] = text.partition("| minus plain@student:steps=2 |")[2].splitlines()
    assert "PSNR inside" in head and body[len(BOUNDS)].startswith("| plain:steps=2 | ") and "%" in body[len(BOUNDS)]


def test_a_student_that_is_not_there_is_one_line(benchmark, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(engines.ModelEngine, "__init__", lambda self, model, load: load("student"))
    monkeypatch.setattr(sage, "load_model", lambda where, **given: find_model(where))
    monkeypatch.setenv("SAGE_WEIGHTS", str(tmp_path))
    assert bench(benchmark, tmp_path / "out", "--config", "turbo@student", "--model", "stilllife", "--models",
                 "student=nowhere") == 2
    assert re.search(r"student: no model is called 'nowhere'.*\(--models student=FOLDER says", capsys.readouterr().err)
    with pytest.raises(SystemExit):
        bench(benchmark, tmp_path / "out", "--models", "student")
    assert "'student' must be NAME=MODEL, such as" in capsys.readouterr().err


def test_a_failure_is_exit_status_1(stubbed, benchmark, tmp_path, capsys):
    stubbed.fails = {benchmark.cases[2].name}
    assert bench(benchmark, tmp_path, "--config", "plain") == 1
    assert "plain, case 000000000002: it is too hard\nsage: 1 of 4 results failed" in capsys.readouterr().err
    stubbed.fails = set()
    assert bench(benchmark, tmp_path, "--config", "plain") == 0


def test_stilllife_is_made_and_measured(stubbed, tmp_path, monkeypatch, capsys):
    asked = []

    def make(folder, per_kind, side, workers, progress, first_seed, wordings):
        asked.append((folder, per_kind, side, first_seed, wordings))
        return make_benchmark(folder, 2)

    monkeypatch.setattr("sage.commands.measuring.write_stilllife", make)
    assert main(["bench", "stilllife", "--out", str(tmp_path), "--quick", "--quiet", "--config", "plain"]) == 0
    side = KNOWN["stilllife"].size
    assert asked == [(tmp_path / "benchmark", 4, side, 100_000, ("full",))] and "PSNR inside" in capsys.readouterr().out
    assert main(["bench", "stilllife", "--out", str(tmp_path / "other"), "--each", "7", "--tuning", "--quiet",
                 "--prompts", "both", "--experiment", "loss"]) == 0
    assert asked[1] == (tmp_path / "other" / "benchmark", 4, side, 0, ("full", "short"))  # 4 in both ways
    tables = json.loads((tmp_path / "other" / "tables.json").read_text())
    assert {row["configuration"] for row in tables["table"]} == {*BOUNDS, *EXPERIMENTS["loss"].configurations}
    assert main(["bench", "stilllife", "--out", str(tmp_path), "--experiment", "tabel-1"]) == 2
    assert "there are table-1" in capsys.readouterr().err


def test_quick_takes_the_first_of_each_kind(stubbed, tmp_path, monkeypatch):
    benchmark = make_benchmark(tmp_path / "benchmark", 12)
    monkeypatch.setattr("sage.commands.bench.QUICK", 1)
    seen = []
    stubbed.before = lambda cases: seen.extend(case.name for case in cases)
    assert bench(benchmark, tmp_path / "out", "--config", "plain", "--quick") == 0
    assert seen == [case.name for case in benchmark.cases[:10]]


def test_score_needs_no_model(stubbed, benchmark, tmp_path, capsys):
    bench(benchmark, tmp_path, "--config", "plain", "--json")
    ours = json.loads(capsys.readouterr().out)
    assert main(["score", str(tmp_path / "plain"), "--against", str(benchmark.folder), "--out", str(tmp_path / "again"),
                 "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out) == ours == json.loads((tmp_path / "again/tables.json").read_text())
    pages = [(tmp_path / name).read_text() for name in ("report.html", "again/report.html")]
    assert pages[0].count("<img") == pages[1].count("<img") == 12
    next((tmp_path / "plain").rglob("*.png")).unlink()
    assert main(["score", str(tmp_path / "plain"), "--against", str(benchmark.folder), "--quiet"]) == 1


@pytest.mark.parametrize("arguments, message", [
    (["bench", "stilllife"], "--out"),
    (["bench", "piebench", "--out", "x"], "--data"),
    (["bench", "stilllife", "--out", "x", "--shard", "3/2"], "must be I/N"),
    (["bench", "stilllife", "--out", "x", "--side", "5"], "from 11 to 4096"),
    (["bench", "stilllife", "--out", "x", "--threads", "0"], "--threads is 0: must be from 1 to 1024"),
    (["bench", "stilllife", "--out", "x", "--config", "nobody"], "no configuration is called 'nobody'"),
    (["bench", "piebench", "--out", "x", "--data", "missing"], "no benchmark"),
    (["bench", "nothing", "--out", "x"], "invalid choice"),
    (["score", "missing", "--against", "missing"], "no benchmark")])
def test_mistakes_are_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        status = main(arguments)
    except SystemExit as exit:
        status = exit.code
    err = capsys.readouterr().err
    assert status == 2 and message in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_cluster_needs_ray(stubbed, benchmark, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert bench(benchmark, tmp_path, "--engine", "ray") == 2
    assert "needs the extra cluster: pip install 'sage-edit[cluster]'" in capsys.readouterr().err


def test_no_torch_before_the_arguments_are_checked():
    code = "import sys; from sage.commands.main import main\n" \
           "main(['bench', 'stilllife', '--out', 'x', '--config', 'no']); " \
           "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
