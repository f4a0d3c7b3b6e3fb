"""The work behind the studio, without a browser: byte for byte what `sage edit` does, within limits, for each alone."""

import io
import json
import shlex
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from threading import Thread
from time import sleep

import numpy as np
import pytest
import torch
from PIL import Image

import sage
from sage import EditConfig, pictures
from sage.commands import main as cli
from sage.errors import ModelError, PictureError, PromptError, SageError, SettingsError
from sage.method import Step, able, method
from sage.models import compiled
from sage.models.backbone import Backbone
from sage.models.known import find_model
from sage.pictures import read_settings
from sage.prompts.tokens import Prompts
from sage.sampling.levels import Level
from sage.studio import album, glimpse, recipe, service
from sage.studio.clock import Cancelled
from sage.studio.jobs import Full
from sage.studio.requests import EditRequest, Limits, MakeRequest
from sage.studio.service import Studio

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
    config = studio.recommended("edit", "sage").but(steps=3, guided_steps=2, retries=0)
    return EditRequest("stilllife", SOURCE, TARGET, config)


@pytest.fixture
def who(studio, request):
    yield request.node.name
    studio.leave(request.node.name)


def ended(job):
    """What comes of a job."""
    return job.result(300)


def until(job, phase):
    """Wait for a phase of a job's work."""
    while job.clock.phase != phase:
        sleep(0.02)


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
    job = studio.edit(who, EditRequest(wanted.model, SOURCE, TARGET, wanted.config.but(steps=20)))
    until(job, "invert")
    done = job.clock.done
    job.cancel()
    with pytest.raises(Cancelled):
        ended(job)
    assert job.clock.phase == "invert" and job.clock.done <= done + 1 and job.state == "cancelled"
    assert studio.visit(who).results == []


def test_who_waits_is_told_their_place_and_can_cancel(studio, wanted, who):
    studio.take(who, MUG, "mug.png")
    jobs = [studio.edit(who, wanted) for _ in range(3)]
    assert [studio.jobs.ahead(job) for job in jobs[1:]] == [1, 2] and jobs[2].state == "waiting"
    jobs[1].cancel()
    assert jobs[1].state == "cancelled" and studio.jobs.ahead(jobs[2]) == 1  # at once, not when it is its turn
    with pytest.raises(Cancelled):
        ended(jobs[1])
    assert ended(jobs[2]).path.exists() and jobs[2].state == "done"


def test_the_queue_is_bounded(studio, wanted, who, monkeypatch):
    monkeypatch.setattr(studio.jobs, "most", 1)
    studio.take(who, MUG, "mug.png")
    first = studio.edit(who, wanted)
    until(first, "encode")
    second = studio.edit(who, wanted)
    with pytest.raises(Full, match="1 are waiting already"):
        studio.edit(who, wanted)
    second.cancel()
    studio.edit(who, wanted).cancel()
    ended(first)


def test_work_that_nobody_asks_about_is_ended(studio, wanted, who, monkeypatch):
    monkeypatch.setattr(studio.jobs, "patience", 0.0)
    studio.take(who, MUG, "mug.png")
    with pytest.raises(Cancelled):
        ended(studio.edit(who, wanted))


def test_the_picture_emerges_and_is_not_changed_by_being_seen(studio, wanted, who, monkeypatch):
    studio.take(who, MUG, "mug.png")
    job = studio.edit(who, EditRequest(wanted.model, SOURCE, TARGET, wanted.config.but(steps=20)))
    seen = ended(job)
    assert job.glimpses >= 1 and Image.open(io.BytesIO(job.glimpse)).size == (384, 384)
    monkeypatch.setattr(glimpse, "SHARE", 0.0)
    blind = studio.edit(who, EditRequest(wanted.model, SOURCE, TARGET, wanted.config.but(steps=20)))
    assert ended(blind).path.read_bytes() == seen.path.read_bytes() and blind.glimpses == 0


def test_decoding_takes_no_more_than_its_share_of_the_time():
    class Slow:
        def decode(self, z):
            now[0] += 3.0
            return torch.zeros(1, 3, 8, 8)

    now, shown = [0.0], []
    watch = glimpse.Glimpses(Slow(), shown.append, (8, 8), now=lambda: now[0])
    for i in range(200):
        now[0] += 1.0
        watch(Step(i, torch.zeros(1, 4, 1, 1), Level(1.0, 1.0, 0.0)))
        assert watch.spent <= 3.0 + glimpse.SHARE * now[0]
    assert len(shown) >= 5 and watch.spent <= glimpse.SHARE * now[0] + 0.1


def test_the_first_edit_is_made_once_and_everybody_finds_it(studio, who, monkeypatch):
    config = studio.recommended("edit", "sage").but(steps=2, retries=0)
    monkeypatch.setattr(studio, "recommended", lambda *_: config)
    assert studio.welcome(who) is None
    studio.begin()
    first = studio.first.result(300)
    mine = studio.welcome(who)
    assert mine.record == first.record and mine.path != first.path
    assert mine.path.read_bytes() == first.path.read_bytes() and studio.welcome(who) is None  # only once
    assert studio.visit(who).picture.identity["sha256"] == first.record["picture"]["sha256"]
    assert studio.visit(who).picture.image.size == (studio.model.sample_size,) * 2
    studio.first = None


def test_variants_share_one_inversion(studio, wanted, who):
    studio.take(who, MUG, "mug.png")
    requests = [EditRequest("stilllife", SOURCE, TARGET, wanted.config.but(guidance_scale=w)) for w in (1.0, 2.0)]
    first, second = ended(studio.variants(who, requests))
    assert first.saved is None and second.saved is not None
    assert [e.record["settings"]["guidance_scale"] for e in (first, second)] == [1.0, 2.0]
    assert ended(studio.edit(who, requests[1])).path.read_bytes() == second.path.read_bytes()


def test_a_mask_says_where_an_edit_may_be(studio, who, tmp_path):
    studio.take(who, MUG, "mug.png")
    Image.new("L", (128, 128), 0).save(tmp_path / "none.png")
    half = Image.new("L", (128, 128), 0)
    half.paste(255, (64, 0, 128, 128))
    half.save(tmp_path / "half.png")
    config = studio.recommended("edit", "flowedit").but(steps=4)
    everywhere = EditRequest("stilllife", SOURCE, TARGET, config)
    masked = replace(everywhere, mask=studio.album.take_mask(who, tmp_path / "half.png").identity["sha256"])
    assert studio.visit(who).picture.identity["name"] == "mug.png"
    free, held = (np.asarray(Image.open(ended(studio.edit(who, r)).path), dtype=int) for r in (everywhere, masked))
    before = np.asarray(Image.open(MUG).convert("RGB"), dtype=int)
    left = np.s_[:, :48]
    assert np.abs(held[left] - before[left]).mean() < np.abs(free[left] - before[left]).mean()
    pasted = ended(studio.edit(who, replace(masked, paste=True)))
    shown = np.asarray(Image.open(pasted.path), dtype=int)
    assert (shown[left] == before[left]).all() and (shown[:, 80:] == held[:, 80:]).all()
    assert cli.main(["edit", str(MUG), "--config-from", str(pasted.path), "--out", str(tmp_path / "again.png"),
                     "--quiet"]) == 0
    assert (tmp_path / "again.png").read_bytes() == pasted.path.read_bytes()
    assert studio.album.mask_in(who, pasted.record)
    assert "--config-from" in recipe.as_command(pasted.record, studio.model)
    with pytest.raises(SettingsError, match="no mask to paste around"):
        studio.edit(who, replace(everywhere, paste=True))
    with pytest.raises(SettingsError, match="does not read mask"):
        studio.edit(who, replace(masked, config=studio.recommended("edit", "plain").but(steps=4)))
    with pytest.raises(PictureError, match="not remembered"):
        studio.edit(who, replace(masked, mask="0" * 64))


@pytest.mark.slow
def test_a_part_is_moved_as_sage_drag_moves_it(studio, who, tmp_path):
    key = (studio.take(who, MUG, "mug.png"), studio.visit(who).picture.identity["sha256"])[1]
    config = studio.recommended("edit", "regiondrag").but(steps=6)
    cone, there = (46, 40, 62, 62), (2, 40, 18, 62)
    still = EditRequest("stilllife", SOURCE, SOURCE, config)
    moved = replace(still, moves=studio.album.moved(who, key, [(cone, there)]))
    entry = ended(studio.edit(who, moved))
    assert cli.main(["drag", str(MUG), "--from", "46,40,62,62", "--to", "2,40,18,62", "--source", SOURCE, "--model",
                     "stilllife", "--steps", "6", "--out", str(tmp_path / "dragged.png"), "--quiet"]) == 0
    dragged = tmp_path / "dragged.png"
    assert (np.asarray(Image.open(dragged)) == np.asarray(Image.open(entry.path))).all()
    assert cli.main(["edit", str(MUG), "--config-from", str(entry.path), "--out", str(tmp_path / "again.png"),
                     "--quiet"]) == 0
    assert (tmp_path / "again.png").read_bytes() == entry.path.read_bytes()
    assert "--config-from" in recipe.as_command(entry.record, studio.model)
    assert "asked_in" in recipe.as_python(entry.record, studio.model)
    assert not any("nothing is asked to change" in note for note in entry.notes)
    assert any("nothing is asked to change" in note for note in ended(studio.edit(who, still)).notes)
    moves = studio.album.moves_in(who, entry.record)  # as a page restores it
    again = replace(still, moves=studio.album.moved(who, key, moves))
    assert ended(studio.edit(who, again)).path.read_bytes() == entry.path.read_bytes()
    assert ended(studio.look_inside(who, entry)).startswith("<!doctype html>")


@pytest.mark.parametrize("place, words", [((140, 140, 180, 180), "has nothing of the picture in it"),
                                          ((5, 5, 9), "is no box"), ((300, 300), "lies outside")])
def test_a_place_that_is_none_is_one_line(studio, who, place, words):
    studio.take(who, MUG, "mug.png")
    with pytest.raises(SettingsError, match=words):
        studio.album.moved(who, studio.visit(who).picture.identity["sha256"], [(place, (9, 9))])


def test_no_visitor_names_a_file_as_a_region(studio, who):
    studio.take(who, MUG, "mug.png")
    with pytest.raises(PictureError, match="not remembered"):
        studio.album.moved(who, studio.visit(who).picture.identity["sha256"], [(str(MUG), (9, 9))])


def test_something_of_another_picture_is_put_in(studio, who, tmp_path, monkeypatch):
    Image.new("RGB", (40, 20), "red").save(tmp_path / "red.png")
    mask = Image.new("L", (40, 20))
    mask.paste(255, (10, 5, 30, 15))
    mask.save(tmp_path / "mask.png")
    studio.take(who, MUG, "mug.png")
    below = studio.visit(who).picture
    reference = studio.album.take_mask(who, tmp_path / "red.png", "C:\\things\\red.png").identity["sha256"]
    marked = studio.album.take_mask(who, tmp_path / "mask.png").identity["sha256"]
    box = studio.compose(who, below.identity["sha256"], reference, marked, (4.2, 8, 24, 18))
    picture, before = studio.visit(who).picture, np.asarray(Image.open(MUG).convert("RGB"))
    assert picture.identity["name"] == "mug-composed.png"
    shown, where = np.asarray(picture.image), np.asarray(studio.album.picture(who, box).image) > 0
    assert where[8:18, 4:24].all() and where.sum() == 10 * 20
    assert (shown[where] == (255, 0, 0)).all() and (shown[~where] == before[~where]).all()
    config = studio.recommended("edit", "ddpm").but(steps=4)
    entry = ended(studio.edit(who, EditRequest("stilllife", SOURCE, TARGET, config, mask=box, paste=True)))
    assert (np.asarray(Image.open(entry.path))[~where] == before[~where]).all()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mug.png").write_bytes(MUG.read_bytes())
    (tmp_path / entry.path.name).write_bytes(entry.path.read_bytes())
    words = shlex.split(recipe.as_command(entry.record, studio.model, entry.path.name))
    assert cli.main([*words[1:], "--out", "again.png", "--quiet"]) == 0
    assert (tmp_path / "again.png").read_bytes() == entry.path.read_bytes()
    monkeypatch.setattr(sage, "load_model", lambda name: studio.model)
    exec(recipe.as_python(entry.record, studio.model, entry.path.name), {})
    assert (np.asarray(Image.open("result.png")) == np.asarray(Image.open(entry.path))).all()
    studio.take(who, MUG, "mug.png")
    assert not studio.visit(who).picture.is_of(entry.record)
    studio.restore(who, entry.key)
    assert studio.visit(who).picture == picture and picture.is_of(entry.record)
    studio.take(who, entry.path, entry.path.name)  # as who comes back with the download
    assert studio.visit(who).picture == picture
    assert ended(studio.look_inside(who, entry)).startswith("<!doctype html>")
    monkeypatch.setattr(album, "MAX_PASTES", 2)
    studio.compose(who, picture.identity["sha256"], reference, marked, (30, 8, 50, 18))
    twice = studio.visit(who).picture
    assert [paste.box for paste in twice.pastes] == [(4, 8, 24, 18), (30, 8, 50, 18)]
    assert twice.background == below.identity and twice.identity["name"] == "mug-composed.png"
    with pytest.raises(SettingsError, match="go on from a result"):
        studio.compose(who, twice.identity["sha256"], reference, marked, (30, 8, 50, 18))
    Image.new("L", (40, 20)).save(tmp_path / "none.png")
    nothing = studio.album.take_mask(who, tmp_path / "none.png").identity["sha256"]
    with pytest.raises(SageError, match="has no white place"):
        studio.compose(who, below.identity["sha256"], reference, nothing, (4, 8, 24, 18))


def test_a_picture_is_described_or_said_to_be_strange(studio, who, tmp_path):
    studio.take(who, MUG, "mug.png")
    seen = studio.seen(who, studio.visit(who).picture.identity["sha256"])
    assert "blue" in seen["source"] and "mug" in seen["source"] and seen["note"] == ""
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    studio.take(who, tmp_path / "noise.png", "noise.png")
    seen = studio.seen(who, studio.visit(who).picture.identity["sha256"])
    assert seen["source"] == "" and "mush" in seen["note"]
    studio.take(who, ROOT / "examples" / "table.png", "table.png")  # with nothing on it
    assert studio.seen(who, studio.visit(who).picture.identity["sha256"]) == {"source": "", "note": ""}


@pytest.mark.parametrize("taught, is_described", [((), False), (("a", "blue", "mug"), False), ("all", True)])
def test_a_picture_is_described_to_a_model_that_knows_the_words(studio, who, monkeypatch, taught, is_described):
    prompts = studio.model.prompts
    monkeypatch.setattr(studio.model, "name", "a-still-life-of-my-own")
    if taught != "all":
        monkeypatch.setattr(studio.model, "prompts", Prompts(prompts.tokenizer, prompts.max_length, taught))
    studio.take(who, MUG, "mug.png")
    assert bool(studio.seen(who, studio.visit(who).picture.identity["sha256"])["source"]) == is_described


def test_a_result_becomes_the_picture(studio, wanted, who):
    studio.take(who, MUG, "mug.png")
    entry = ended(studio.edit(who, wanted))
    picture = studio.use_result(who, entry.key)
    assert picture.identity["name"] == "mug-edit.png" and studio.visit(who).picture is picture
    again = ended(studio.edit(who, EditRequest("stilllife", TARGET, SOURCE, wanted.config)))
    assert again.record["picture"]["sha256"] == picture.identity["sha256"]


def test_the_gallery_stays(tmp_path, monkeypatch):
    gallery = tmp_path / "gallery"
    for _ in range(2):
        studio = Studio(["stilllife"], folder=tmp_path / "files", gallery=gallery)
        studio.take("me", MUG, "mug.png")
        entry = ended(studio.edit("me", EditRequest("stilllife", SOURCE, TARGET,
                                                    studio.recommended("edit", "plain").but(steps=1))))
        kept = entry.path.read_bytes()
        studio.close()
    assert sorted(p.name for p in gallery.iterdir()) == ["mug-edit-2.png", "mug-edit.png"]
    assert (gallery / "mug-edit.png").read_bytes() == kept
    assert {p.name for p in studio.gallery.paths()} == {"mug-edit.png", "mug-edit-2.png"}
    for name in ("../secret.png", "none.png", "/etc/passwd"):
        with pytest.raises(SettingsError, match="not in the gallery"):
            studio.gallery.path(name)


def test_what_follows_the_typing_is_compiled_and_what_is_kept_is_torchs(tmp_path, monkeypatch):
    asked = []

    def graph(written, inputs, threads):
        return lambda given: asked.append(given[0].shape) or written(*given)

    monkeypatch.setattr(compiled, "installed", lambda: True)
    monkeypatch.setattr(compiled, "_compiled", graph)
    monkeypatch.setattr(torch.jit, "trace", lambda run, inputs, check_trace: run)
    with closing(Studio(["stilllife"], folder=tmp_path / "files", compiled=True)) as studio:
        studio.take("me", MUG, "mug.png")
        wanted = EditRequest("stilllife", SOURCE, TARGET, studio.recommended("edit", "plain").but(steps=1))
        kept = ended(studio.edit("me", wanted)).path.read_bytes()
        assert asked == []
        for _ in range(2):
            ended(studio.edit("me", replace(wanted, live=True)))
            assert studio._graphs.wait()
        served = len(asked)
        assert served > len(studio._graphs.calls)  # of which each was tried once
        again = ended(studio.edit("me", wanted))
        assert len(asked) == served and again.path.read_bytes() == kept and again.saved is not None
        assert ended(studio.look_inside("me", again)) and len(asked) == served


def test_a_result_as_a_command_and_as_python_is_made_again(studio, wanted, who, tmp_path, monkeypatch):
    studio.take(who, MUG, "mug.png")
    config = wanted.config.but(reweight={"yellow": 1.5}, replace=("blue", "yellow"), blend=None, steps=2)
    entry = ended(studio.edit(who, EditRequest("stilllife", SOURCE, TARGET, config)))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mug.png").write_bytes(MUG.read_bytes())
    words = shlex.split(recipe.as_command(entry.record, studio.model))
    assert words[0] == "sage" and cli.main([*words[1:], "--out", "again.png", "--quiet"]) == 0
    assert (tmp_path / "again.png").read_bytes() == entry.path.read_bytes()
    exec(recipe.as_python(entry.record, studio.model), {})
    assert (np.asarray(Image.open("result.png")) == np.asarray(Image.open(entry.path))).all()


def test_leaving_ends_the_work_and_deletes_the_files(studio, wanted, who):
    studio.take(who, MUG, "mug.png")
    entry = ended(studio.edit(who, wanted))
    job = studio.edit(who, wanted)
    studio.leave(who)
    with pytest.raises(Cancelled):
        ended(job)
    assert not entry.path.exists() and not studio.trajectories.get(("x",)) and len(studio.visit(who).results) == 0


def left_nothing(studio, folder, who):
    return not folder.exists() and not any(key[0] == who for key in studio.trajectories.keys())


def test_who_leaves_before_the_edit_is_saved_leaves_nothing(studio, wanted, who, monkeypatch):
    studio.take(who, MUG, "mug.png")
    folder, real = studio.visit(who).folder, service.make_record
    monkeypatch.setattr(service, "make_record", lambda *given, **more: studio.leave(who) or real(*given, **more))
    with pytest.raises(Cancelled):
        ended(studio.edit(who, wanted))
    assert left_nothing(studio, folder, who)


def test_who_leaves_while_the_edit_is_saved_leaves_nothing(studio, wanted, who, monkeypatch):
    studio.take(who, MUG, "mug.png")
    folder, real, leaving = studio.visit(who).folder, pictures.save_picture, Thread(target=studio.leave, args=[who])

    def save(*given, **how):
        if not leaving.ident:
            leaving.start()
            leaving.join(0.2)
        return real(*given, **how)

    monkeypatch.setattr(pictures, "save_picture", save)
    ended(studio.edit(who, wanted))
    leaving.join()
    assert left_nothing(studio, folder, who)


def test_history_is_bounded_and_gives_settings_back(studio, wanted, who):
    studio.take(who, MUG, "mug.png")
    entries = [ended(studio.edit(who, EditRequest(wanted.model, SOURCE, TARGET, wanted.config.but(guidance_scale=w))))
               for w in (1.0, 1.5, 2.0, 2.5)]
    assert not entries[0].path.exists() and all(e.path.exists() for e in entries[1:])
    assert studio.restore(who, entries[1].key) == entries[1] and entries[1].record["settings"]["guidance_scale"] == 1.5
    with pytest.raises(SettingsError, match="not remembered"):
        studio.restore(who, entries[0].key)
    with pytest.raises(SettingsError, match="not remembered"):
        studio.restore("another", entries[1].key)


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


def test_a_second_thing_is_said_as_anybody_says_it(studio, wanted, who, tmp_path):
    """The bundled models hear of one by the word tiny; an edit of before is repeated as it was."""
    studio.take(who, MUG, "mug.png")
    plain, tiny = "a mug and a cone", "a mug and a tiny cone"
    request = replace(wanted, source=plain, target="a cup, a green cone")
    entry = ended(studio.edit(who, request))
    assert (entry.record["source"], entry.record["target"]) == (tiny, "a cup, a tiny green cone")
    assert [note for note in entry.notes if note.endswith(f"taken as {tiny!r}")]
    before = pictures.save_picture(Image.open(entry.path), tmp_path / "before.png", entry.record | {"source": plain})
    studio.take(who, before, "before.png")
    assert ended(studio.edit(who, replace(request, target=entry.record["target"]))).record["source"] == plain
    assert ended(studio.edit(who, replace(request, target="a cup"))).record["source"] == tiny
    made = ended(studio.make(who, MakeRequest("stilllife", plain, "", 64, 64,
                                              studio.recommended("generate", "plain").but(steps=1))))
    assert made.record["target"] == tiny and made.notes[0].endswith(f"taken as {tiny!r}")


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
    Image.new("1", (10_000, 5001)).save(huge)
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
    ({"config": {"size": 288}}, SettingsError, "size is 288: this studio allows at most 256"),
    ({"config": {"retries": 9}}, SettingsError, "retries is 9: this studio allows at most 3"),
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
    monkeypatch.setattr("sage.studio.service.edit_batch", lambda *_, **__: 1 / 0)
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
    jobs = {who: studio.edit(who, wanted) for who in alone}
    results = {who: ended(job) for who, job in jobs.items()}
    for who, entry in results.items():
        assert entry.path.read_bytes() == alone[who] and entry.record["picture"]["name"] == f"{who}.png"
        studio.leave(who)


def test_look_inside_is_a_page_of_the_same_edit(studio, wanted, who):
    studio.take(who, MUG, "mug.png")
    entry = ended(studio.edit(who, wanted))
    page = ended(studio.look_inside(who, entry))
    assert page.startswith("<!doctype html>") and "self-attention maps from those recorded" in page
    assert "inversion and back" in page and "yellow" in page


def test_words_show_what_differs(studio):
    words = studio.words(SOURCE, TARGET, EditConfig(reweight={"yellow": 2.0, "shiny yellow": 3.0, "green": 2.0},
                                                    replace=("blue", "yellow")))
    assert [w for w, differs in words["source"] if differs] == ["blue"]
    assert [(w, factor) for w, differs, factor in words["target"] if differs] == [("yellow", 2.0)]
    assert words["pairs"] == [["blue", "yellow"]] and words["factors"] == "reweight"
    assert {p["name"]: p["value"] for p in words["phrases"]} == {"replace": "blue, yellow", "blend": "auto"}
    assert words["others"] == "shiny yellow:3.0"  # and no factor on what is not there any more
    p2p = studio.words(SOURCE, TARGET, studio.recommended("edit", "p2p").but(reweight={"yellow": 2.0}))
    assert p2p["factors"] == "reweight" and ["yellow", True, 2.0] in p2p["target"]
    plain = studio.words(SOURCE, TARGET, studio.recommended("edit", "plain"))
    assert plain["phrases"] == [] and plain["factors"] == "" and [w for w, differs, _ in plain["target"] if differs]
    assert "too many" in studio.words("word " * 90, "b", EditConfig())["problem"]
    assert json.dumps(words)


def test_one_model_in_memory(tmp_path, monkeypatch):
    from tests.models import tiny
    folder = tiny.make(tmp_path / "little").folder
    studio = Studio([str(folder), "stilllife"], folder=tmp_path / "files")
    little = studio.recommended("edit", "sage")
    try:
        assert studio.model.name == "little" and list(studio.places) == ["little", find_model("stilllife")[0]]
        assert studio.usual("edit") == "sage"  # nothing is recorded for it
        studio.use("stilllife")
        assert studio.recommended("edit", "sage") != little and studio.model.name == "stilllife"
        assert (studio.usual("edit"), studio.usual("generate")) == ("turbo-ddpm", "plain")
        with pytest.raises(ModelError, match="no model"):
            studio.use(str(ROOT))
        studio.use("little")
        assert studio.recommended("edit", "sage") == little

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
        studio.use("little")
        assert studio.recommended("edit", "sage") == little and studio.model.name == "little"
    finally:
        studio.close()


# ---- any method, and pictures from text


def fitting(studio, name):
    """Leave the test where the method is for other models."""
    if why := method(name).fits(studio.model):
        pytest.skip(why)


# All that the studio does with a method these show; the others differ in their own files.
QUICK = {"sage", "regiondrag"}
every = pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
                                         for name in able("edit")])


@every
def test_every_method_edits_repeats_and_is_explained(studio, who, name, tmp_path):
    fitting(studio, name)
    studio.take(who, MUG, "mug.png")
    config = studio.recommended("edit", name).but(steps=2)
    entry = ended(studio.edit(who, EditRequest("stilllife", SOURCE, TARGET, config)))
    assert entry.record["method"] == name and read_settings(entry.path) == entry.record
    assert cli.main(["edit", str(MUG), "--config-from", str(entry.path), "--out", str(tmp_path / "again.png"),
                     "--quiet"]) == 0
    assert (tmp_path / "again.png").read_bytes() == entry.path.read_bytes()
    page = ended(studio.look_inside(who, entry))
    assert page.startswith("<!doctype html>") and "prediction, guided" in page


def test_words_that_are_gone_do_not_block_an_edit(studio, wanted, who):
    studio.take(who, MUG, "mug.png")
    stale = wanted.config.but(reweight={"grumpy": 2.0, "yellow": 1.5}, replace=("tree", "mug"),
                              blend=("blue", "yellow"))
    entry = ended(studio.edit(who, EditRequest("stilllife", SOURCE, TARGET, stale)))
    kept = entry.record["settings"]
    assert kept["reweight"] == {"yellow": 1.5} and kept["replace"] == "auto" and kept["blend"] == ["blue", "yellow"]
    assert any("'grumpy'" in note for note in entry.notes) and any(note.startswith("replace") for note in entry.notes)


def test_a_large_photograph_is_scaled_down(studio, who, tmp_path):
    Image.new("RGB", (5000, 4000), "teal").save(tmp_path / "photo.png")
    assert studio.take(who, tmp_path / "photo.png", "photo.png") is None
    picture = studio.visit(who).picture
    assert 15_900_000 < picture.image.width * picture.image.height <= studio.limits.pixels
    assert picture.identity["scaled"] == "{} x {}".format(*picture.image.size)


def test_an_edit_of_what_was_scaled_down_is_repeated_by_its_command(studio, who, tmp_path, monkeypatch):
    monkeypatch.setattr(studio.album, "pixels", 9_000)
    monkeypatch.chdir(tmp_path)
    Path("mug.png").write_bytes(MUG.read_bytes())
    studio.take(who, Path("mug.png"), "mug.png")
    config = studio.recommended("edit", "plain").but(steps=1)
    entry = ended(studio.edit(who, EditRequest("stilllife", SOURCE, TARGET, config)))
    Path(entry.path.name).write_bytes(entry.path.read_bytes())
    assert entry.record["picture"]["scaled"] == "94 x 94"
    words = shlex.split(recipe.as_command(entry.record, studio.model, entry.path.name))
    assert cli.main([*words[1:], "--out", "again.png", "--quiet"]) == 0
    assert Path("again.png").read_bytes() == entry.path.read_bytes()
    monkeypatch.setattr(sage, "load_model", lambda name: studio.model)
    exec(recipe.as_python(entry.record, studio.model, entry.path.name), {})
    assert (np.asarray(Image.open("result.png")) == np.asarray(Image.open(entry.path))).all()


def test_no_visitor_names_code_to_run(studio, who, tmp_path):
    """Neither in a form nor in a picture."""
    evil = tmp_path / "evil.py"
    evil.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    where = f"{evil}:Evil"
    for task in ("edit", "generate"):
        with pytest.raises(SettingsError, match="no method"):
            studio.found(where, task)
    record = {"version": 2, "method": where, "settings": {}, "savings": {}, "source": "a", "target": "b",
              "model": "stilllife", "prediction_type": None, "truncate": False,
              "picture": {"name": "x", "sha256": "y"}, "made": {}}
    pictures.save_picture(Image.new("RGB", (8, 8)), tmp_path / "p.png", record)
    with pytest.raises(PictureError, match="someone's own"):
        studio.take(who, tmp_path / "p.png", "p.png")
    assert not (tmp_path / "ran").exists()


def test_savings_of_a_record_are_passed_when_it_is_repeated_and_only_then(studio, wanted, who, tmp_path, monkeypatch):
    studio.take(who, MUG, "mug.png")
    entry, given = ended(studio.edit(who, wanted)), []
    real = service.edit_batch
    monkeypatch.setattr(service, "edit_batch", lambda *a, **k: given.append(k["savings"]) or real(*a, **k))
    tiled = entry.record | {"savings": {"references": False, "text": False, "tiles": True}}
    path = pictures.save_picture(Image.open(entry.path), tmp_path / "tiled.png", tiled)
    studio.take(who, path, "tiled.png")
    assert ended(studio.edit(who, wanted)).record == tiled
    other = EditRequest("stilllife", SOURCE, TARGET, wanted.config.but(guidance_scale=1.0))
    assert ended(studio.edit(who, other)).record["savings"]["tiles"] is False
    assert [savings and savings.tiles for savings in given] == [True, None]


@pytest.mark.parametrize("name", able("generate"))
def test_a_picture_from_text_is_that_of_sage_generate(studio, who, name, tmp_path):
    fitting(studio, name)
    config = studio.recommended("generate", name).but(steps=2)
    entry = ended(studio.make(who, MakeRequest("stilllife", TARGET, "a cone", 64, 96, config)))
    assert Image.open(entry.path).size == (64, 96) and entry.record["task"] == "generate"
    assert cli.main(["generate", "--config-from", str(entry.path), "--out", str(tmp_path / "again.png"),
                     "--quiet"]) == 0
    assert (tmp_path / "again.png").read_bytes() == entry.path.read_bytes()
    assert studio.take(who, entry.path, "mine.png")["target"] == TARGET  # a picture to edit
    assert studio.visit(who).picture.image.size == (64, 96) and studio.visit(who).restored is None


@pytest.mark.parametrize("change, words", [({"prompt": " "}, "prompt is empty"), ({"width": 63}, "width"),
                                           ({"height": 4096}, "at most 256"), ({"model": "x"}, "no model")])
def test_mistakes_in_making_are_told(studio, who, change, words):
    given = {"model": "stilllife", "prompt": TARGET, "negative": "", "width": 64, "height": 64} | change
    with pytest.raises(SageError, match=words):
        ended(studio.make(who, MakeRequest(config=studio.recommended("generate", "plain").but(steps=1), **given)))


class Only:
    """A model with exactly the members of `Backbone`."""

    def __init__(self, model):
        self._model = model

    def __getattr__(self, name):
        members = {*Backbone.__annotations__, *(n for n in vars(Backbone) if not n.startswith("_"))}
        if name not in members:
            raise AttributeError(f"a Backbone has no {name}")
        return getattr(self._model, name)


@every
def test_whatever_has_the_members_of_a_backbone_will_do(studio, tmp_path, monkeypatch, name):
    fitting(studio, name)
    monkeypatch.setattr(service, "load_model", lambda place: Only(studio.model))
    other = Studio(["stilllife"], folder=tmp_path / "files")
    try:
        other.take("me", MUG, "mug.png")
        config = other.recommended("edit", name).but(steps=2)
        entry = ended(other.edit("me", EditRequest("stilllife", SOURCE, TARGET, config)))
        assert "Settings" in ended(other.look_inside("me", entry))
    finally:
        other.close()
