"""`sage invert` and `sage edit --trajectory`, with the bundled model at few steps."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import sage
from sage import pictures
from sage.commands import main as cli
from sage.trajectory.label import read_label

ROOT = Path(__file__).resolve().parents[2]
SOURCE = "a photograph of a big shiny blue mug on stone tiles"
TARGETS = SOURCE.replace("blue", "yellow"), SOURCE.replace("blue", "red")
INVERT = ["invert", "mug.png", "--source", SOURCE, "--model", "stilllife", "--steps", "3"]
EDIT = ["edit", "mug.png", "--trajectory", "out/mug-trajectory.safetensors"]


@pytest.fixture(scope="module")
def model():
    return sage.load_model("stilllife", device="cpu")


@pytest.fixture
def loads(monkeypatch, tmp_path, model):
    """The models that were asked for, in a folder with a picture."""
    asked = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sage, "load_model", lambda name, **options: asked.append(name) or model, raising=False)
    (tmp_path / "mug.png").write_bytes((ROOT / "examples" / "mug.png").read_bytes())
    return asked


@pytest.fixture(scope="module")
def made(model, tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("made") / "t.safetensors"
    config = sage.method("sage").recommended(model).but(steps=3)
    image = pictures.open_picture(ROOT / "examples" / "mug.png")
    return sage.save_trajectory(sage.invert(model, image, SOURCE, config), path, model, name="mug.png").read_bytes()


@pytest.fixture
def inverted(loads, made):
    Path("out").mkdir()
    Path("out/mug-trajectory.safetensors").write_bytes(made)
    return loads


def run(*arguments: str) -> None:
    assert cli.main(list(arguments)) == 0


def one_error(capsys, *arguments: str) -> str:
    capsys.readouterr()
    try:
        assert cli.main(list(arguments)) == 2
    except SystemExit as exit:
        assert exit.code == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("sage: error: ") and err.count("\n") == 1, err
    return err


def test_a_second_thing_is_typed_as_anybody_says_it(loads):
    """The bundled models hear of one by the word tiny; an edit of the trajectory takes its source as it is."""
    run("invert", "mug.png", "--source", "a mug, a cone", *INVERT[4:], "--out", "t.safetensors", "--quiet")
    assert read_label("t.safetensors").source[0].text == "a mug, a tiny cone"
    run("edit", "mug.png", "--trajectory", "t.safetensors", "--target", "a cup and a cone", "--out", "o.png", "--quiet")
    record = pictures.read_settings("o.png")
    assert (record["source"], record["target"]) == ("a mug, a tiny cone", "a cup and a tiny cone")


def test_an_edit_from_a_trajectory_is_the_edit_without_it(loads, capsys):
    run(*INVERT)
    out, err = capsys.readouterr()
    assert out == "out/mug-trajectory.safetensors\n"
    assert err == f"sage: note: {out.strip()} takes {Path(out.strip()).stat().st_size / 1e6:.1f} MB\n"
    run(*EDIT, "--target", TARGETS[0], "--target", TARGETS[1], "--sheet", "a.png", "--out", "a/")
    shared = ["--source", SOURCE, "--model", "stilllife", "--method", "sage", "--steps", "3"]
    run("edit", "mug.png", *shared, "--target", TARGETS[0], "--target", TARGETS[1], "--sheet", "b.png", "--out", "b/")
    for name in ("mug-edit.png", "mug-edit-2.png"):
        assert Path("a", name).read_bytes() == Path("b", name).read_bytes()
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
    run("edit", "mug.png", "--config-from", "a/mug-edit-2.png", "--out", "c.png")
    assert Path("c.png").read_bytes() == Path("b/mug-edit-2.png").read_bytes()
    assert loads == ["stilllife"] * 4


def test_flags_win_where_the_inversion_does_not_depend_on_them(inverted, model):
    run(*EDIT, "--target", TARGETS[0], "--guidance-scale", "3", "--blend", "none", "--source", f" {SOURCE}  ",
        "--steps", "3", "--out", "a.png")
    record = pictures.read_settings("a.png")
    assert (record["model"], record["settings"]["guidance_scale"]) == ("stilllife", 3.0)
    assert record["settings"] == sage.method("sage").recommended(model).but(
        steps=3, guidance_scale=3.0, blend=None).as_dict()


REFUSED = {
    "no target": ([], "--target is missing"),
    "steps": (["--target", TARGETS[0], "--steps", "4"], "--steps 4 contradicts out/mug-trajectory.safetensors, which"),
    "spacing": (["--target", TARGETS[0], "--spacing", "trailing"], "--spacing trailing contradicts"),
    "size": (["--target", TARGETS[0], "--size", "96"], "--size 96 contradicts"),
    "fit": (["--target", TARGETS[0], "--fit", "squash"], "--fit squash contradicts"),
    "source": (["--target", TARGETS[0], "--source", "a green mug"], "--source contradicts"),
    "published": (["--target", TARGETS[0], "--published"], "--published and --trajectory are two sets of settings"),
    "record": (["--config-from", "a.png"], "--config-from and --trajectory are two sets"),
    "phrase": (["--target", TARGETS[0], "--reweight", "green:2"], "'green' is not in the prompt"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_contradicts_the_trajectory_is_one_line_before_a_model_is_loaded(inverted, capsys, case):
    pictures.save_picture(Image.new("RGB", (4, 4)), "a.png", {
        "source": SOURCE, "target": TARGETS[0], "model": "stilllife", "config": {}, "prediction_type": None,
        "truncate": False, "picture": {"name": "mug.png", "sha256": "0"}, "made": {}})
    arguments, said = REFUSED[case]
    assert said in one_error(capsys, *EDIT, *arguments)
    assert inverted == []


def test_another_picture_is_one_line(inverted, capsys):
    pictures.open_picture("mug.png").rotate(90).save("other.png")
    said = one_error(capsys, "edit", "other.png", *EDIT[2:], "--target", TARGETS[0])
    assert "is the trajectory of another picture (mug.png)" in said and inverted == []
    pictures.open_picture("mug.png").save("same.bmp")
    run("edit", "same.bmp", *EDIT[2:], "--target", TARGETS[0], "--quiet")


def test_maps_that_were_not_recorded_are_missed(inverted, capsys):
    assert "no cross-attention maps" in one_error(capsys, *EDIT, "--target", TARGETS[0], "--replace", "auto",
                                                  "--replace-fraction", "1", "--quiet")
    assert sorted(os.listdir("out")) == ["mug-trajectory.safetensors"]


def test_a_model_of_ones_own_must_be_named(inverted, made, capsys):
    Path("out/mug-trajectory.safetensors").write_bytes(made.replace(b'\\"stilllife\\"', b'\\"/etc/pass\\"'))
    assert "say where it is with --model" in one_error(capsys, *EDIT, "--target", TARGETS[0])
    run(*EDIT, "--target", TARGETS[0], "--model", "stilllife")


def test_a_damaged_file_is_one_line(inverted, made, capsys):
    for damaged, said in ((made[:5000], "cut short"), (made[:-1] + bytes([made[-1] ^ 1]), "is damaged")):
        Path("out/mug-trajectory.safetensors").write_bytes(damaged)
        assert said in one_error(capsys, *EDIT, "--target", TARGETS[0], "--quiet")
    assert "gone does not exist" in one_error(capsys, *EDIT[:-1], "gone", "--target", TARGETS[0])


def test_reweighting_every_pass_needs_the_target_for_the_inversion(loads, capsys):
    everywhere = ["--reweight", "mug:2", "--reweight-passes", "all"]
    assert "--target is missing" in one_error(capsys, *INVERT, *everywhere) and loads == []
    run(*INVERT, *everywhere, "--target", TARGETS[0], "--quiet")
    run(*EDIT, "--target", TARGETS[0], "--out", "a.png")
    run("edit", "mug.png", *INVERT[2:], *everywhere, "--method", "sage", "--target", TARGETS[0], "--out", "b.png")
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
    before = sorted(os.listdir("out"))  # the first of several edits would be right, and is not begun
    assert "other reweighting" in one_error(capsys, *EDIT, "--target", TARGETS[0], "--target", "a big mug", "--quiet")
    assert sorted(os.listdir("out")) == before


def test_invert_writes_where_it_is_told_and_over_no_model(loads, capsys):
    run(*INVERT, "--out", "a/b.safetensors", "--quiet")
    run(*INVERT, "--out", "a/", "--json")
    first, report = capsys.readouterr().out.split("\n", 1)
    report = json.loads(report)
    assert first == "a/b.safetensors" and report["out"] == "a/mug-trajectory.safetensors"
    assert report["bytes"] == Path(report["out"]).stat().st_size and report["settings"]["settings"]["steps"] == 3
    run(*INVERT, "--out", "a", "--quiet")
    run(*INVERT, "--out", "a/b.safetensors", "--quiet")
    assert sorted(os.listdir("a")) == ["b.safetensors", "mug-trajectory-2.safetensors", "mug-trajectory.safetensors"]
    Path("model.safetensors").write_bytes(b"weights")
    assert "exists and is no trajectory" in one_error(capsys, *INVERT, "--out", "model.safetensors")
    assert "written as .safetensors" in one_error(capsys, *INVERT, "--out", "t.png")
    assert "--source is missing" in one_error(capsys, *INVERT[:2])
    assert "'cup' is not in the prompt" in one_error(capsys, *INVERT, "--replace", "cup,mug")
    assert len(loads) == 4


def test_info_tells_a_trajectory_from_a_model(inverted, capsys):
    run("info", EDIT[-1])
    out = capsys.readouterr().out
    assert "picture: mug.png\n" in out and f"source: {SOURCE}\n" in out and "  steps: 3\n" in out
    run("info", EDIT[-1], "--json")
    assert json.loads(capsys.readouterr().out)["model fingerprint"] == read_label(EDIT[-1]).fingerprint
    Path("m.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    assert "trajectory" not in one_error(capsys, "info", "m.safetensors")


def test_mistakes_are_answered_without_torch(inverted):
    code = ("import sys; from sage.commands.main import main\n"
            "assert main(sys.argv[1:]) == 2\n"
            "assert not {'torch', 'transformers', 'huggingface_hub'} & sys.modules.keys(), 'imported'")
    for arguments in ([*EDIT, "--target", TARGETS[0], "--steps", "9"], [*INVERT, "--replace", "x,y"]):
        subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True,
                       env=os.environ | {"PYTHONPATH": str(ROOT)})
