"""The work behind the studio, without a browser: byte for byte what `sage edit` does, within limits, for each alone."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sage.commands import main as cli
from sage.config import EditConfig
from sage.errors import ModelError, PictureError, PromptError, SageError, SettingsError
from sage.models.known import find_model
from sage.pictures import read_settings
from sage.studio.clock import Cancelled
from sage.studio.service import Asked, Desk, Limits

ROOT = Path(__file__).resolve().parents[2]
MUG = ROOT / "examples" / "mug.png"
SOURCE = "a photograph of a big shiny blue mug on stone tiles"
TARGET = "a photograph of a big shiny yellow mug on stone tiles"


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    desk = Desk(["stilllife"], Limits(edits=3, visits=4, steps=20), tmp_path_factory.mktemp("desk") / "files")
    yield desk
    desk.close()
    assert not desk.folder.exists()


@pytest.fixture
def asked(desk) -> Asked:
    return Asked("stilllife", SOURCE, TARGET, desk.model.recommended.but(steps=3, guided_steps=2, retries=0))


@pytest.fixture
def who(desk, request):
    yield request.node.name
    desk.leave(request.node.name)


def ended(work):
    """What a generator returns."""
    while True:
        try:
            next(work)
        except StopIteration as done:
            return done.value


def test_an_edit_is_byte_for_byte_that_of_sage_edit(desk, asked, who, tmp_path):
    desk.take(who, MUG, "mug.png")
    entry = ended(desk.edit(who, asked))
    assert entry.path.name == "mug-edit.png"
    assert cli.main(["edit", str(MUG), "--config-from", str(entry.path), "--out", str(tmp_path / "again.png"),
                     "--quiet"]) == 0
    assert (tmp_path / "again.png").read_bytes() == entry.path.read_bytes()
    assert read_settings(entry.path) == entry.record


def test_prompts_are_cut_only_on_request(desk, asked, who):
    desk.take(who, MUG, "mug.png")
    long = TARGET + " and more" * 60
    with pytest.raises(PromptError, match="too many"):
        ended(desk.edit(who, Asked(asked.model, SOURCE, long, asked.config)))
    cut = ended(desk.edit(who, Asked(asked.model, SOURCE, long, asked.config, truncate=True)))
    assert cut.record["truncate"] is True
    assert ended(desk.edit(who, asked)).record["truncate"] is False


def test_a_second_edit_reuses_the_inversion_and_is_still_the_same(desk, asked, who):
    desk.take(who, MUG, "mug.png")
    first = ended(desk.edit(who, asked))
    again = ended(desk.edit(who, asked))
    assert first.saved is None and again.saved > 0
    assert again.path.read_bytes() == first.path.read_bytes()
    assert ended(desk.edit(who, Asked(asked.model, SOURCE, TARGET.replace("yellow", "green"), asked.config))).saved
    other = Asked(asked.model, SOURCE, TARGET, asked.config.but(steps=4))
    assert ended(desk.edit(who, other)).saved is None


def test_another_visitors_inversion_is_not_reused(desk, asked, who):
    for visitor in (who, "someone else"):
        desk.take(visitor, MUG, "mug.png")
        assert ended(desk.edit(visitor, asked)).saved is None
    desk.leave("someone else")


def test_cancel_ends_within_one_step(desk, asked, who):
    desk.take(who, MUG, "mug.png")
    work = desk.edit(who, Asked(asked.model, SOURCE, TARGET, asked.config.but(steps=20)))
    clock = next(work)
    while clock.phase != "invert":
        clock = next(work)
    desk.visit(who).cancel()
    done = clock.done
    with pytest.raises(Cancelled):
        ended(work)
    assert clock.phase == "invert" and clock.done <= done + 1
    assert desk.visit(who).entries == []


def test_closing_the_generator_ends_the_work(desk, asked, who):
    desk.take(who, MUG, "mug.png")
    work = desk.edit(who, asked)
    clock = next(work)
    work.close()
    assert clock.cancelled
    assert ended(desk.edit(who, asked)).path.exists()  # the worker is free again


def test_leaving_ends_the_work_and_deletes_the_files(desk, asked, who):
    desk.take(who, MUG, "mug.png")
    entry = ended(desk.edit(who, asked))
    work = desk.edit(who, asked)
    next(work)
    desk.leave(who)
    with pytest.raises(Cancelled):
        ended(work)
    assert not entry.path.exists() and not desk.trajectories.get(("x",)) and len(desk.visit(who).entries) == 0


def test_history_is_bounded_and_gives_settings_back(desk, asked, who):
    desk.take(who, MUG, "mug.png")
    entries = [ended(desk.edit(who, Asked(asked.model, SOURCE, TARGET, asked.config.but(guidance_scale=w))))
               for w in (1.0, 1.5, 2.0, 2.5)]
    assert not entries[0].path.exists() and all(e.path.exists() for e in entries[1:])
    assert desk.restore(who, 0) == entries[1] and entries[1].record["config"]["guidance_scale"] == 1.5
    with pytest.raises(SettingsError, match="not remembered"):
        desk.restore(who, 3)
    with pytest.raises(SettingsError, match="not remembered"):
        desk.restore(who, -1)


def test_visitors_are_bounded(desk):
    desk.take("first", MUG, "mug.png")
    for i in range(4):
        desk.visit(f"visitor {i}")
    assert desk.visit("first").picture is None
    for name in ("first", *(f"visitor {i}" for i in range(4))):
        desk.leave(name)


def test_a_dropped_edit_gives_its_settings_and_its_picture_back(desk, asked, who):
    assert desk.take(who, MUG, "mug.png") is None
    entry = ended(desk.edit(who, asked))
    record = desk.take(who, entry.path, "downloaded.png")
    assert record == entry.record
    assert desk.visit(who).picture.identity["name"] == "mug.png"
    desk.take("stranger", entry.path, "downloaded.png")
    assert desk.visit("stranger").picture.identity["name"] == "downloaded.png"
    desk.leave("stranger")


@pytest.mark.parametrize("name, kept", [("../../etc/passwd", "passwd"), ("a\\b\\cat.png", "cat.png"),
                                        ("", "picture.png"), ("x" * 300 + ".png", "x" * 76 + ".png"),
                                        ("a\nb.png", "ab.png"),
                                        (".", "picture.png"), ("..", "picture.png"), ("a/", "picture.png")])
def test_names_are_only_names(desk, who, name, kept):
    desk.take(who, MUG, name)
    assert desk.visit(who).picture.identity["name"] == kept


def test_bad_pictures_are_one_line_without_a_path(desk, who, tmp_path):
    desk.take(who, MUG, "mug.png")
    cut, huge, text = (tmp_path / name for name in ("cut.png", "huge.png", "text.png"))
    cut.write_bytes(MUG.read_bytes()[:900])
    Image.new("1", (5000, 4000)).save(huge)
    text.write_text("no picture")
    for path in (cut, huge, text, tmp_path / "none.png"):
        with pytest.raises(PictureError) as caught:
            desk.take(who, path, "mine.png")
        assert "mine.png" in str(caught.value) and str(tmp_path) not in str(caught.value)
        assert "\n" not in str(caught.value)
    assert desk.visit(who).picture.identity["name"] == "mug.png"


def test_damaged_settings_in_a_picture_are_refused(desk, who, tmp_path):
    from sage.pictures import save_picture
    good = {"source": "a", "target": "b", "model": "stilllife", "config": {}, "prediction_type": None,
            "truncate": False, "picture": {"name": "x", "sha256": "y"}, "made": {}}
    for change in ({"config": {"steps": "many"}}, {"source": 3}, {"config": {"no_such": 1}}):
        save_picture(Image.new("RGB", (8, 8)), tmp_path / "p.png", good | change)
        with pytest.raises(PictureError, match="damaged"):
            desk.take(who, tmp_path / "p.png", "p.png")


@pytest.mark.parametrize("change, error, words", [
    ({"source": " "}, PromptError, "source prompt is empty"),
    ({"target": "x" * 5000}, PromptError, "5000 characters"),
    ({"target": "word " * 90}, PromptError, "too many for this model"),
    ({"model": "/etc/passwd"}, ModelError, "this studio has no model"),
    ({"model": "sd-1.4"}, ModelError, "this studio has no model"),
    ({"config": {"steps": 21}}, SettingsError, "steps is 21: this studio allows at most 20"),
    ({"config": {"size": 136}}, SettingsError, "size is 136: this studio allows at most 128"),
    ({"config": {"retries": 9}}, SettingsError, "retries is 9: this studio allows at most 3"),
    ({"config": {"replace": ("tree", "mug")}}, PromptError, "not in the prompt"),
])
def test_limits_and_mistakes_are_told(desk, asked, who, change, error, words):
    desk.take(who, MUG, "mug.png")
    config = asked.config.but(**change.pop("config", {}))
    given = {"model": asked.model, "source": SOURCE, "target": TARGET} | change
    with pytest.raises(error, match=words):
        ended(desk.edit(who, Asked(config=config, **given)))


def test_no_picture_yet(desk, asked, who):
    with pytest.raises(PictureError, match="no picture yet"):
        ended(desk.edit(who, asked))


def test_whatever_else_goes_wrong_is_told_without_a_traceback(desk, asked, who, monkeypatch, capsys):
    desk.take(who, MUG, "mug.png")
    monkeypatch.setattr("sage.studio.service.edit_batch", lambda *_: 1 / 0)
    with pytest.raises(SageError, match="something went wrong on the server"):
        ended(desk.edit(who, asked))
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_two_visitors_get_their_own(desk, asked):
    rng = np.random.default_rng(0)
    alone = {}
    for who in ("a", "b"):
        path = desk.folder.parent / f"{who}.png"
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
        desk.take(who, path, f"{who}.png")
        alone[who] = ended(desk.edit(who, asked)).path.read_bytes()
    works, results = {who: desk.edit(who, asked) for who in alone}, {}
    while works:
        for who, work in list(works.items()):
            try:
                next(work)
            except StopIteration as done:
                results[who] = done.value
                del works[who]
    for who, entry in results.items():
        assert entry.path.read_bytes() == alone[who] and entry.record["picture"]["name"] == f"{who}.png"
        desk.leave(who)


def test_look_inside_is_a_page_of_the_same_edit(desk, asked, who):
    desk.take(who, MUG, "mug.png")
    entry = ended(desk.edit(who, asked))
    page = ended(desk.look_inside(who, entry))
    assert page.startswith("<!doctype html>") and "Reconstruction loss" in page and "inversion and back" in page
    assert "yellow" in page


def test_words_show_what_differs(desk):
    words = desk.words(SOURCE, TARGET, EditConfig(reweight={"yellow": 2.0}, replace=("blue", "yellow")))
    assert [w for w, differs in words["source"] if differs] == ["blue"]
    assert [(w, factor) for w, differs, factor in words["target"] if differs] == [("yellow", 2.0)]
    assert words["pairs"] == [["blue", "yellow"]] and words["replace"] == "blue, yellow" and words["blend"] == "auto"
    assert "too many" in desk.words("word " * 90, "b", EditConfig())["problem"]
    assert json.dumps(words)


def test_one_model_in_memory(tmp_path):
    from tests.models import tiny
    folder = tiny.make(tmp_path / "little").folder
    desk = Desk([str(folder), "stilllife"], folder=tmp_path / "files")
    little = desk.model.recommended
    try:
        assert desk.model.name == "little" and list(desk.places) == ["little", find_model("stilllife")[0]]
        assert desk.use("stilllife") == desk.model.recommended != little
        assert desk.model.name == "stilllife"
        with pytest.raises(ModelError, match="no model"):
            desk.use(str(ROOT))
        assert desk.use("little") == little
    finally:
        desk.close()
