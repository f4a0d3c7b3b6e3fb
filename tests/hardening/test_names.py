"""Names that no file can have, places that may not be entered, and loops: one line, whoever named them and where."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

import sage
from sage import pictures
from sage.batch.manifest import MANIFEST, Manifest
from sage.batch.sheets import write_sheets
from sage.batch.table import read_table
from sage.bench.files import BenchmarkError
from sage.bench.runner import read_manifests
from sage.commands import main as cli
from sage.errors import ModelError, PictureError, SettingsError
from sage.files import LONGEST_NAME, Journal, named_after, unwritable
from sage.models import known
from sage.pictures.originals import identity
from tests import small
from tests.hardening.test_settings_fuzz import RECORD

ROOT = Path(__file__).resolve().parents[2]
LONG, PROMPTS = "x" * 300, ["--source", "a cat", "--target", "a dog"]


def one_line(capsys, *words: str) -> str:
    try:
        status = cli.main(list(words))
    except SystemExit as end:  # as argparse has it
        status = end.code
    assert status == 2, words
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.isascii(), words
    return error


@pytest.fixture
def picture(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64)).save("p.png")
    return "p.png"


@contextmanager
def as_nobody():
    """As a user whom permissions hold back, which root is not."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def closed(tmp_path):
    """A folder that may not be entered."""
    place = tmp_path / "closed"
    place.mkdir()
    (place / "inner").mkdir()
    for folder in (tmp_path, *tmp_path.parents[:3]):
        if folder.stat().st_uid == os.getuid() and len(folder.parts) > 2:
            folder.chmod(0o755)
    place.chmod(0)
    yield place
    place.chmod(0o755)


LIKE_THEM = ("~nosuchuser/x", f"{LONG}.safetensors", f"{LONG}.py:NAME", f"{LONG}/x", f"~{LONG}")


@pytest.mark.parametrize("name", (LONG, "~nosuchuser", "", "a\0b",
                                  *(pytest.param(name, marks=pytest.mark.slow) for name in LIKE_THEM)))
def test_a_model_that_no_file_can_be(picture, capsys, name):
    with pytest.raises(ModelError):
        known.find_model(name)
    with pytest.raises(ModelError):
        sage.load_model(Path(name) if name else name)
    if "\0" not in name:
        one_line(capsys, "edit", picture, *PROMPTS, "--model", name)
        one_line(capsys, "info", name)
        one_line(capsys, "bench", "stilllife", "--each", "1", "--out", "run", "--model", name)


def test_an_empty_name_is_not_taken_for_none(picture, capsys):
    for words in (["--model"], ["--out"], ["--config-from"], ["--trajectory"], ["--explain"], ["--tokenizer"]):
        assert f"argument {words[0]}: it is empty" in one_line(capsys, "edit", picture, *PROMPTS, *words, "")
    assert "argument IMG: it is empty" in one_line(capsys, "edit", "", *PROMPTS)
    assert "argument --data: it is empty" in one_line(capsys, "bench", "piebench", "--out", "o", "--data", "")
    assert "source prompt is empty" in one_line(capsys, "edit", picture, "--source", "", "--target", "a")
    assert cli.make_parser().parse_args(["edit", picture, *PROMPTS, "--sheet"]).sheet == ""


def test_a_home_that_nobody_has(monkeypatch):
    monkeypatch.setenv("SAGE_WEIGHTS", "~nosuchuser/weights")
    assert known.weights_dir() == Path("~nosuchuser/weights") and known.installed("sd-1.5") is None


@pytest.mark.parametrize("flag", ("--config-from", "--trajectory", "--tokenizer", "--method", "--explain", "--sheet"))
def test_other_files_of_an_edit(picture, capsys, flag):
    ending = {"--sheet": ".png", "--method": ".py:X"}.get(flag, "")
    one_line(capsys, "edit", picture, *PROMPTS, "--model", "stilllife", flag, LONG + ending)
    one_line(capsys, "generate", "a cat", "--model", LONG, "--out", f"{LONG}.png")


def test_where_a_picture_goes(picture, capsys):
    for out in (f"{LONG}.png", f"{LONG}/", f"{LONG}/e.png", "p.png/e.png"):
        assert "written" in one_line(capsys, "edit", picture, *PROMPTS, "--model", "stilllife", "--out", out)
        with pytest.raises(PictureError):
            pictures.save_picture(Image.new("RGB", (4, 4)), Path(out) if out.endswith(".png") else Path(out) / "e.png")
    assert "written" in one_line(capsys, "invert", picture, "--source", "a", "--model", "stilllife", "--out",
                                 f"{LONG}.safetensors")


def test_names_made_of_long_names_are_cut(tmp_path, monkeypatch, capsys):
    """Those of 255 bytes, to which nothing can be added, and letters of several bytes that must stay whole."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sage, "load_model", lambda *_, **__: small.make(tmp_path / "tokenizer").model, raising=False)
    name = "é" * 120 + "x" * 8 + ".png"
    small.picture().save(name)
    Path("m.safetensors").touch()
    few = ["--model", "m.safetensors", "--steps", "1", "--cross-level", "1"]
    assert cli.main(["edit", name, *PROMPTS, *few, "--sheet"]) == 0
    assert cli.main(["invert", name, "--source", "a cat", *few]) == 0
    for path in Path("out").iterdir():
        assert len(os.fsencode(path.name)) < 255 and path.name.startswith("é" * 97)
    assert len(list(Path("out").iterdir())) == 3
    assert named_after("a" * 500, ".png") == "a" * LONGEST_NAME + ".png" and named_after("a", "-b") == "a-b"


def test_pictures_in_tables(tmp_path):
    (tmp_path / "t.csv").write_text(f"picture,source,target\n{LONG}.png,a,b\n{'y/' * 3000}p.png,a,b\n")
    for row in read_table(tmp_path / "t.csv"):
        for read in (identity, pictures.open_picture):
            with pytest.raises(PictureError, match="cannot be read|does not exist"):
                read(row.picture)


def test_pictures_in_a_mapping_file(tmp_path, capsys):
    for name, picture in (("long", f"0_kind/{LONG}.png"), ("deep", "d/" * 2000 + "p.png")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "mapping_file.json").write_text(json.dumps({"a": {
            "image_path": picture, "original_prompt": "a [cat]", "editing_prompt": "a [dog]", "editing_type_id": "1",
            "editing_instruction": "it", "blended_word": "cat dog", "mask": [0, 4]}}))
        (folder / "results").mkdir()
        one_line(capsys, "score", str(folder / "results"), "--against", str(folder))


def test_a_place_that_may_not_be_entered(picture, closed, capsys):
    inner = str(closed / "inner")
    with as_nobody():
        if not os.access(ROOT / "weights", os.R_OK | os.X_OK, effective_ids=True):
            pytest.skip("the checkout lies where others may not go, and so does its model")
        for out in (f"{inner}/e.png", f"{inner}/", str(closed / "e.png"), f"{inner}/deep/e.png"):
            assert "written" in one_line(capsys, "edit", picture, *PROMPTS, "--model", "stilllife", "--out", out)
        assert "written" in one_line(capsys, "invert", picture, "--source", "a", "--model", "stilllife", "--out",
                                     f"{inner}/t.safetensors")
        assert "written" in one_line(capsys, "generate", "a cat", "--model", "stilllife", "--out", f"{inner}/")
        for words in (["edit", f"{inner}/p.png", *PROMPTS], ["edit", picture, *PROMPTS, "--model", inner],
                      ["edit", picture, *PROMPTS, "--config-from", f"{inner}/old.png"], ["info", f"{inner}/p.png"],
                      ["edit", picture, "--target", "a", "--trajectory", f"{inner}/t.safetensors"], ["info", inner],
                      ["batch", f"{inner}/t.csv", "--out", "o"], ["edit", picture, *PROMPTS, "--tokenizer", inner],
                      ["score", inner, "--against", inner], ["methods", f"{inner}/m.py:M"],
                      ["edit", picture, *PROMPTS, "--explain", f"{inner}/why", "--model", "stilllife"]):
            one_line(capsys, *words)
        for call in (lambda: Manifest(closed / "inner"), lambda: Manifest(closed)):
            with pytest.raises(PictureError):
                call()


@pytest.mark.parametrize("make", ("folder", "loop", "dangling", "device"))
def test_what_stands_where_a_manifest_should(tmp_path, make):
    path = tmp_path / MANIFEST
    {"folder": path.mkdir, "loop": lambda: path.symlink_to(path), "dangling": lambda: path.symlink_to("/no/such/place"),
     "device": lambda: path.symlink_to("/dev/zero")}[make]()
    with pytest.raises(PictureError, match=MANIFEST):
        Manifest(tmp_path)
    with pytest.raises(BenchmarkError, match=MANIFEST):
        read_manifests(tmp_path)


@pytest.mark.parametrize("make", ("folder", "loop"))
def test_what_stands_where_a_lock_should(tmp_path, make):
    path = tmp_path / ".lock"
    path.mkdir() if make == "folder" else path.symlink_to(path)
    with pytest.raises(SettingsError):
        Journal(tmp_path / "j.jsonl", path, SettingsError, "busy")


def test_loops_and_folders_elsewhere(picture, capsys):
    Path("loop").symlink_to("loop")
    for words in (["edit", "loop", *PROMPTS], ["edit", picture, *PROMPTS, "--model", "loop"], ["info", "loop"],
                  ["edit", picture, *PROMPTS, "--model", "stilllife", "--out", "loop/e.png"],
                  ["edit", picture, *PROMPTS, "--tokenizer", "loop"], ["score", "loop", "--against", "loop"],
                  ["batch", "loop", "--out", "o"]):
        one_line(capsys, *words)
    assert "loop" in unwritable(Path("loop")) and "loop" in unwritable(Path("loop/e.png"))


def test_a_folder_where_a_further_contact_sheet_should_be(tmp_path):
    (tmp_path / "contact-sheet.png").mkdir()
    assert write_sheets([], tmp_path, None) == [] and (tmp_path / "contact-sheet.png").is_dir()


def test_a_working_folder_that_is_gone(tmp_path):
    """Whoever stands in it is told so, or has what needs no folder."""
    gone = tmp_path / "gone"
    gone.mkdir()
    done = subprocess.run(["sh", "-c", f'cd {gone} && rmdir {gone} && PYTHONPATH={ROOT} {sys.executable} -m sage edit '
                           'p.png --source a --target b --model stilllife'], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr


def test_a_record_of_any_name_is_read(tmp_path):
    path = pictures.save_picture(Image.new("RGB", (4, 4)), tmp_path / ("n" * 250 + ".png"), RECORD)
    assert pictures.read_settings(path) == RECORD
