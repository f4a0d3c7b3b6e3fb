import json
import os

import numpy as np
import pytest
from diffusers import EulerDiscreteScheduler
from PIL import Image

import sage
from sage import auto, pictures
from sage.auto import AUTO, auto_of, recorded
from sage.commands.main import main
from sage.errors import ModelError, SageError, SettingsError
from tests.hardening.soon import soon
from tests.models import tiny

SETTINGS = {"steps": 2, "guidance_scale": 3.0, "cross_fraction": 0.5, "inversion": "direct"}
PROMPTS = {"source": "a cat", "target": "a cab"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("auto") / "tiny"
    folder.mkdir()
    tiny.make(folder)
    ours = {"steps": 2, "guided_steps": 1, "self_level": 0, "cross_level": 0}
    (folder / "settings.json").write_text(json.dumps({"sage": ours}))
    return folder


@pytest.fixture
def picture(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "cat.png")
    return tmp_path / "cat.png"


@pytest.fixture
def record(folder):
    """Write what is recorded for the model."""
    def write(method="p2p+direct", settings=SETTINGS, **more):
        (folder / auto.FILE).write_text(json.dumps({"method": method, "settings": settings, **more}))
    yield write
    (folder / auto.FILE).unlink(missing_ok=True)


def test_nothing_recorded_is_sage_as_recommended(folder, picture):
    model = sage.load_model(folder)
    result = sage.edit(model, Image.open(picture), **PROMPTS, method="auto")
    assert result.settings == sage.method("sage").recommended(model)
    assert result.notes[0] == "auto takes sage: no other method is recorded for tiny"
    assert auto_of("sd-1.4").method == "sage"  # which is not on this disk


def test_a_student_that_records_nothing_takes_a_method_for_few_steps(tmp_path, picture, monkeypatch, capsys):
    assert auto_of("sd-turbo").method == "turbo-ddpm"  # which is not on this disk
    tiny.make(tmp_path / "sd-turbo", "2.x", scheduler=EulerDiscreteScheduler(timestep_spacing="trailing"))
    monkeypatch.setenv("SAGE_WEIGHTS", str(tmp_path))
    assert auto_of("sd-turbo").method == "turbo-ddpm"
    out = tmp_path / "edited.png"
    assert main(["edit", str(picture), "--model", "sd-turbo", "--source", "a cat", "--target", "a cab", "--out",
                 str(out)]) == 0
    assert pictures.read_settings(out)["method"] == "turbo-ddpm"
    assert "auto takes turbo-ddpm: sd-turbo is made for few steps" in capsys.readouterr().err
    mine = (tmp_path / "sd-turbo").rename(tmp_path / "mine")  # one that nobody knows, by the schedule in its folder
    assert auto_of(str(mine)).as_method().name == "turbo-ddpm"
    assert sage.load_model(mine).recommends[AUTO]["method"] == "turbo-ddpm"
    (mine / "scheduler" / "scheduler_config.json").write_text("[]")
    assert auto_of(str(mine)).method == "sage"


def test_what_is_recorded_is_taken_and_told(folder, picture, record):
    record(why={"date": "2026-01-01"})
    model = sage.load_model(folder)
    result = sage.edit(model, Image.open(picture), **PROMPTS, method="auto")
    assert result.settings == sage.method("p2p").defaults(model).but(**SETTINGS)
    assert result.notes[0] == "auto takes p2p+direct, as recorded for tiny"
    named = sage.edit(model, Image.open(picture), **PROMPTS, config=result.settings)
    assert np.array_equal(np.asarray(result.image), np.asarray(named.image))
    assert sage.invert(model, Image.open(picture), "a cat", method="auto").origin.method == "p2p"


def test_the_command_takes_it_and_flags_win(folder, picture, record, capsys):
    record()
    command = ["edit", str(picture), "--source", "a cat", "--target", "a cab", "--model", str(folder), "--method", AUTO]
    assert main([*command, "--out", str(picture.with_name("one.png"))]) == 0
    assert "sage: note: auto takes p2p+direct, as recorded for tiny" in capsys.readouterr().err
    assert main([*command, "--out", str(picture.with_name("two.png")), "--cross-fraction", "0.9", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    found = report["settings"][0]
    assert (found["method"], found["settings"]["cross_fraction"], found["settings"]["guidance_scale"],
            found["settings"]["inversion"]) == ("p2p", 0.9, 3.0, "direct")
    assert report["notes"][0].startswith("auto takes p2p+direct")
    assert main([*command, "--config-from", str(picture.with_name("one.png"))]) == 2
    assert "--config-from and --method auto are two sets of settings" in capsys.readouterr().err


def test_an_edit_that_names_no_method_takes_what_is_recorded(folder, picture, record, capsys):
    command = ["edit", str(picture), "--source", "a cat", "--target", "a cab", "--model", str(folder), "--json"]

    def made(name, *flags):
        assert main([*command, "--out", str(picture.with_name(name)), *flags]) == 0
        report = json.loads(capsys.readouterr().out)
        return report["settings"][0]["method"], report["notes"][:1]

    assert made("bare.png")[0] == "sage"
    record()
    assert made("recorded.png") == ("p2p", ["auto takes p2p+direct, as recorded for tiny"])
    assert made("named.png", "--method", "sage")[0] == "sage"
    assert made("again.png", "--config-from", str(picture.with_name("bare.png")))[0] == "sage"
    assert made("settings.png", "--reconstruction-scale", "3")[0] == made("one.png", "--decay=none")[0] == "sage"
    assert made("shared.png", "--guidance-scale", "3")[0] == "p2p"
    (folder / auto.FILE).write_text("{")
    assert main(command) == 2
    assert "auto.json is damaged" in capsys.readouterr().err


def test_settings_and_auto_are_one_too_many(folder, picture):
    model = sage.load_model(folder)
    with pytest.raises(SettingsError, match="auto brings its own"):
        sage.edit(model, Image.open(picture), **PROMPTS, method="auto", config=sage.EditConfig(steps=2))
    with pytest.raises(SageError, match="no method is called 'auto'"):
        sage.generate(model, "a cat", method="auto")


def test_a_record_that_is_no_plain_file_is_refused_at_once(folder, record):
    record()
    (folder / auto.FILE).unlink()
    os.mkfifo(folder / auto.FILE)
    try:
        with soon(), pytest.raises(ModelError, match="auto.json is no plain file"):
            auto_of(str(folder))
    finally:
        (folder / auto.FILE).unlink()


@pytest.mark.parametrize("text, message", [
    ("{", "is not JSON"), ("[1]", "must be an object"), ("[" * 9999, "is not JSON"),
    ('{"settings": {}}', "must have the name of a method"), ('{"method": "p2p", "settings": 3}', "must have the name"),
    ('{"method": "evil.py:Run", "settings": {}}', "must have the name of a method"),
    ('{"method": "nobody", "settings": {}}', "must have the name of a method"),
    ('{"method": "sag", "settings": {}}', "sag edits no picture"),
    ('{"method": "p2p+upside", "settings": {}}', "p2p has no inversion"),
    ('{"method": "p2p", "settings": {"wings": 2}}', "no setting 'wings'"),
    ('{"method": "p2p", "settings": {"steps": 0}}', "steps is 0: must be at least 1")])
def test_a_damaged_record_is_one_line_and_runs_nothing(folder, record, picture, capsys, text, message):
    record()
    (folder / auto.FILE).write_text(text)
    with pytest.raises(ModelError, match=message):
        auto_of(str(folder))
    assert main(["edit", str(picture), "--source", "a cat", "--target", "a cab", "--model", str(folder), "--method",
                 "auto"]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_a_record_takes_its_methods_place_in_words_only():
    taken = recorded({"method": "p2p+direct", "settings": {"steps": 7}}, "tiny").as_method()
    assert (taken.where, taken.variant["steps"], taken.variant["inversion"]) == ("p2p", 7, "direct")
    assert sage.method("p2p").variant == {}  # the one that is known by the name is as it was
