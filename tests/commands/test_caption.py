"""`sage caption`, `--source auto` and `--instruction`, with the engine's stub."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib import get_data_path
from PIL import Image

import sage
from sage.bench.encoder import bundled
from sage.commands import main as cli
from sage.commands.caption import caption
from sage.stilllife import Scene, Thing, render
from sage.stilllife.prompts import prompt
from tests.commands.test_edit import Engine

ROOT = Path(__file__).resolve().parents[2]
SCENE = Scene(Thing("mug", "blue", "shiny"), floor="grass", background="forest")
needs_encoder = pytest.mark.skipif(bundled() is None, reason="the bundled encoder is not here")


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "mug.png"
    Image.fromarray((render(SCENE, 128) * 255 + 0.5).astype(np.uint8)).save(path)
    return path


@pytest.fixture
def engine(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return Engine(monkeypatch)


@needs_encoder
def test_a_still_life_is_described_in_full(picture, capsys):
    assert cli.main(["caption", str(picture)]) == 0
    assert capsys.readouterr().out.strip() == prompt(SCENE)
    assert cli.main(["caption", str(picture), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["caption"] == prompt(SCENE) and said["read"]["form"]["value"] == "mug"
    assert said["read"]["form"]["probability"] > 0.5 and said["unsure"] == []


@needs_encoder
def test_an_empty_table_is_said_to_be_a_guess(picture, engine, capsys):
    table, guess = str(ROOT / "examples" / "table.png"), "is a guess"
    assert cli.main(["caption", table]) == 0 and guess in capsys.readouterr().err
    assert cli.main(["edit", table, "--source", "auto", "--target", "a red mug"]) == 0
    assert guess in capsys.readouterr().err
    assert cli.main(["caption", str(picture)]) == 0 and guess not in capsys.readouterr().err


@needs_encoder
def test_of_a_photograph_a_note_says_that_it_is_no_still_life(picture, engine, capsys, tmp_path):
    path = tmp_path / "photograph.png"
    sage.pictures.open_picture(get_data_path() + "/sample_data/grace_hopper.jpg").resize((128, 128)).save(path)
    assert cli.main(["caption", str(picture)]) == 0 and "note" not in capsys.readouterr().err
    assert cli.main(["caption", str(path)]) == 0
    [said] = [line for line in capsys.readouterr().err.splitlines() if "unlike" in line]
    assert said.startswith("sage: note: the picture is unlike those that stilllife was trained on")
    assert "most like" in said
    assert cli.main(["caption", str(path), "--json"]) == 0
    assert said.endswith(json.loads(capsys.readouterr().out)["notes"][0])
    given = ["--source", "auto", "--target", "a red mug"]
    assert cli.main(["edit", str(path), *given]) == 0 and said in capsys.readouterr().err
    assert cli.main(["edit", str(picture), *given]) == 0 and "unlike" not in capsys.readouterr().err
    assert cli.main(["edit", str(path), *given, "--quiet"]) == 0 and not capsys.readouterr().err


@needs_encoder
def test_source_auto_is_shown_and_can_be_corrected(picture, engine, capsys, monkeypatch):
    given = ["edit", str(picture), "--source", "auto", "--instruction", "make the mug red"]
    assert cli.main(given) == 0
    edit, = engine.edits
    assert edit.source == prompt(SCENE) and edit.target == prompt(SCENE).replace("blue", "red")
    assert f"the picture is taken to show: {prompt(SCENE)}" in capsys.readouterr().err

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdin", Terminal("a blue cup\n"))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert cli.main([*given[:-1], "make the cup green", "--model", "stilllife", "--method", "sage"]) == 0
    assert engine.edits[-1].source == "a blue cup" and engine.edits[-1].target == "a green cup"


def test_instructions_make_targets_and_notes_say_so(picture, engine, capsys):
    assert cli.main(["edit", str(picture), "--source", "a mug", "--instruction", "make it red", "--instruction",
                     "turn it into a sketch"]) == 0
    assert [edit.target for edit in engine.edits] == ["a red mug", "a pencil sketch of a mug"]
    assert "'make it red' makes the target prompt: a red mug" in capsys.readouterr().err


def test_a_language_model_is_asked_only_where_one_is_named(picture, engine, capsys, monkeypatch):
    asked = []
    monkeypatch.setattr("sage.prompts.language_model.Served._answer",
                        lambda self, body: asked.append((self.address, json.loads(body))) or "a mug that smiles")
    given = ["edit", str(picture), "--source", "a mug", "--instruction", "make it smile"]
    assert cli.main(given) == 2 and not asked and not engine.edits
    assert cli.main([*given, "--llm", "http://localhost:9/v1", "--llm-model", "tiny"]) == 0
    assert engine.edits[-1].target == "a mug that smiles" and asked[0][0] == "http://localhost:9/v1/chat/completions"
    said = capsys.readouterr().err
    assert "sent to http://localhost:9/v1/chat/completions" in said and "make it smile" in said


@pytest.mark.parametrize("flags, said", [
    (["--instruction", "make it red", "--target", "a red mug"], "give one of them"),
    (["--instruction", "make it red", "--llm", "http://localhost:9"], "both --llm and --llm-model"),
    (["--target", "a", "--llm", "http://localhost:9", "--llm-model", "x"], "there is none: give --instruction"),
    (["--instruction", "sing"], "is not understood")])
def test_what_does_not_fit_together_is_one_line(picture, engine, capsys, flags, said):
    assert cli.main(["edit", str(picture), "--source", "a mug", *flags]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1 and not engine.edits


def test_without_the_encoder_one_line_says_so(monkeypatch, picture):
    monkeypatch.setattr("sage.bench.encoder.bundled", lambda: None)
    with pytest.raises(sage.SageError, match="write the source prompt yourself"):
        caption(Image.open(picture))
