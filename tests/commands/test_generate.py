"""`sage generate` with the bundled model: what is written, that it can be repeated, and what is refused."""

import json

import numpy as np
import pytest
from PIL import Image

from sage import pictures
from sage.commands.generate import slug
from sage.commands.main import main
from sage.pictures.metadata import read_record

PROMPT = "a small red mug on grass"
QUICK = ["--model", "stilllife", "--steps", "2", "--device", "cpu"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(capsys, *args: str) -> str:
    try:
        status = main(["generate", *args])
    except SystemExit as end:
        status = end.code
    said = capsys.readouterr()
    assert status == 2 and said.out == "" and said.err.count("\n") == 1 and said.err.startswith("sage: error: ")
    return said.err


def test_a_name_without_an_ending_is_asked_about(here, capsys):
    said = refused(capsys, PROMPT, *QUICK, "--count", "2", "--out", "mugs")
    assert "--out mugs is no folder that is there" in said and "mugs.png is a file, mugs/ a new folder" in said
    assert not [*here.iterdir()]


def test_pictures_their_sheet_and_their_repetition_to_the_byte(here, capsys):
    assert main(["generate", PROMPT, *QUICK, "--method", "sag", "--sag-scale", "0.5", "--count", "2", "--seed", "4",
                 "--negative", "night", "--width", "96", "--eta", "0.5", "--sheet"]) == 0
    out = capsys.readouterr().out.split()
    assert out == [f"out/a-small-red-mug-on-grass{end}.png" for end in ("", "-2", "-sheet")]
    first, second = (Image.open(path) for path in out[:2])
    assert first.size == (96, 128) and np.abs(np.asarray(first).astype(int) - np.asarray(second)).mean() > 3
    assert Image.open(out[2]).width > 2 * 192
    record = read_record(out[1], "generate")
    assert {k: record[k] for k in ("version", "task", "method", "target", "negative", "size", "batch", "model")} == {
        "version": 2, "task": "generate", "method": "sag", "target": PROMPT, "negative": "night", "size": [96, 128],
        "batch": 1, "model": "stilllife"}
    assert record["settings"] | {"seed": 5, "sag_scale": 0.5, "steps": 2, "eta": 0.5, "guidance_scale": 3.0} == record[
        "settings"] and not {"source", "picture"} & record.keys()

    assert main(["generate", "--config-from", out[1], "--out", "again.png", "--device", "cpu"]) == 0
    assert (here / "again.png").read_bytes() == (here / out[1]).read_bytes()
    assert main(["generate", *QUICK, "--config-from", out[1], "--seed", "4", "--out", "first.png", "--json"]) == 0
    assert (here / "first.png").read_bytes() == (here / out[0]).read_bytes()
    capsys.readouterr()
    assert main(["info", out[1]]) == 0
    assert f"target: {PROMPT}" in capsys.readouterr().out


def test_a_second_thing_is_typed_as_anybody_says_it(here, capsys):
    """The bundled models hear of one by the word tiny; what a record says is repeated as it is."""
    assert main(["generate", "a mug and a cone", *QUICK, "--out", "a.png"]) == 0
    record = read_record("a.png", "generate")
    assert record["target"] == "a mug and a tiny cone" and "taken as 'a mug and a tiny cone'" in capsys.readouterr().err
    pictures.save_picture(Image.open("a.png"), "before.png", record | {"target": "a mug and a cone"})
    assert main(["generate", "--config-from", "before.png", "--device", "cpu", "--out", "again.png"]) == 0
    assert read_record("again.png", "generate")["target"] == "a mug and a cone"


def test_several_prompts_in_a_batch_and_savings(capsys):
    assert main(["generate", PROMPT, "a blue ball on sand", *QUICK, "--count", "2", "--batch", "3", "--json",
                 "--savings", "text,tiles", "--sheet", "all.png", "--out", "made/"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [record["target"] for record in told["settings"]] == [PROMPT, PROMPT, *["a blue ball on sand"] * 2]
    assert [record["settings"]["seed"] for record in told["settings"]] == [0, 1, 0, 1]
    assert told["settings"][0]["savings"] == {"references": False, "text": True, "tiles": True}
    assert told["settings"][0]["method"] == "plain" and told["settings"][0]["batch"] == 3 and told["sheet"] == "all.png"
    assert main(["generate", "--config-from", told["out"][3], "--device", "cpu", "--out", "again.png"]) == 0
    assert "was made in a batch of 3" in capsys.readouterr().err
    apart = np.asarray(Image.open("again.png")).astype(int) - np.asarray(Image.open(told["out"][3]))
    assert np.abs(apart).max() <= 1 and read_record("again.png")["batch"] == 1


def test_edits_and_pictures_from_nothing_are_not_mistaken_for_one_another(here, capsys):
    assert main(["generate", PROMPT, *QUICK, "--out", "made.png"]) == 0
    assert main(["edit", "made.png", "--source", PROMPT, "--target", "a small blue mug on grass", *QUICK,
                 "--guided-steps", "0", "--out", "edited.png"]) == 0
    capsys.readouterr()
    assert "is an edit: sage edit repeats it" in refused(capsys, "--config-from", "edited.png")
    assert main(["edit", "made.png", "--config-from", "made.png", "--target", "x", "--source", PROMPT]) == 2
    assert "was made from nothing: sage generate repeats it" in capsys.readouterr().err
    assert main(["edit", "made.png", "--method", "sag", "--source", PROMPT, "--target", "x"]) == 2
    assert "sag edits no picture" in capsys.readouterr().err


@pytest.mark.parametrize("change", (
    {"size": [64]}, {"size": [64, "64"]}, {"size": [True, 64]}, {"size": "64"}, {"batch": 0}, {"batch": True},
    {"negative": None}, {"target": 3}, {"task": "draw"}, {"task": []}, {"settings": {"sag_scale": 20}},
    {"method": "nothing"}))
def test_damaged_records_are_refused(here, capsys, change):
    record = {"version": 2, "task": "generate", "method": "sag", "settings": {}, "target": PROMPT, "negative": "",
              "size": [64, 64], "batch": 1, "model": "stilllife", "prediction_type": None, "truncate": False,
              "savings": {}, "made": {}}
    pictures.save_picture(Image.new("RGB", (8, 8)), here / "old.png", record | change)
    assert "damaged" in refused(capsys, "--config-from", "old.png")


def test_what_is_wrong_is_said_before_anything_is_made(here, capsys):
    assert "there is no prompt" in refused(capsys)
    assert "there is no prompt" in refused(capsys, " ")
    assert "count is 0" in refused(capsys, PROMPT, "--count", "0")
    assert "sage makes no pictures from noise; these do: plain, sag" in refused(capsys, PROMPT, "--method", "sage")
    assert "there is no --encode" in refused(capsys, PROMPT, "--encode", "sample")
    assert "width is 100" in refused(capsys, PROMPT, *QUICK, "--width", "100")
    assert "savings: 'speed' is none" in refused(capsys, PROMPT, *QUICK, "--savings", "speed")
    assert "cannot hold both" in refused(capsys, PROMPT, *QUICK, "--out", "a.png", "--sheet", "a.png")
    assert "two sets of settings" in refused(capsys, PROMPT, "--published", "--config-from", "old.png")
    assert not list(here.iterdir())


def test_a_prompt_names_its_file():
    assert slug(PROMPT) == "a-small-red-mug-on-grass" and slug("../../etc/passwd") == "etc-passwd"
    assert slug("ein Käse") == "ein-k-se" and slug("猫") == "picture" and len(slug("word " * 40)) <= 41
