"""Two processes that write the same names at once: both end well, and nobody's picture is lost or half."""

import os
import time

import pytest
from PIL import Image

import sage
from sage import EditConfig, pictures
from sage.commands import main as cli
from tests import small
from tests.hardening.faults.killing import ended, started, visible

PROMPTS = ["--source", "a cat on a mat", "--target", "a dog on a mat"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    model = small.make(tmp_path / "tokenizer").model
    # So that what is loaded on first use is there already.
    sage.edit(model, small.picture(), "a cat", "a dog", EditConfig(steps=1, cross_level=1))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sage, "load_model", lambda *_, **__: model, raising=False)
    small.picture().save("p.png")
    (tmp_path / "m.safetensors").touch()
    return tmp_path


def together(*commands: list[str]) -> None:
    """Commands in a process each, which begin at the same moment and have to end well."""
    moment = time.monotonic() + 0.3

    def work(command):
        time.sleep(max(0.0, moment - time.monotonic()))
        return cli.main([*command, "--model", "m.safetensors", "--quiet"])

    processes = [started(lambda command=command: work(command)) for command in commands]
    assert [ended(process) for process in processes] == [0] * len(commands)


def test_two_edits_by_the_same_name_of_our_own(place):
    """Whoever comes second takes the next name, though the first was free when it began."""
    edit = ["edit", "p.png", *PROMPTS, "--method", "plain", "--steps"]
    together([*edit, "2"], [*edit, "3"])
    steps = sorted(pictures.read_settings(path)["settings"]["steps"] for path in (place / "out").iterdir())
    assert steps == [2, 3] and not list((place / "out").glob(".*"))


def test_a_name_that_was_taken_meanwhile_is_left_alone(place, monkeypatch):
    path = place / "e.png"
    path.write_bytes(b"another's")
    written = pictures.save_picture(Image.new("RGB", (4, 4)), path, {"a": 1}, new=True)
    assert (written.name, path.read_bytes()) == ("e-2.png", b"another's")
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError(1, "no links here")))
    assert pictures.save_picture(Image.new("RGB", (4, 4)), place / "f.png", new=True).name == "f.png"
    assert sorted(p.name for p in place.glob("[ef]*.png")) == ["e-2.png", "e.png", "f.png"]


@pytest.mark.slow
def test_two_grids_into_one_folder(place):
    """They make the same cells; the sheet and the page are whole, and one more run finds everything there."""
    grid = ["grid", "p.png", *PROMPTS, "--method", "plain", "--x", "steps=2,3", "--y", "seed=0,1", "--out", "out"]
    together(grid, [*grid[:9], "steps=2,3,4", *grid[10:]])
    files = visible(place / "out")
    assert {"1-1-1.png", "3-2-1.png", "sheet.png", "index.html"} <= files.keys()
    assert not list((place / "out").glob(".*"))
    for name in files:
        if name.endswith(".png"):
            Image.open(place / "out" / name).load()
    assert cli.main([*grid, "--model", "m.safetensors", "--quiet"]) == 0
    after = visible(place / "out")
    assert {name: after[name] for name in after if name[0].isdigit()} == {
        name: files[name] for name in files if name[0].isdigit()}
