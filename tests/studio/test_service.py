"""The work behind the studio, without a browser: byte for byte what `sage edit` does, within limits, for each alone."""

import json
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from PIL import Image

from sage import EditConfig, pictures
from sage.commands import main as cli
from sage.errors import ModelError, PictureError, PromptError, SageError, SettingsError
from sage.models.known import find_model
from sage.pictures import read_settings
from sage.studio import service
from sage.studio.clock import Cancelled
from sage.studio.service import EditRequest, Limits, Studio

ROOT = Path(__file__).resolve().parents[2]
MUG = ROOT / "examples" / "mug.png"
SOURCE = "a photograph of a big shiny blue mug on stone tiles"
TARGET = "a photograph of a big shiny yellow mug on stone tiles"


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    studio = Studio(["stilllife"], Limits(edits=3, visits=4, steps=20), tmp_path_factory.mktemp("studio") / "files")
    yield studio
    studio.close()
    assert not studio.folder.exists()


@pytest.fixture
def wanted(studio) -> EditRequest:
    return EditRequest("stilllife", SOURCE, TARGET, studio.model.recommended.but(steps=3, guided_steps=2, retries=0))


@pytest.fixture
def who(studio, request):
    yield request.node.name
    studio.leave(request.node.name)


def ended(work):
    """What a generator returns."""
    while True:
        try:
            next(work)
        except StopIteration as done:
            return done.value


def test_an_edit_is_byte_for_byte_that_of_sage_edit(studio, wanted, who, tmp_path):
    studio.take(who, MUG, "mug.png")
    entry = ended(studio.edit(who, wanted))
    assert entry.path.name == "mug-edit.png"
    assert cli.main(["edit", str(MUG), "--config-from", str(entry.path), "--out", str(tmp_path / "again.png"),
                     "--quiet"]) == 0
    assert (tmp_path / "again.png").read_bytes() == entry.path.read_bytes()
    assert read_settings(entry.path) == entry.record


def test_prompts_are_cut_only_on_request(studio, wanted, who):
    studio.take(who, MUG, "mug.png")
    long = TARGET + " and more" * 60
    with pytest.raises(PromptError, match="too many"):
        ended(studio.edit(who, EditRequest(wanted.model, SOURCE, long, wanted.config)))
    cut = ended(studio.edit(who, EditRequest(wanted.model, SOURCE, long, wanted.config, truncate=True)))
    assert cut.record["truncate"] is True
    assert ended(studio.edit(who, wanted)).record["truncate"] is False


def test_a_second_edit_reuses_the_inversion_and_is_still_the_same(studio, wanted, who):
    studio.take(who, MUG, "mug.png")
    first = ended(studio.edit(who, wanted))
    again = ended(studio.edit(who, wanted))
    assert first.saved is None and again.saved > 0
    assert again.path.read_bytes() == first.path.read_bytes()
    green = EditRequest(wanted.model, SOURCE, TARGET.replace("yellow", "green"), wanted.config)
    assert ended(studio.edit(who, green)).saved
    other = EditRequest(wanted.model, SOURCE, TARGET, wanted.config.but(steps=4))
    assert ended(studio.edit(who, other)).saved is None


def test_another_visitors_inversion_is_not_reused(studio, wanted, who):
    for visitor in (who, "someone else"):
        studio.take(visitor, MUG, "mug.png")
        assert ended(studio.edit(visitor, wanted)).saved is None
    studio.leave("someone else")


def test_cancel_ends_within_one_step(studio, wanted, who):
    studio.take(who, MUG, "mug.png")
    work = studio.edit(who, EditRequest(wanted.model, SOURCE, TARGET, wanted.config.but(steps=20)))
    clock = next(work)
    while clock.phase != "invert":
        clock = next(work)
    studio.visit(who).cancel()
    done = clock.done
    with pytest.raises(Cancelled):
        ended(work)
    assert clock.phase == "invert" and clock.done <= done + 1
    assert studio.visit(who).entries == []


def test_closing_the_generator_ends_the_work(studio, wanted, who):
    studio.take(who, MUG, "mug.png")
    work = studio.edit(who, wanted)
    clock = next(work)
    work.close()
    assert clock.cancelled
    assert ended(studio.edit(who, wanted)).path.exists()  # the worker is free again


def test_leaving_ends_the_work_and_deletes_the_files(studio, wanted, who):
    studio.take(who, MUG, "mug.png")
    entry = ended(studio.edit(who, wanted))
    work = studio.edit(who, wanted)
    next(work)
    studio.leave(who)
    with pytest.raises(Cancelled):
        ended(work)
    assert not entry.path.exists() and not studio.trajectories.get(("x",)) and len(studio.visit(who).entries) == 0


def left_nothing(studio, folder, who):
    return not folder.exists() and not any(key[0] == who for key in studio.trajectories.keys())


def test_who_leaves_before_the_edit_is_saved_leaves_nothing(studio, wanted, who, monkeypatch):
    studio.take(who, MUG, "mug.png")
    folder, real = studio.visit(who).folder, service.make_record
    monkeypatch.setattr(service, "make_record", lambda *given: studio.leave(who) or real(*given))
    with pytest.raises(Cancelled):
        ended(studio.edit(who, wanted))
    assert left_nothing(studio, folder, who)


def test_who_leaves_while_the_edit_is_saved_leaves_nothing(studio, wanted, who, monkeypatch):
    studio.take(who, MUG, "mug.png")
    folder, real, leaving = studio.visit(who).folder, pictures.save_picture, Thread(target=studio.leave, args=[who])

    def save(*given):
        if not leaving.ident:
            leaving.start()
            leaving.join(0.2)
        return real(*given)

    monkeypatch.setattr(pictures, "save_picture", save)
    ended(studio.edit(who, wanted))
    leaving.join()
    assert left_nothing(studio, folder, who)


def test_history_is_bounded_and_gives_settings_back(studio, wanted, who):
    studio.take(who, MUG, "mug.png")
    entries = [ended(studio.edit(who, EditRequest(wanted.model, SOURCE, TARGET, wanted.config.but(guidance_scale=w))))
               for w in (1.0, 1.5, 2.0, 2.5)]
    assert not entries[0].path.exists() and all(e.path.exists() for e in entries[1:])
    assert studio.restore(who, 0) == entries[1] and entries[1].record["config"]["guidance_scale"] == 1.5
    with pytest.raises(SettingsError, match="not remembered"):
        studio.restore(who, 3)
    with pytest.raises(SettingsError, match="not remembered"):
        studio.restore(who, -1)


def test_visitors_are_bounded(studio):
    studio.take("first", MUG, "mug.png")
    for i in range(4):
        studio.visit(f"visitor {i}")
    assert studio.visit("first").picture is None
    for name in ("first", *(f"visitor {i}" for i in range(4))):
        studio.leave(name)


def test_a_dropped_edit_gives_its_settings_and_its_picture_back(studio, wanted, who):
    assert studio.take(who, MUG, "mug.png") is None
    entry = ended(studio.edit(who, wanted))
    record = studio.take(who, entry.path, "downloaded.png")
    assert record == entry.record
    assert studio.visit(who).picture.identity["name"] == "mug.png"
    studio.take("stranger", entry.path, "downloaded.png")
    assert studio.visit("stranger").picture.identity["name"] == "downloaded.png"
    studio.leave("stranger")


@pytest.mark.parametrize("name, kept", [("../../etc/passwd", "passwd"), ("a\\b\\cat.png", "cat.png"),
                                        ("", "picture.png"), ("x" * 300 + ".png", "x" * 76 + ".png"),
                                        ("a\nb.png", "ab.png"),
                                        (".", "picture.png"), ("..", "picture.png"), ("a/", "picture.png")])
def test_names_are_only_names(studio, who, name, kept):
    studio.take(who, MUG, name)
    assert studio.visit(who).picture.identity["name"] == kept


def test_bad_pictures_are_one_line_without_a_path(studio, who, tmp_path):
    studio.take(who, MUG, "mug.png")
    cut, huge, text = (tmp_path / name for name in ("cut.png", "huge.png", "text.png"))
    cut.write_bytes(MUG.read_bytes()[:900])
    Image.new("1", (5000, 4000)).save(huge)
    text.write_text("no picture")
    for path in (cut, huge, text, tmp_path / "none.png"):
        with pytest.raises(PictureError) as caught:
            studio.take(who, path, "mine.png")
        assert "mine.png" in str(caught.value) and str(tmp_path) not in str(caught.value)
        assert "\n" not in str(caught.value)
    assert studio.visit(who).picture.identity["name"] == "mug.png"


def test_damaged_settings_in_a_picture_are_refused(studio, who, tmp_path):
    from sage.pictures import save_picture
    good = {"source": "a", "target": "b", "model": "stilllife", "config": {}, "prediction_type": None,
            "truncate": False, "picture": {"name": "x", "sha256": "y"}, "made": {}}
    for change in ({"config": {"steps": "many"}}, {"source": 3}, {"config": {"no_such": 1}}):
        save_picture(Image.new("RGB", (8, 8)), tmp_path / "p.png", good | change)
        with pytest.raises(PictureError, match="damaged"):
            studio.take(who, tmp_path / "p.png", "p.png")


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
def test_limits_and_mistakes_are_told(studio, wanted, who, change, error, words):
    studio.take(who, MUG, "mug.png")
    config = wanted.config.but(**change.pop("config", {}))
    given = {"model": wanted.model, "source": SOURCE, "target": TARGET} | change
    with pytest.raises(error, match=words):
        ended(studio.edit(who, EditRequest(config=config, **given)))


def test_no_picture_yet(studio, wanted, who):
    with pytest.raises(PictureError, match="no picture yet"):
        ended(studio.edit(who, wanted))


def test_whatever_else_goes_wrong_is_told_without_a_traceback(studio, wanted, who, monkeypatch, capsys):
    studio.take(who, MUG, "mug.png")
    monkeypatch.setattr("sage.studio.service.edit_batch", lambda *_: 1 / 0)
    with pytest.raises(SageError, match="something went wrong on the server"):
        ended(studio.edit(who, wanted))
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_two_visitors_get_their_own(studio, wanted):
    rng = np.random.default_rng(0)
    alone = {}
    for who in ("a", "b"):
        path = studio.folder.parent / f"{who}.png"
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
        studio.take(who, path, f"{who}.png")
        alone[who] = ended(studio.edit(who, wanted)).path.read_bytes()
    works, results = {who: studio.edit(who, wanted) for who in alone}, {}
    while works:
        for who, work in list(works.items()):
            try:
                next(work)
            except StopIteration as done:
                results[who] = done.value
                del works[who]
    for who, entry in results.items():
        assert entry.path.read_bytes() == alone[who] and entry.record["picture"]["name"] == f"{who}.png"
        studio.leave(who)


def test_look_inside_is_a_page_of_the_same_edit(studio, wanted, who):
    studio.take(who, MUG, "mug.png")
    entry = ended(studio.edit(who, wanted))
    page = ended(studio.look_inside(who, entry))
    assert page.startswith("<!doctype html>") and "Reconstruction loss" in page and "inversion and back" in page
    assert "yellow" in page


def test_words_show_what_differs(studio):
    words = studio.words(SOURCE, TARGET, EditConfig(reweight={"yellow": 2.0}, replace=("blue", "yellow")))
    assert [w for w, differs in words["source"] if differs] == ["blue"]
    assert [(w, factor) for w, differs, factor in words["target"] if differs] == [("yellow", 2.0)]
    assert words["pairs"] == [["blue", "yellow"]] and words["replace"] == "blue, yellow" and words["blend"] == "auto"
    assert "too many" in studio.words("word " * 90, "b", EditConfig())["problem"]
    assert json.dumps(words)


def test_one_model_in_memory(tmp_path, monkeypatch):
    from tests.models import tiny
    folder = tiny.make(tmp_path / "little").folder
    studio = Studio([str(folder), "stilllife"], folder=tmp_path / "files")
    little = studio.model.recommended
    try:
        assert studio.model.name == "little" and list(studio.places) == ["little", find_model("stilllife")[0]]
        assert studio.use("stilllife") == studio.model.recommended != little
        assert studio.model.name == "stilllife"
        with pytest.raises(ModelError, match="no model"):
            studio.use(str(ROOT))
        assert studio.use("little") == little

        def no_memory(place):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4194304 bytes")

        with monkeypatch.context() as m:
            m.setattr(service, "load_model", no_memory)
            with pytest.raises(ModelError, match="stilllife does not fit into memory: choose another model"):
                studio.use("stilllife")
            m.setattr(service, "load_model", lambda place: 1 / 0)
            with pytest.raises(SageError, match="something went wrong on the server"):
                studio.use("stilllife")
        assert "there is no model" in studio.words("a", "b", little)["problem"] and studio.name == "little"
        assert studio.use("little") == little and studio.model.name == "little"
    finally:
        studio.close()
