"""`sage batch`: what it makes, shares, keeps, refuses and says, and how it goes on after it was stopped."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

import sage
from sage import pictures
from sage.commands import main as cli
from sage.methods.sage import SAGE
from sage.models.savings import Savings
from sage.pictures.files import read_settings
from sage.prompts.instructions import follow

SOURCE = "a photograph of a big shiny blue mug in the centre, on stone tiles"
YELLOW, RED = (SOURCE.replace("blue", colour) for colour in ("yellow", "red"))
FLAGS = ["--model=stilllife", "--quiet", "--steps=3", "--retries=0"]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def model():
    return sage.load_model("stilllife")


@pytest.fixture
def place(model, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sage, "load_model", lambda *_, **__: model)
    Path("mug.png").write_bytes((ROOT / "examples/mug.png").read_bytes())
    return tmp_path


@pytest.fixture
def engine(place, monkeypatch):
    """Stands for sage.edit: a list of what it was asked for."""
    edits = []

    def edit(model, image, source, target, config, progress, trajectory, truncate):
        edits.append(SimpleNamespace(target=target, config=config, shared=trajectory is not None))
        if "boom" in target:
            raise sage.NumericsError("boom: it is not finite")
        if "stop" in target:
            raise KeyboardInterrupt
        return SimpleNamespace(image=Image.new("RGB", image.size, "blue"), trajectory="inversion", notes=("a note",),
                               savings=Savings(references=True))

    monkeypatch.setattr(sage, "edit", edit)
    return edits


def write(*rows: dict, name: str = "t.jsonl") -> None:
    Path(name).write_text("".join(json.dumps({"picture": "mug.png", "source": SOURCE} | row) + "\n" for row in rows))


def batch(*more: str, table: str = "t.jsonl") -> int:
    return cli.main(["batch", table, "--out=out", *FLAGS, *more])


def manifest() -> list[dict]:
    return [json.loads(line) for line in Path("out/manifest.jsonl").read_text().splitlines()]


def made() -> set[str]:
    return {str(p.relative_to("out")) for p in Path("out").rglob("*.*") if p.is_file() and p.name[0] != "."}


# ---- what it makes


def test_a_second_thing_is_said_as_anybody_says_it(engine):
    """The bundled models hear of one by the word tiny."""
    write({"source": "a mug and a cone", "target": "a mug", "out": "a.png"})
    assert batch() == 0
    [line] = manifest()
    assert line["source"] == "a mug and a tiny cone" and line["notes"][0].endswith("taken as 'a mug and a tiny cone'")
    assert read_settings("out/a.png")["source"] == "a mug and a tiny cone"
    assert batch() == 0 and len(engine) == 1  # and it is not made a second time


def test_edits_equal_those_of_sage_edit_to_the_byte_and_share_inversions(place, monkeypatch, capsys):
    inversions, invert = [], SAGE.invert
    monkeypatch.setattr(SAGE, "invert", lambda *a: inversions.append(1) or invert(*a))
    write({"target": YELLOW, "name": "y"}, {"target": YELLOW, "name": "short", "steps": 2},
          {"target": RED, "name": "r", "reweight": "red:2"}, {"target": RED, "name": "none", "reconstruction": "none"})
    assert batch() == 0
    assert len(inversions) == 3  # the third row has the first one's; another number of steps, or of maps, has its own
    assert capsys.readouterr().out.splitlines() == [
        "out/y.png", "out/r.png", "out/short.png", "out/none.png", "out/contact-sheet.png"]
    for name, flags in (("y", ["--target", YELLOW]), ("short", ["--target", YELLOW, "--steps=2"]),
                        ("r", ["--target", RED, "--reweight=red:2"]),
                        ("none", ["--target", RED, "--reconstruction=none"])):
        assert cli.main(["edit", "mug.png", "--source", SOURCE, *FLAGS, *flags, f"--out={name}.png"]) == 0
        assert Path(f"{name}.png").read_bytes() == Path(f"out/{name}.png").read_bytes(), name
    assert pictures.read_settings("out/r.png")["settings"]["reweight"] == {"red": 2.0}


def test_an_inversion_is_held_only_for_the_rows_that_share_it(engine):
    Image.new("RGB", (8, 8), "red").save("other.png")
    write({"target": YELLOW}, {"target": RED, "picture": "other.png"}, {"target": RED}, {"target": RED, "steps": 2},
          {"target": YELLOW, "source": "a mug"})
    assert batch() == 0
    assert [(e.target, e.shared) for e in engine] == [(YELLOW, False), (RED, True), (RED, False), (RED, False),
                                                      (YELLOW, False)]


def test_settings_of_a_row_win_over_flags_and_flags_over_the_model(engine, model):
    recommended = sage.method("sage").recommended(model)
    write({"target": YELLOW}, {"target": YELLOW, "name": "b", "guidance_scale": 2})
    assert batch("--guidance-scale=3", "--step-limit=0.5") == 0
    assert [(e.config.guidance_scale, e.config.step_limit, e.config.decay) for e in engine] == [
        (3, 0.5, recommended.decay), (2, 0.5, recommended.decay)]


def test_each_row_is_made_by_its_own_method(engine, model):
    write({"target": YELLOW}, {"target": YELLOW, "name": "b", "method": "sdedit", "strength": 0.3},
          {"target": YELLOW, "name": "c", "method": "plain", "steps": 4})
    assert batch("--guidance-scale=3", "--step-limit=0.5") == 0
    assert [(type(e.config), e.config.guidance_scale, e.config.steps) for e in engine] == [
        (sage.EditConfig, 3, 3), (sage.method("sdedit").Settings, 3, 3), (sage.method("plain").Settings, 3, 4)]
    assert engine[1].config.strength == 0.3
    records = [pictures.read_settings(f"out/{name}.png") for name in ("0001-mug", "b", "c")]
    assert [(r["version"], r["method"]) for r in records] == [(2, "sage"), (2, "sdedit"), (2, "plain")]
    assert records[1]["savings"]["references"] is True  # of the edit, not of the plan
    assert batch("--guidance-scale=3", "--step-limit=0.5") == 0 and len(engine) == 3
    write({"target": YELLOW}, {"target": YELLOW, "name": "b", "method": "plain"},
          {"target": YELLOW, "name": "c", "method": "plain", "steps": 4})
    assert batch("--guidance-scale=3", "--step-limit=0.5") == 0
    assert [type(e.config) for e in engine[3:]] == [sage.method("plain").Settings]


def test_the_command_line_says_the_method_of_rows_that_name_none(engine, capsys):
    write({"target": YELLOW, "strength": 0.2}, {"target": YELLOW, "name": "b", "method": "sage"})
    assert cli.main(["batch", "t.jsonl", "--out=out", "--model=stilllife", "--quiet", "--method=sdedit",
                     "--strength=0.4", "--steps=3"]) == 0
    assert [(type(e.config), e.config.steps) for e in engine] == [
        (sage.method("sdedit").Settings, 3), (sage.EditConfig, 3)]
    assert engine[0].config.strength == 0.2


def test_a_table_cannot_say_which_code_is_run(engine, place, capsys):
    Path("own.py").write_text("raise SystemExit('this was run')")
    write({"target": YELLOW, "method": "own.py:Own"}, {"target": RED})
    assert batch() == 1 and len(engine) == 1
    assert "a table may not say which code is run" in capsys.readouterr().err
    Path("own.py").write_text("""
from sage.methods.plain import Plain, Settings as PlainSettings
from sage.settings import frozen, setting

@frozen
class Settings(PlainSettings):
    gain: float = setting(1.0, "mine", low=0)

class Own(Plain):
    name, title, Settings = "own", "Mine", Settings
""")
    own = f"{place}/own.py:Own"
    for gain in (2, 3):  # what was made by it is ours to make again
        write({"target": YELLOW, "name": "o", "method": own, "gain": gain}, {"target": RED, "name": "p"})
        assert cli.main(["batch", "t.jsonl", "--out=own", "--model=stilllife", "--quiet", f"--method={own}"]) == 0
    assert [getattr(e.config, "gain", None) for e in engine[1:]] == [2.0, 1.0, 3.0]


def test_published_settings_are_those_of_each_rows_method(engine, capsys):
    write({"target": YELLOW}, {"target": YELLOW, "name": "b", "method": "plain"})
    assert batch("--published") == 1
    assert [e.config.grid for e in engine] == ["released"]
    assert "plain has no preset 'published'" in capsys.readouterr().err


def test_the_manifest_says_what_became_of_each_row(engine, capsys):
    write({"target": YELLOW, "name": "y"}, {"target": "boom"}, {"target": RED, "steps": "many"})
    assert batch() == 1
    lines = {line["row"]: line for line in manifest()}
    assert [lines[i]["status"] for i in (1, 2, 3)] == ["done", "failed", "failed"]
    assert lines[1]["sha256"] == hashlib.sha256(Path("out/y.png").read_bytes()).hexdigest()
    assert lines[1]["notes"] == ["a note"] and lines[1]["seconds"] >= 0 and lines[1]["time"].startswith("20")
    assert "not finite" in lines[2]["reason"] and "steps" in lines[3]["reason"]
    out, err = capsys.readouterr()
    assert out.splitlines() == ["out/y.png", "out/contact-sheet.png"]
    assert err.splitlines() == ["sage: error: row 3 (line 3): steps is 'many': must be a number",
                                "sage: error: row 2 (line 2): boom: it is not finite", "sage: 2 of 3 rows failed"]


def test_json_is_all_that_is_on_stdout(engine, capsys):
    write({"target": YELLOW, "name": "y"}, {"target": "boom"})
    assert batch("--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["rows"], found["made"], found["kept"], found["failed"]) == (2, 1, 0, 1)
    assert [r["status"] for r in found["results"]] == ["done", "failed"] and found["sheets"] == [
        "out/contact-sheet.png"]
    assert batch("--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["made"], found["kept"], found["failed"]) == (0, 1, 1)


def test_contact_sheets_in_pages(engine):
    write(*({"target": YELLOW, "name": str(i)} for i in range(19)))
    assert batch() == 0
    first, second = (pictures.open_picture(f"out/contact-sheet{i}.png") for i in ("", "-2"))
    assert first.height > 5 * second.height and len(engine) == 19
    write(*({"target": YELLOW, "name": str(i)} for i in range(3)))
    assert batch() == 0 and not Path("out/contact-sheet-2.png").exists() and len(engine) == 19


# ---- going on


def test_what_is_done_is_kept_and_what_has_changed_is_made_again(engine, capsys):
    write({"target": YELLOW, "name": "y"}, {"target": RED, "name": "r"})
    assert batch() == 0 and len(engine) == 2
    before = Path("out/y.png").stat().st_mtime_ns
    write({"target": RED, "name": "r"}, {"target": YELLOW, "name": "y"})  # in another order
    capsys.readouterr()
    assert batch() == 0 and len(engine) == 2 and Path("out/y.png").stat().st_mtime_ns == before
    assert capsys.readouterr().out.splitlines() == ["out/r.png", "out/y.png", "out/contact-sheet.png"]
    write({"target": RED, "name": "r"}, {"target": YELLOW, "name": "y", "guidance_scale": 3})
    assert batch() == 0 and [e.target for e in engine[2:]] == [YELLOW]
    assert batch("--steps=2") == 0 and len(engine) == 5
    Path("out/r.png").unlink()
    assert batch("--steps=2") == 0 and [e.target for e in engine[5:]] == [RED]
    Path("out/r.png").write_bytes(Path("out/y.png").read_bytes())
    assert batch("--steps=2") == 0 and [e.target for e in engine[6:]] == [RED]
    Image.new("RGB", (9, 9), "red").save("mug.png")
    assert batch("--steps=2") == 0 and len(engine) == 9


def test_failures_are_tried_again(engine):
    write({"target": "boom", "name": "b"})
    assert batch() == 1 and batch() == 1 and len(engine) == 2


def test_a_batch_that_was_stopped_goes_on(engine, capsys):
    write({"target": YELLOW, "name": "y"}, {"target": "stop"}, {"target": RED, "name": "r"})
    assert batch() == 130 and [line["out"] for line in manifest()] == ["y.png"]
    with open("out/manifest.jsonl", "a") as file:
        file.write('{"row": 2, "sta')  # as a kill in the midst of a line leaves it
    write({"target": YELLOW, "name": "y"}, {"target": "go"}, {"target": RED, "name": "r"})
    assert batch() == 0 and [e.target for e in engine] == [YELLOW, "stop", "go", RED]
    assert len(manifest()) == 3


KILLED = """
import os, signal, sys
from types import SimpleNamespace
import sage
from sage import pictures
from sage.commands.main import main
from sage.methods.sage import SAGE
from sage.models.savings import Savings
from sage.pictures.files import read_settings
from sage.prompts.instructions import follow
from sage.prompts.tokens import Prompt
from sage.prompts.plan import Plan
edits, replace = [], os.replace

def stall(*paths):
    edits.append(1)
    if len(edits) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*paths)

os.replace = stall
sage.load_model = lambda *_, **__: SimpleNamespace(
    prompts=SimpleNamespace(taught=()),
    name="stilllife", recommends={{"sage": {config}}}, device="cpu", dtype="float32")
sage.check_prompts = lambda model, source, target, *_: Plan(Prompt(source, ()), Prompt(target, ()))
sage.edit = lambda model, image, *_: SimpleNamespace(image=image, trajectory=None, notes=(), savings=Savings())
main(sys.argv[1:])
"""


def test_a_kill_while_an_edit_is_written_loses_only_that(place, engine, model):
    write({"target": YELLOW, "name": "y"}, {"target": RED, "name": "r"})
    script = KILLED.format(config=sage.method("sage").recommended(model).as_dict())
    run = subprocess.run([sys.executable, "-c", script, "batch", "t.jsonl", "--out=out", *FLAGS], capture_output=True,
                         env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True)
    assert run.returncode == -signal.SIGKILL and run.stdout == "out/y.png\n"
    assert made() == {"y.png", "manifest.jsonl"}  # what was half-written is hidden
    assert batch() == 0 and [e.target for e in engine] == [RED]


def test_two_at_once_are_refused(engine, capsys):
    from sage.batch.manifest import Manifest
    write({"target": YELLOW})
    with Manifest(Path("out")):
        assert batch() == 2
    assert "another sage batch" in capsys.readouterr().err and not engine


# ---- what it refuses


def test_nothing_but_its_own_edits_is_overwritten(engine, capsys):
    Path("out").mkdir()
    Path("out/mine.png").write_bytes(Path("mug.png").read_bytes())
    Path("out/note.png").write_text("no picture")
    (Path("out") / "in.png").write_bytes(Path("mug.png").read_bytes())
    write({"target": YELLOW, "name": "mine"}, {"target": YELLOW, "name": "note"},
          {"target": YELLOW, "name": "in", "picture": "out/in.png"}, {"target": YELLOW, "name": "good"})
    assert batch() == 1 and len(engine) == 1
    err = capsys.readouterr().err
    assert err.count("is no edit of ours") == 2 and "would be overwritten" in err
    assert Path("out/mine.png").read_bytes() == Path("mug.png").read_bytes() == Path("out/in.png").read_bytes()


def test_nothing_is_written_outside_the_folder(engine, place):
    Path("out").mkdir()
    Path("elsewhere").mkdir()
    Path("out/link").symlink_to(place / "elsewhere")
    Path("out/file.png").symlink_to(place / "elsewhere/file.png")
    names = ["../x", "/tmp/x", f"{place}/x", "a/../../x", "link/x", "file", "C:\\x", "..", "~/x/../..", "a//b",
             "\\\\h\\x"]
    write(*({"target": YELLOW, "out": name} for name in names))
    assert batch() == 1 and not engine
    assert all(line["status"] == "failed" for line in manifest()) and len(manifest()) == len(names)
    assert not list(Path("elsewhere").iterdir()) and made() == {"manifest.jsonl"}
    assert {p.name for p in place.iterdir()} == {"mug.png", "out", "elsewhere", "t.jsonl"}


def test_an_instruction_makes_the_target_of_its_row(engine, capsys):
    write({"instruction": "make the mug yellow", "name": "a"}, {"target": RED, "instruction": " ", "name": "b"},
          {"instruction": "sing", "name": "c"}, {"target": RED, "instruction": "make it red", "name": "d"})
    assert batch() == 1
    assert [e.target for e in engine] == [follow("make the mug yellow", SOURCE), RED] and "yellow" in engine[0].target
    lines = {line["row"]: line for line in manifest()}
    assert lines[1]["target"] == engine[0].target == read_settings("out/a.png")["target"]
    assert lines[1]["notes"] == [f"'make the mug yellow' makes the target prompt: {engine[0].target}", "a note"]
    assert lines[2]["notes"] == ["a note"]
    assert "is not understood" in lines[3]["reason"] and "give one of them" in lines[4]["reason"]
    Path("t.csv").write_text(f"picture,source,instruction\nmug.png,\"{SOURCE}\",make the mug red\n")
    assert batch(table="t.csv") == 0 and engine[-1].target == follow("make the mug red", SOURCE)


@pytest.mark.parametrize("cells, word", [
    ({"picture": "gone.png"}, "does not exist"), ({"picture": "."}, "is a folder"),
    ({"picture": "t.jsonl"}, "no picture"), ({"picture": "/dev/zero"}, "no plain file"),
    ({"target": "mug " * 99}, "too many"),
    ({"replace": "green,red"}, "'green' is not in the prompt"), ({"picture": "p" * 5000}, "cannot be read")])
def test_a_bad_row_is_reported_and_skipped(engine, capsys, cells, word):
    write({"target": YELLOW} | cells, {"target": RED})
    assert batch() == 1 and [e.target for e in engine] == [RED]
    assert word in capsys.readouterr().err and "0002-mug.png" in made()


@pytest.mark.parametrize("command, word", [
    (["gone.csv", "--out=out"], "does not exist"), (["t.jsonl"], "--out"),
    (["t.jsonl", "--out=mug.png"], "not a folder"),
    (["t.jsonl", "--out=out", "--steps=0"], "steps"), (["t.jsonl", "--out=out", "--model=sd-9"], "sd-9"),
    (["empty.csv", "--out=out"], "no rows"), (["t.jsonl", "--out=out", "--stpes=1"], "--stpes")])
def test_mistakes_of_the_whole_exit_with_2_and_write_nothing(engine, capsys, command, word):
    write({"target": YELLOW})
    Path("empty.csv").write_text("picture,source,target\n")
    try:
        status = cli.main(["batch", *command])
    except SystemExit as error:
        status = error.code
    out, err = capsys.readouterr()
    assert (status, out, err.count("\n")) == (2, "", 1) and word in err and not Path("out").exists()


def test_no_model_is_loaded_for_a_table_without_a_good_row(engine, monkeypatch, capsys):
    monkeypatch.setattr(sage, "load_model", None)
    write({"target": ""}, {"picture": 3})
    assert batch() == 1 and "2 of 2 rows failed" in capsys.readouterr().err and len(manifest()) == 2


def test_a_rows_text_cannot_write_to_the_terminal(engine, capsys):
    write({"target": YELLOW, "picture": "\u202e\u2028gone.png"}, {"target": YELLOW, "name": "=1+1"})
    assert batch() == 1 and "=1+1.png" in made()
    err = capsys.readouterr().err
    assert "\u2028" not in err and "\u202e" not in err and err.count("\n") == 2
