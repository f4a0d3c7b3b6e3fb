"""Work that could not end is refused before it begins: sizes, prompts, tables, threads, and numbers in manifests."""

import json
import shutil

import pytest
import torch
from PIL import Image

import sage
from sage import EditConfig
from sage.batch import runner, table
from sage.batch.table import TableError, read_table
from sage.bench import tables
from sage.bench.configs import CONFIGURATIONS
from sage.bench.report import write_report
from sage.bench.runner import read_manifests, run
from sage.commands import main as cli
from sage.commands.bench import in_order
from sage.errors import MemoryRunOut, ModelError, PictureError, SettingsError
from sage.machine import memory
from sage.machine.memory import Task, settle
from sage.models import memory as machine
from sage.prompts.tokens import MAX_PROMPT
from tests import small
from tests.bench.world import StubEngine, make_benchmark
from tests.hardening.soon import soon
from tests.models import tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small.make(tmp_path_factory.mktemp("bounds") / "tokenizer").model


# ---- sizes


def test_a_model_of_pictures_that_nobody_makes(tmp_path):
    folder = tiny.make(tmp_path / "model").folder
    tiny.configure(folder / "unet" / "config.json", sample_size=1024)  # 2,048 pixels by this small autoencoder
    assert sage.load_model(folder, device="cpu").sample_size == 2048
    tiny.configure(folder / "vae" / "config.json", block_out_channels=[32, 32, 32, 64],
                   down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4)
    with pytest.raises(ModelError, match="sample_size is 1024, which are pictures of 8192 pixels a side"):
        sage.load_model(folder, device="cpu")


def test_places_that_no_attention_compares(model):
    with soon(), pytest.raises(SettingsError, match="at most 32768 with each other: try a smaller size"):
        sage.edit(model, small.picture(), "a cat", "a dog", EditConfig(size=2048, steps=1))
    with soon(), pytest.raises(SettingsError, match="try a smaller size"):
        sage.generate(model, "a cat", width=4096, height=4096)
    with soon(), pytest.raises(SettingsError, match="try a smaller size"):
        sage.invert(model, small.picture(), "a cat", EditConfig(size=4096, steps=1))


@pytest.mark.parametrize("whole, fits", ((None, True), (10**15, True), (10**6, False)))
def test_far_more_memory_than_there_is(model, monkeypatch, whole, fits):
    """Nothing that is saved helps then; what is estimated too high by some factor is tried."""
    monkeypatch.setattr(memory, "whole_memory", lambda device: whole)
    task = Task(model, (64, 64), 1)
    assert task.need() > memory.UNSURE * 10**6
    if fits:
        settle(task)
        return
    with soon(), pytest.raises(MemoryRunOut, match="there are 0.0 GiB in all: try a smaller size"):
        sage.edit(model, small.picture(), "a cat", "a dog", EditConfig(steps=1, cross_level=1))
    monkeypatch.setattr(memory, "whole_memory", lambda device: task.need() // memory.UNSURE + 1)
    settle(task)


def test_what_a_machine_has_in_all(tmp_path, monkeypatch):
    cpu, limit = torch.device("cpu"), [None]
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    monkeypatch.setattr(machine, "_address_space", lambda: limit[0])
    assert machine.whole_memory(cpu) is None
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 90 kB\nMemAvailable: 80 kB\nSwapTotal: 10 kB\n")
    (tmp_path / "proc/self/statm").write_text("3 1 1\n")
    assert machine.whole_memory(cpu) == 100 * 1024 and machine.free_memory(cpu) == 80 * 1024
    limit[0] = 40_000
    assert machine.whole_memory(cpu) == 40_000 and machine.free_memory(cpu) == 40_000 - 3 * machine.PAGE
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("5000\n")
    assert machine.whole_memory(cpu) == 5000


# ---- prompts


@pytest.mark.parametrize("source, target", (
    ("a b " * 1024, "b a a b " * 512), (". " * 2048, "! " * 2048), ("a b c d " * 512, "d c b a " * 512),
    ("a, (b) " * 585, "b, (a) " * 585)))
def test_thousands_of_words_are_cut_before_they_are_compared(model, source, target):
    with soon(10):
        plan = sage.check_prompts(model, source[:MAX_PROMPT], target[:MAX_PROMPT], EditConfig(), truncate=True)
    inside = range(1, model.prompts.max_length - 1)
    assert all(place in inside for span in plan.edited for place in (*span.source, *span.target))


def test_what_differs_before_the_cut_is_found(model):
    source = "a cat sat on a mat " * 12
    [span] = model.prompts.differences(model.prompts.parse(source, True),
                                       model.prompts.parse(source.replace("cat", "dog", 1), True))
    assert span.source == (2,) and span.target == (2, 3, 4)


# ---- tables


def rows(path, number: int, row: str):
    path.write_text("picture,source,target,steps\n" + (row + "\n") * number)
    return path


def test_a_table_of_bad_rows_is_refused_at_a_number_of_them(tmp_path):
    with soon(), pytest.raises(TableError, match="more than 1000 rows .*, the last one on line 1002: steps"):
        read_table(rows(tmp_path / "t.csv", 20_000, "p.png,a,b,many"))
    assert len(read_table(rows(tmp_path / "t.csv", 1000, "p.png,a,b,many"))) == 1000


def test_a_table_may_not_be_of_any_length(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "MOST_ROWS", 10)
    assert len(read_table(rows(tmp_path / "t.csv", 10, "p.png,a,b,5"))) == 10
    with pytest.raises(TableError, match="more than 10 rows"):
        read_table(rows(tmp_path / "t.csv", 11, "p.png,a,b,5"))


def test_pictures_that_are_not_there_are_counted_too(model, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "MOST_WRONG", 5)
    found = read_table(rows(tmp_path / "t.csv", 9, "gone.png,a,b,5"))
    with pytest.raises(PictureError, match="more than 5 rows .*, the last one on line 7: .* does not exist"):
        runner.run_batch(model, found, tmp_path / "out")
    assert len((tmp_path / "out" / "manifest.jsonl").read_text().splitlines()) == 6


# ---- the benchmark


@pytest.mark.parametrize("flag", ("--threads", "--workers"))
def test_more_threads_than_any_process_has(tmp_path, capsys, flag):
    for number in ("100000", "0", "-1", "1025"):
        assert cli.main(["bench", "stilllife", "--out", str(tmp_path / "o"), flag, number]) == 2
        assert "must be from 1 to 1024" in capsys.readouterr().err


LIES = ({"kind": 99}, {"kind": -1}, {"kind": 10**400}, {"scores": {"inside_psnr": 10**400}}, {"seconds": "long"},
        {"scores": {"inside_psnr": float("nan")}}, {"calls": 10**400}, {"anew": 2**70}, {"seconds": 10**400},
        {"scores": {"inside_psnr": True}}, {"scores": {"inside_psnr": 1e308}}, {"seconds": None})


@pytest.mark.parametrize("lie", LIES, ids=str)
def test_a_manifest_that_lies_makes_no_table_fail(tmp_path, lie):
    """Its line is left out, and the result made again, or its kind is that which the benchmark says."""
    benchmark, out, plain = make_benchmark(tmp_path / "benchmark", 2), tmp_path / "run", CONFIGURATIONS["plain"]
    run(benchmark, [plain], StubEngine(), out)
    path = out / "manifest.jsonl"
    first, second = map(json.loads, path.read_text().splitlines())
    path.write_text("".join(json.dumps(line) + "\n" for line in (first | lie, second)))
    lines = in_order(read_manifests(out).values(), benchmark, ["plain"])
    assert [line.kind for line in lines] == ([0, 1] if len(lines) == 2 else [1])
    results = tables.Results(lines, benchmark.kinds)
    for text in (tables.as_json(results, {}), tables.as_markdown(results), tables.as_record("t", results, {})):
        assert "99" not in text.split()
    write_report(out / "report.html", "t", benchmark, results, {"plain": out}, {})
    assert len(run(benchmark, [plain], StubEngine(), out)) == 2


# ---- files of a user's own


FILES = {
    "syntax": ("def (", "cannot be imported (SyntaxError"), "raises": ("1 / 0", "cannot be imported (ZeroDivision"),
    "ends": ("import sys\nsys.exit(7)", "cannot be imported (SystemExit"), "bytes": ("\0", "cannot be imported"),
    "deep": ("(" * 5000, "cannot be imported"), "nothing": ("", "has nothing called 'It'"),
    "number": ("It = 7", ""), "text": ("It = 'a'", ""), "function": ("def It():\n    pass", ""),
    "class": ("class It:\n    pass", ""), "many lines": ("raise ValueError('a\\nb\\x1b[31m')", "ValueError: a b?[31m"),
    "lazy": ("def __getattr__(name):\n    raise ValueError(name)", "has nothing called"),
    "bare": ("from sage.method import Method\nclass It(Method):\n    pass", ""),
    "unsettled": ("from sage.method import Method\nclass It(Method):\n    name, title, Settings = 'a', 'b', int", ""),
    "abstract": ("from sage.method import Method\nfrom sage.settings import Settings\nclass It(Method[Settings]):\n"
                 "    name, title = 'a', 'b'\n    def __init__(self):\n        raise OSError('no')", "")}


@pytest.mark.parametrize("name", FILES)
def test_a_broken_file_of_a_method_or_a_model_is_one_line(tmp_path, capsys, name):
    code, said = FILES[name]
    path = tmp_path / f"{name.replace(' ', '_')}.py"
    path.write_text(code)
    Image.new("RGB", (8, 8)).save(tmp_path / "p.png")
    edit = ["edit", str(tmp_path / "p.png"), "--source", "a", "--target", "b"]
    for words in (["methods", f"{path}:It"], [*edit, "--method", f"{path}:It"], [*edit, "--model", f"{path}:It"]):
        with soon(60):
            assert cli.main(words) == 2, words
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and error[:-1].isprintable() and said in error, error


def test_a_loader_that_gives_no_backbone_is_one_line(tmp_path):
    path = tmp_path / "m.py"
    path.write_text("def It(device, dtype):\n    return 7\n")
    with pytest.raises(ModelError, match="gives a int without"):
        sage.load_model(f"{path}:It")


def test_a_copy_is_as_good(tmp_path):
    """What is bounded here bounds nothing that was right: the tiny model loads."""
    folder = tiny.make(tmp_path / "model").folder
    assert sage.load_model(shutil.copytree(folder, tmp_path / "copy"), device="cpu").sample_size == 32
