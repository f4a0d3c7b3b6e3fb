"""A grid of edits: its cells, its page, and going on where it was."""

from pathlib import Path

import pytest
from PIL import Image

from sage.commands import main as cli
from sage.commands.grid import read_axis
from sage.errors import SettingsError
from sage.method import method
from sage.pictures import read_settings

ROOT = Path(__file__).resolve().parents[2]
MUG = ROOT / "examples" / "mug.png"
ASKED = ["grid", str(MUG), "--model", "stilllife", "--source", "a blue mug", "--target", "a red mug", "--method",
         "plain", "--steps", "2", "--quiet"]


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


def test_methods_are_an_axis_each_with_its_own_settings(tmp_path):
    assert cli.main([*ASKED, "--x", "method=plain,sdedit", "--out", str(tmp_path)]) == 0
    assert [read_settings(tmp_path / f"{i}-1-1.png")["method"] for i in (1, 2)] == ["plain", "sdedit"]


@pytest.mark.parametrize("axes, words", [
    (["--x", "guidance_scale"], "is no axis"), (["--x", "guidance_scale=1,"], "is no axis"),
    (["--x", "guidance=1"], "did you mean guidance_scale"), (["--x", "guidance_scale=much"], "no number"),
    (["--x", "guidance_scale=1000"], "at most 100"), (["--x", "method=nosuch"], "no method"),
    (["--x", "seed=1,2", "--y", "seed=1"], "the same"),
    (["--x", "seed=" + ",".join(map(str, range(50))), "--y", "steps=" + ",".join(map(str, range(1, 50)))], "at most")])
def test_mistakes_are_one_line_before_a_model_is_loaded(tmp_path, capsys, monkeypatch, axes, words):
    monkeypatch.setattr("sage.commands.grid.load", lambda *_: pytest.fail("too late"))
    assert cli.main([*ASKED, *axes, "--out", str(tmp_path)]) == 2
    assert words in capsys.readouterr().err


def test_an_axis_that_is_not_given_has_one_value():
    assert read_axis(None, method("plain")) == ("", ("",))
    assert read_axis("steps=3,4", method("plain")) == ("steps", (3, 4))
    with pytest.raises(SettingsError):
        read_axis("=1", method("plain"))
