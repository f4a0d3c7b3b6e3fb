"""What a stranger meets first: what is said before and beside the bars, what is asked, what is found by its name."""

import errno
import fcntl
import io
import json
import os
import pty
import resource
import struct
import subprocess
import sys
import termios

import pytest

from sage.auto import auto_of
from sage.commands import doctor
from sage.commands import main as cli
from sage.machine.estimates import estimate, figures
from sage.models.known import KNOWN, own_folder
from tests.commands.test_edit import PROMPTS, ROOT, engine  # noqa: F401

STUB = """
import sys
from types import SimpleNamespace
import sage
from sage.commands.main import main
from sage.models.savings import Savings

def edit(model, image, progress, **_):
    for phase, total in (("encode", 1), ("invert", 3), ("edit", 3), ("decode", 1)):
        for done in range(total + 1):
            progress(phase, done, total)
    return SimpleNamespace(image=image, trajectory=None, masks=(), notes=("a note",), savings=Savings())

sage.load_model = lambda *_, **__: SimpleNamespace(name="m", recommends={"sage": {}}, device="cpu", dtype="f")
sage.edit, sage.check_prompts = edit, lambda *_, **__: None
sys.exit(main(sys.argv[1:]))
"""


def on_a_terminal(*arguments: str) -> list[str]:
    """The lines that stand on a terminal at the end, what was written over left out."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    run = subprocess.Popen([sys.executable, "-c", STUB, *arguments], stdin=theirs, stdout=theirs, stderr=theirs,
                           env=os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm"})
    os.close(theirs)
    shown = b""
    while True:
        try:
            if not (more := os.read(ours, 4096)):
                break
        except OSError as error:  # how a terminal says that all others have left
            assert error.errno == errno.EIO
            break
        shown += more
    os.close(ours)
    assert run.wait(timeout=60) == 0
    return [line.rpartition("\r")[2] for line in shown.decode().replace("\r\n", "\n").split("\n")]


@pytest.mark.parametrize("more", [pytest.param([], id="one", marks=pytest.mark.slow),
                                  pytest.param(["--target", "a green mug"], id="two"),
                                  pytest.param(["--json"], id="json", marks=pytest.mark.slow)])
def test_paths_and_notes_stand_on_lines_of_their_own(engine, more):  # noqa: F811
    lines = on_a_terminal("edit", "mug.png", *PROMPTS, *more)
    assert lines[0] == "sage: loading sd-1.4"
    paths = [line for line in lines if "out/mug-edit" in line]
    if "--json" in more:
        assert json.loads(paths[0])["out"] == ["out/mug-edit.png"]
    else:
        assert paths == [f"out/mug-edit{i}.png" for i in ("", "-2")][:1 + len(more) // 2]
    assert "sage: note: a note" in lines
    assert any("invert: 100%" in line for line in lines)


def at_a_terminal(monkeypatch, answer: str) -> None:
    stdin = io.StringIO(answer)
    monkeypatch.setattr(stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdin", stdin)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)


@pytest.mark.parametrize("answer", ["n\n", "\n", "", "what?\n"])
def test_gigabytes_come_only_when_a_person_says_so(engine, monkeypatch, capsys, answer):  # noqa: F811
    at_a_terminal(monkeypatch, answer)
    assert cli.main(["edit", "mug.png", *PROMPTS, "--model", "sd-1.5"]) == 2
    said = capsys.readouterr().err
    assert "2.1 GB" in said and "Open RAIL-M" in said and "download it? [y/N] " in said
    assert "sd-1.5 was not downloaded" in said and "stilllife, which is bundled" in said
    assert not engine.fetches and not engine.loads


@pytest.mark.parametrize("answer, more, asked", [("y\n", [], True), ("Yes\n", [], True), ("n\n", ["--yes"], False)])
def test_gigabytes_come_with_a_word_or_a_flag(engine, monkeypatch, capsys, answer, more, asked):  # noqa: F811
    at_a_terminal(monkeypatch, answer)
    assert cli.main(["edit", "mug.png", *PROMPTS, "--model", "sd-1.5", *more]) == 0
    assert engine.fetches == ["sd-1.5"] and ("[y/N]" in capsys.readouterr().err) == asked


@pytest.mark.parametrize("begun, command", [("sage.models.describe.describe", ["info", "stilllife"]),
                                            ("sage.bench.encoder.load_encoder", ["caption", "mug.png"])])
def test_what_takes_seconds_and_has_no_bar_is_said_before_it_begins(engine, monkeypatch, capsys, begun, command):  # noqa: F811
    class Begun(Exception):
        pass

    def begin(*_, **__):
        raise Begun

    monkeypatch.setattr(begun, begin)
    monkeypatch.setattr("sage.bench.encoder.bundled", lambda: ROOT)
    with pytest.raises(Begun):
        cli.main(command)
    assert capsys.readouterr().err == ""  # where nobody looks on
    at_a_terminal(monkeypatch, "")
    with pytest.raises(Begun):
        cli.main(command)
    assert "some seconds" in capsys.readouterr().err


# ---- models by the names of their folders


@pytest.fixture
def mine(engine, tmp_path):  # noqa: F811
    """A model of one's own beside the known ones, and a download that was cut short."""
    for name in ("my-model.v2", ".sd-1.5.partial"):
        (tmp_path / "weights" / name / "unet").mkdir(parents=True)
        (tmp_path / "weights" / name / "unet" / "config.json").write_text("{}")
    return tmp_path / "weights" / "my-model.v2"


def test_a_folder_beside_the_known_models_is_found_by_its_name(mine, engine, capsys):  # noqa: F811
    assert cli.main(["edit", "mug.png", *PROMPTS, "--model", "my-model.v2"]) == 0
    assert engine.loads[0][0] == "my-model.v2"
    assert cli.main(["edit", "mug.png", *PROMPTS, "--model", "../weights/my-model.v2/.."]) == 2
    capsys.readouterr()
    assert cli.main(["models"]) == 0
    listed = capsys.readouterr().out
    assert "my-model.v2" in listed and "partial" not in listed and "SAGE_WEIGHTS" in listed
    assert cli.main(["models", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["my-model.v2"]["path"] == str(mine)
    assert cli.main(["info", "my-model.v2"]) == 2  # its configuration is empty: found, and told so
    assert str(mine) in capsys.readouterr().err
    assert cli.main(["edit", "mug.png", *PROMPTS, "--model", "my-modl.v2"]) == 2
    assert "my-model.v2" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["..", "a/b", "\x00"])
def test_what_is_no_name_is_an_unknown_model(engine, capsys, name):  # noqa: F811
    assert cli.main(["info", name]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert own_folder(name) is None is own_folder("x" * 5000)


# ---- doctor


def test_estimates_are_the_table_s_own_on_its_machine():
    rates = figures()["rates"]
    for row in figures()["edits"]:
        found = estimate(row["family"], row["side"], row["device"], row["dtype"],
                         rates[f"{row['device']} {row['dtype']}"])
        assert found.seconds == row["seconds"] and found.memory == row["peak_GiB"] * 2**30 and "measured" in found.basis
        twice = estimate(row["family"], row["side"], row["device"], row["dtype"],
                         2 * rates[f"{row['device']} {row['dtype']}"])
        assert twice.seconds == pytest.approx(row["seconds"] / 2) or row["device"] == "cuda"


def test_estimates_of_what_was_not_measured_say_so():
    wide, half = (figures()["rates"][f"cpu {dtype}"] for dtype in ("float32", "bfloat16"))
    measured, other = estimate("1.x", 512, "cpu", "float32", wide), estimate("1.x", 512, "cpu", "bfloat16", half)
    assert other.basis == "reckoned from float32" and 0.4 < other.seconds / measured.seconds < 0.8
    assert other.memory < measured.memory
    assert estimate("2.x", 512, "cpu", "float32", wide) == measured
    fast = estimate("1.x", 512, "cuda", "float16", 1e15)
    assert fast.basis == "never measured on a GPU" and fast.seconds >= 1
    assert estimate("XL", 512, "cpu", "float32", wide) is None is estimate("flux", 512, "cpu", "float32", wide)
    assert estimate("1.x", 300, "cpu", "float32", wide) is None and estimate("1.x", 512, "cpu", "float32", 0.0) is None


def test_doctor_tells_what_there_is_and_what_an_edit_takes(engine, monkeypatch, capsys):  # noqa: F811
    rates = {dtype: figures()["rates"][f"cpu {dtype}"] / 2 for dtype in ("float32", "bfloat16")}
    monkeypatch.setattr(doctor, "rate", lambda device, dtype: rates[dtype])
    monkeypatch.setattr(doctor, "timed", lambda device, progress: [])
    monkeypatch.setattr(doctor, "free_disk", lambda folder: 7 * 2**30)
    assert cli.main(["doctor", "--device", "cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["device"] == "cpu" and found["threads"] >= 1 and found["memory"] > 0
    assert found["models"]["sd-1.4"]["path"] and not found["models"]["sd-1.5"]["path"]
    [row] = [e for e in found["edits"] if (e["model"], e["side"], e["dtype"]) == ("sd-1.4", 512, "float32")]
    [known] = [r for r in figures()["edits"] if (r["family"], r["side"], r["dtype"]) == ("1.x", 512, "float32")]
    assert row["seconds"] == pytest.approx(2 * known["seconds"]) and row["steps"] == 50
    [few] = [e for e in found["edits"] if (e["model"], e["side"], e["dtype"]) == ("sd-turbo", 512, "float32")]
    assert few["seconds"] == pytest.approx(2 * known["seconds"] * 4 / 50) and few["steps"] == 4
    for name in ("sdxl", "sdxl-turbo", "flux-schnell", "flux-dev"):
        [row] = [e for e in found["edits"] if e["model"] == name]
        assert row["seconds"] is None is row["memory"] and row["basis"] == "not measured"
    assert {e["model"] for e in found["edits"]} >= set(KNOWN)  # whatever there is, something is said of it
    assert cli.main(["doctor", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    for words in ("float32 unless --dtype", "7.0 GiB free", "sage fetch sd-1.5 (2.1 GB)", "estimates",
                  "sd-1.4, sd-1.5, sd-2.1-base with --size 256", "--dtype bfloat16",
                  "sdxl, sdxl-turbo, flux-schnell, flux-dev (not measured)", "4 sd-turbo (measured elsewhere, for 50"):
        assert words in " ".join(said.split())
    rates["bfloat16"] = 1e8  # as where a processor only imitates it
    assert cli.main(["doctor", "--device", "cpu"]) == 0
    assert "--dtype bfloat16" not in capsys.readouterr().out
    assert cli.main(["doctor", "--device", "abacus"]) == 2


def test_what_doctor_says_fits_a_terminal_however_long_names_are(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    long = "a-model-whose-name-is-as-long-as-that-of-many-a-checkpoint-on-the-web"
    models = {name: {"path": None, "side": 512, "family": "1.x", "download": 2e9} for name in (long, "short")}
    found = {"versions": "sage 1, " * 20, "machine": "m", "device": "cpu", "precision": "float32", "memory": 3 * 2**30,
             "disk": None, "weights": "weights", "models": models, "edits": [
                 {"model": model, "side": side, "dtype": "float32", "steps": 50, "seconds": seconds, "memory": memory,
                  "basis": "measured elsewhere"}
                 for model, side, seconds, memory in ((long, 512, 4e6, 123 * 2**30), ("short", 512, 4e6, 123 * 2**30),
                                                      (long, 256, 3.2, None), ("short", 256, 640, 2**30))]}
    lines = doctor.lines(found)
    assert all(len(line) <= 80 for line in lines if long not in line)
    table = lines[next(i for i, line in enumerate(lines) if line.endswith("  model")):]
    assert [line[:29].split() for line in table if line[:29].strip()] == [
        ["time", "memory", "steps"], ["1111", "h", "123.0", "GiB", "50"], ["3.2", "s", "unknown", "50"],
        ["11", "min", "1.0", "GiB", "50"]]
    assert "  short                     not here: sage fetch short (2.0 GB)" in lines


def test_a_precision_that_is_only_imitated_is_tried_on_little(monkeypatch):
    tried = []

    def fastest(device, dtype, probe):
        tried.append(probe.side)
        return probe.operations / (1e8 if dtype == "bfloat16" else 1e12)

    monkeypatch.setattr(doctor, "fastest", fastest)
    assert doctor.rate("cpu", "bfloat16") == pytest.approx(1e8) and tried == [8]
    assert doctor.rate("cpu", "float32") == pytest.approx(1e12) and tried[1:] == [8, 16, 32, 64]


def test_doctor_times_both_bundled_models_by_the_methods_that_they_get(monkeypatch):
    monkeypatch.setattr(resource, "getrusage", lambda who: pytest.fail("it counts what the process was before too"))
    monkeypatch.setattr(doctor, "SHORT", 1)
    monkeypatch.setattr(doctor, "TRIES", 1)
    reports = []
    rows = doctor.timed("cpu", lambda *report: reports.append(report))
    assert [row["model"] for row in rows] == ["stilllife", "stilllife-turbo"]
    for row in rows:
        taken = auto_of(row["model"])
        assert row["basis"] == f"{taken.method}, timed at --steps 1"
        assert row["steps"] == taken.settings.get("steps", 4)
        assert 0.05 < row["seconds"] < 600 and row["memory"] > 2**27
        assert [r[1:] for r in reports if r[0] == row["model"]] == [(0, 1), (1, 1)]


def test_doctor_shows_how_far_it_has_come(engine, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setattr(doctor, "rate", lambda device, dtype: 1e11)
    monkeypatch.setattr(doctor, "installed", lambda name: None)
    assert cli.main(["doctor", "--device", "cpu"]) == 0 and capsys.readouterr().err == ""
    at_a_terminal(monkeypatch, "")
    assert cli.main(["doctor", "--device", "cpu"]) == 0
    assert "convolve: 100%" in capsys.readouterr().err


def test_the_help_says_that_the_studio_takes_several_models(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["ui", "--help"])
    assert "given again, one more" in " ".join(capsys.readouterr().out.split())
