"""Settings in a stranger's picture: an edit that could be made, or one error; and our own come back as they were."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sage import EditConfig, pictures
from sage.commands import edit
from sage.commands import main as cli
from sage.errors import PictureError, SageError, SettingsError
from sage.models.known import KNOWN
from sage.pictures.metadata import read_record
from tests.hardening import files
from tests.hardening.ends import ends_well, tries

RECORD = {"source": "a cat", "target": "a dog", "model": "stilllife", "config": EditConfig().as_dict(),
          "prediction_type": None, "truncate": False, "picture": {"name": "p.png", "sha256": "0" * 64},
          "made": {"device": "cpu", "dtype": "float32", "versions": {"sage": "0", "torch": "0"}}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("settings")
    Image.new("RGB", (8, 8)).save(folder / "p.png")
    return folder


@st.composite
def hostile_records(draw) -> str:
    if not draw(st.integers(0, 5)):
        return draw(st.one_of(st.text(max_size=50), files.VALUES.map(lambda v: json.dumps(v)),
                              st.just(json.dumps(RECORD)[:draw(st.integers(0, 900))])))
    name = draw(st.sampled_from((None, "config", "config", "picture", "made")))
    if name is None:
        return draw(files.hostile_json(RECORD))
    marked = json.dumps(RECORD | {name: "HERE"})
    return marked.replace('"HERE"', draw(files.hostile_json(RECORD[name])))


@tries(50, 2000)
@given(hostile_records(), st.sampled_from(("PNG", "PNG", "JPEG", "WEBP")))
def test_hostile_settings_end_in_an_edit_or_one_error(folder, text, kind):
    path = folder / f"old.{kind.lower()}"
    try:
        path.write_bytes(files.with_settings(text, kind))
    except ValueError:  # more than the format can hold
        return

    def config():
        return EditConfig.from_dict(read_record(path)["settings"])

    found = ends_well("settings", config, PictureError, SettingsError)
    if found is not None:
        assert EditConfig.from_dict(json.loads(json.dumps(found.as_dict()))) == found
    arguments = ["edit", str(folder / "p.png"), "--config-from", str(path), "--out", str(folder / "out.png")]
    job = ends_well("settings, planned", lambda: edit.plan_edit(cli.make_parser().parse_args(arguments)), SageError)
    assert job is None or found is not None and job.model in KNOWN and job.outs == (folder / "out.png",)


@tries(30, 1000)
@given(hostile_records(), st.booleans())
def test_info_says_what_it_finds_on_plain_lines(folder, capsys, text, as_json):
    path = folder / "info.png"
    path.write_bytes(files.with_settings(text))
    status = cli.main(["info", str(path), *(["--json"] if as_json else [])])
    out, err = capsys.readouterr()
    assert (status, bool(out), err.count("\n")) in ((0, True, 0), (2, False, 1))
    assert all(c.isprintable() or c == "\n" for c in out + err)


def test_a_name_cannot_speak_to_the_terminal(folder, capsys):
    path = folder / "escape.png"
    path.write_bytes(files.with_settings(json.dumps(RECORD | {"\x1b[31mred": {"\x1b[2J": "\x1b]0;title\x07"}})))
    assert cli.main(["info", str(path)]) == 0 and "\x1b" not in capsys.readouterr().out


@tries(30, 1000)
@given(st.text(max_size=200), st.sampled_from(("x", "é", "猫", "😀", "\0", '"', "\\", "\udcff")), st.integers(0, 4096),
       st.sampled_from((".png", ".jpg", ".webp")))
def test_what_is_stored_comes_back(folder, text, letter, times, ending):
    """Every record of two prompts of the greatest length is stored and read back; what is longer is refused at once."""
    record = RECORD | {"source": text + letter * times, "target": letter * times, "picture": {"name": letter * 50}}
    image = Image.new("RGB", (4, 4))
    path = ends_well("settings, stored", lambda: pictures.save_picture(image, folder / f"new{ending}", record),
                     PictureError)
    if path is None:
        assert len(json.dumps(record)) > 50_000
    else:
        assert pictures.read_settings(path) == record
