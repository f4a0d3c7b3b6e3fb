"""The words that a model was taught: read strictly, held against prompts, and told."""

import os

import pytest
from matplotlib import get_data_path

import sage
import sage.pictures
from sage import EditConfig, ModelError
from sage.commands.main import main
from sage.editing import check_prompts, edit_batch
from sage.generation import generate
from sage.models.known import installed
from sage.pictures import from_pixels
from sage.prompts.vocabulary import (
    FILE,
    MOST,
    about_second,
    about_unknown,
    as_taught,
    read_words,
    unknown_words,
    words_of,
)
from sage.stilllife import KINDS, edit_case
from tests import small
from tests.hardening.soon import soon

KNOWN = ("a", "red", "blue", "mug", "on", "grass", "photograph")


def test_the_words_of_a_text():
    assert words_of('A "Grey-blue" MUG, on the cat\'s\tmat; 2 of them!') == [
        "a", "grey-blue", "mug", "on", "the", "cat's", "mat", "2", "of", "them"]
    assert words_of(" ,;—") == []


def test_what_is_not_known_is_named_with_what_is_nearest():
    assert unknown_words(KNOWN, ["a red mugg", "a Red Mug on photographs, photographs"]) == ("mugg", "photographs")
    assert unknown_words((), ["anything"]) == ()
    assert about_unknown("m", KNOWN, ["a red mug"]) == () == about_unknown("m", (), ["a cat"])
    [note] = about_unknown("m", KNOWN, ["a red mugg", "a xyzzy"])
    assert note.startswith("m was not taught 'mugg' (did you mean 'mug'?), 'xyzzy': ") and "sage info m" in note
    [note] = about_unknown("m", KNOWN, [" ".join(f"q{i}" for i in range(9))])
    assert "'q4' and 4 more" in note and "'q5'" not in note


@pytest.mark.parametrize("text, overlooked", (
    ("a mug and a cone", "cone"), ("A blue mug with a Cone next to it", "cone"), ("mug, ball, brick wall", "ball"),
    ("a mug and a cup in front of a brick wall", ""), ("a tiny mug and a cone", "cone"),
    ("a mug and a cone in front of a brick wall", "cone"), ("a mug", ""), ("a mug and a tiny green cone", ""),
    ("a mug with a cone behind it", ""), ("a mug, in front of it a cone", ""), ("a mug behind a big cone", "")))
def test_a_second_thing_that_is_not_heard_of_is_pointed_at(text, overlooked):
    said = about_second("m", ("mug", "tiny"), (text,))
    assert [note[-len(overlooked) - 1:-1] for note in said] == ([overlooked] if overlooked else [])
    assert about_second("m", ("mug",), (text,)) == ()  # of another world


@pytest.mark.parametrize("slip, meant", [
    ("mugg", "mug"), ("woodn", "wooden"), ("purpel", "purple"), ("brik", "brick"), ("photograf", "photograph"),
    ("greeen", "green"), ("boards", "board"), ("cat", ""), ("car", ""), ("boat", ""), ("tree", ""), ("flower", ""),
    ("kitchen", ""), ("candle", ""), ("house", ""), ("table", "")])
def test_a_slip_of_the_fingers_is_told_from_a_word_that_was_meant(slip, meant):
    known = ("and", "at", "blue", "board", "bottle", "brick", "cartoon", "floor", "green", "huge", "mug", "photograph",
             "purple", "sketch", "there", "wooden")
    [note] = about_unknown("m", known, [f"a {slip}", *known])
    assert note.startswith(f"m was not taught 'a', {slip!r}" + (f" (did you mean {meant!r}?):" if meant else ":"))


def test_a_list_is_read_strictly(tmp_path):
    assert read_words(tmp_path) == ()
    (tmp_path / FILE).write_bytes("\ufeffRed\nblue \n\nblue\n".encode())
    assert read_words(tmp_path) == ("red", "blue")
    for bad in (b"\xff\xfe", b"a" * (MOST + 1)):
        (tmp_path / FILE).write_bytes(bad)
        with pytest.raises(ModelError, match=FILE):
            read_words(tmp_path)
    (tmp_path / FILE).unlink()
    os.mkfifo(tmp_path / FILE)
    with pytest.raises(ModelError, match=FILE):
        read_words(tmp_path)


def test_words_of_any_length_are_compared_soon():
    with soon(5):
        assert about_unknown("m", ["a" * 500_000, *(f"{'a' * 4000}{i}" for i in range(99))], ["a" * 4000, "a" * 30])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    made = small.make(tmp_path_factory.mktemp("small") / "tokenizer").model
    made.prompts.taught = ("a", "cat", "dog", "on", "mat")
    return made


def test_a_note_of_an_edit_and_of_a_picture_from_nothing(model):
    config = EditConfig(steps=3, guided_steps=1, replace=None)
    assert check_prompts(model, "a cat on a mat", "a dog on a mat", config).notes == ()
    [note] = check_prompts(model, "a cat on a mat", "a dogg on a mat", config).notes
    assert "small was not taught 'dogg' (did you mean 'dog'?)" in note
    plain = sage.method("plain").recommended(model, "generate").but(steps=2)
    [made] = generate(model, "a hat", plain, width=32, height=32)
    assert any("not taught 'hat':" in note for note in made.notes)


def test_equal_prompts_get_a_remark_unless_words_are_weighed(model):
    config = EditConfig(steps=3, guided_steps=1, replace=None)
    [note] = check_prompts(model, "a cat on a mat", "A cat  on a mat", config).notes
    assert "nothing is asked to change" in note
    assert check_prompts(model, "a cat", "a cat", config.but(reweight={"cat": 2.0})).notes == ()


# ---- the bundled model


def test_the_bundled_model_lists_its_words(capsys):
    known = read_words(installed("stilllife"))
    assert 50 < len(known) < 500 and tuple(sorted(known)) == known
    assert main(["info", "stilllife"]) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("words: ")]
    assert line.removeprefix("words: ").split() == list(known)


@pytest.mark.slow
def test_the_bundled_model_knows_the_words_of_its_benchmark():
    known = read_words(installed("stilllife"))
    for kind in range(len(KINDS)):
        for seed in range(12):
            case = edit_case(kind, seed)
            assert unknown_words(known, [case.source_prompt, case.target_prompt]) == ()


@pytest.fixture(scope="module")
def bundled():
    return sage.load_model("stilllife", device="cpu")


def notes_of(model, *images):
    plan = check_prompts(model, "a red ball", "a blue ball", (config := EditConfig(steps=1, guided_steps=0, retries=0)))
    results = edit_batch(model, images, [plan] * len(images), config)
    return [[note for note in result.notes if "unlike those" in note] for result in results]


def test_a_photograph_on_the_bundled_model_gets_a_note_that_names_what_to_use(bundled):
    photograph = sage.pictures.open_picture(get_data_path() + "/sample_data/grace_hopper.jpg")
    scenes = [from_pixels(edit_case(kind, 0).pictures(bundled.sample_size)[0]) for kind in range(len(KINDS))]
    assert notes_of(bundled, *scenes) == [[]] * len(scenes)
    side = (bundled.sample_size, bundled.sample_size)
    [none, [note]] = notes_of(bundled, scenes[0], photograph.resize(side))
    assert none == [] and "stilllife" in note and "for photographs take another model, such as sd-1.4" in note
    assert "sage fetch sd-1.4" in note
    bundled.prompts.taught, known = (), bundled.prompts.taught
    try:
        assert notes_of(bundled, photograph) == [[]]
    finally:
        bundled.prompts.taught = known


@pytest.mark.parametrize("text, taught", (
    ("a mug and a cone", "a mug and a tiny cone"), ("A mug, an orange Cone by it", "A mug, a tiny orange Cone by it"),
    ("a mug and a little green cone, a photo", "a mug and a tiny green cone, a photo"), ("mug, cone", "mug, tiny cone"),
    ("a mug and a big cone", "a mug and a big cone"), ("a mug with a cone behind it", "a mug with a cone behind it"),
    ("a mug and a tiny cone", "a mug and a tiny cone"), ("a mug", "a mug"), ("a dog and a cat", "a dog and a cat"),
    ("a Drawing of a mug", "a pencil drawing of a mug"), ("a pencil drawing of a mug", "a pencil drawing of a mug"),
    ("a mug in the snow", "a mug on snow"), ("mug in grass", "mug on grass"),
    ("a mug on wood", "a mug on wooden planks"),
    ("a mug on the wood floor", "a mug on the wooden floor"), ("a mug on a wooden floor", "a mug on a wooden floor"),
    ("a mug on the stone, photo", "a mug on stone tiles, photo"), ("a mug on stone slabs", "a mug on stone slabs"),
    ("mug on a stone floor", "mug on a stone floor"),
    ("a mug and a cone in the sand", "a mug and a tiny cone on sand")))
def test_what_people_say_is_said_as_the_model_was_taught_to(text, taught):
    known = ("mug", "tiny")
    (source, target), notes = as_taught("m", known, text, "a mug")
    assert (source, target) == (taught, "a mug")
    assert notes == ((f"m was taught to say it otherwise: taken as {taught!r}",) if text != taught else ())
    assert as_taught("m", known, *as_taught("m", known, text)[0]) == ((taught,), ())  # and no more than once
    assert as_taught("m", ("mug",), text) == ((text,), ())  # of another world
