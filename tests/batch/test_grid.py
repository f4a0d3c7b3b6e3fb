"""A grid of edits: its cells, its page, and going on where it was."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from sage.batch.grid import Axis, Grid
from sage.commands import main as cli
from sage.commands.grid import plan, read_axis
from sage.errors import SettingsError
from sage.method import method
from sage.models.sites import Sites
from sage.pictures import read_settings

ROOT = Path(__file__).resolve().parents[2]
MUG = ROOT / "examples" / "mug.png"
ASKED = ["grid", str(MUG), "--model", "stilllife", "--source", "a blue mug", "--target", "a red mug", "--method",
         "plain", "--steps", "2", "--quiet"]
SITES = Sites([SimpleNamespace(kind="cross", place="down", level=0)])
STUB = SimpleNamespace(name="stub", recommends={}, distilled=False, sites=lambda: SITES)


def test_every_combination_is_made_once_and_holds_its_settings(tmp_path, capsys, monkeypatch):
    asked = [*ASKED, "--x", "guidance_scale=1,3", "--y", "target=a red mug|a green mug", "--out", str(tmp_path)]
    assert cli.main(asked) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "sheet.png"), str(tmp_path / "index.html")]
    for x, scale in enumerate((1.0, 3.0), 1):
        for y, target in enumerate(("a red mug", "a green mug"), 1):
            record = read_settings(tmp_path / f"{x}-{y}-1.png")
            assert record["settings"]["guidance_scale"] == scale and record["target"] == target
            assert record["settings"]["steps"] == 2
    page = (tmp_path / "index.html").read_text()
    assert page.count("<img") == 4 and "guidance scale 3" in page and "a green mug" in page
    assert Image.open(tmp_path / "sheet.png").width > 3 * 256

    (tmp_path / "2-1-1.png").write_bytes((tmp_path / "1-1-1.png").read_bytes())  # another edit in its place
    kept, made = (tmp_path / "1-1-1.png").stat().st_mtime_ns, []
    from sage.batch import grid
    real = grid.edit_batch
    monkeypatch.setattr(grid, "edit_batch", lambda *a, **k: made.append(a[3].guidance_scale) or real(*a, **k))
    assert cli.main(asked) == 0
    assert made == [3.0] and (tmp_path / "1-1-1.png").stat().st_mtime_ns == kept
    assert read_settings(tmp_path / "2-1-1.png")["settings"]["guidance_scale"] == 3.0
    assert cli.main(["edit", str(MUG), "--config-from", str(tmp_path / "2-2-1.png"), "--out",
                     str(tmp_path / "again.png"), "--quiet"]) == 0  # its inversion was shared, which changes nothing
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "2-2-1.png").read_bytes()


def test_a_third_axis_is_a_table_after_the_other(tmp_path):
    asked = [*ASKED, "--steps", "1", "--x", "guidance_scale=1,3", "--z", "target=a red mug|a green mug"]
    assert cli.main([*asked, "--out", str(tmp_path)]) == 0
    for x, scale in enumerate((1.0, 3.0), 1):
        for z, target in enumerate(("a red mug", "a green mug"), 1):
            record = read_settings(tmp_path / f"{x}-1-{z}.png")
            assert (record["settings"]["guidance_scale"], record["target"]) == (scale, target)
    page = (tmp_path / "index.html").read_text()
    assert page.count("<table") == page.count("<h2") == 2
    assert page.index("<h2>a red mug") < page.index("<h2>a green mug")
    sheet = Image.open(tmp_path / "sheet.png")
    assert sheet.height > 2 * 256 and sheet.width > 3 * 256


def test_methods_are_an_axis_each_with_its_own_settings(tmp_path):
    assert cli.main([*ASKED, "--x", "method=plain,sdedit", "--out", str(tmp_path)]) == 0
    assert [read_settings(tmp_path / f"{i}-1-1.png")["method"] for i in (1, 2)] == ["plain", "sdedit"]


def test_what_a_methods_name_stands_for_is_of_its_own_cells_alone():
    args = cli.make_parser(["grid", "--method", "p2p+direct"]).parse_args(
        ["grid", str(MUG), "--source", "a", "--target", "b", "--model", "stilllife", "--x", "method=p2p,p2p+negative",
         "--method", "p2p+direct", "--steps", "3", "--prediction-type", "epsilon"])
    job = plan(args)
    grid = Grid(job.image, job.picture, job.source, job.target, job.method, job.changes,
                tuple(Axis(*axis) for axis in job.axes), job.folder)
    assert [(cell.config.inversion, cell.config.steps) for cell in grid.cells(STUB)] == [("ddim", 3), ("negative", 3)]
    alone = replace(grid, axes=(Axis("seed", (1,)), Axis("", ("",)), Axis("", ("",))))
    assert [cell.config.inversion for cell in alone.cells(STUB)] == ["direct"]


def test_the_report_says_what_was_made_what_was_there_and_what_is_to_be_known(tmp_path, capsys):
    asked = [*ASKED[:-1], "--target", "a red xylophone", "--x", "seed=1,2", "--out", str(tmp_path), "--json",
             "--prediction-type", "v_prediction"]
    for kept in (0, 2):
        assert cli.main(asked) == 0
        out, err = capsys.readouterr()
        found = json.loads(out)
        assert found["kept"] == kept and found["edits"] == [str(tmp_path / f"{i}-1-1.png") for i in (1, 2)]
        assert found["sheet"] == str(tmp_path / "sheet.png") and "torch" in found["versions"]
        assert ("'xylophone'" in err) == (not kept) == any("'xylophone'" in note for note in found["notes"])
        assert ("2 of 2 edits were there already" in err) == bool(kept)
    assert read_settings(tmp_path / "1-1-1.png")["prediction_type"] == "v_prediction"


def test_published_settings_are_those_of_each_cells_method(tmp_path):
    asked = ["grid", str(MUG), "--model", "stilllife", "--source", "a blue mug", "--target", "a red mug", "--published",
             "--x", "method=sage,plain", "--quiet", "--out", str(tmp_path)]
    assert cli.main(asked) == 2  # nobody published plain sampling
    assert not list(tmp_path.iterdir())
    grid = Grid(None, {}, "a", "b", "sage", {}, (Axis("seed", (1,)), Axis("", ("",)), Axis("", ("",))), tmp_path,
                preset="published")
    [cell] = grid.cells(STUB)
    assert cell.config == method("sage").preset("published", seed=1)


@pytest.mark.parametrize("axes, words", [
    (["--x", "guidance_scale"], "is no axis"), (["--x", "guidance_scale=1,"], "is no axis"),
    (["--x", "guidance=1"], "did you mean guidance_scale"), (["--x", "guidance_scale=much"], "no number"),
    (["--x", "guidance_scale=1000"], "at most 100"), (["--x", "method=nosuch"], "no method"),
    (["--x", "seed=1,2", "--y", "seed=1"], "the same"),
    (["--x", "seed=" + ",".join(map(str, range(50))), "--y", "steps=" + ",".join(map(str, range(1, 50)))], "at most")])
def test_mistakes_are_one_line_before_a_model_is_loaded(tmp_path, capsys, monkeypatch, axes, words):
    monkeypatch.setattr("sage.commands.running.load", lambda *_: pytest.fail("too late"))
    assert cli.main([*ASKED, *axes, "--out", str(tmp_path)]) == 2
    assert words in capsys.readouterr().err


def test_an_axis_that_is_not_given_has_one_value():
    assert read_axis(None, method("plain")) == ("", ("",))
    assert read_axis("steps=3,4", method("plain")) == ("steps", (3, 4))
    with pytest.raises(SettingsError):
        read_axis("=1", method("plain"))
