"""Captions as people write them."""

import re
from dataclasses import replace

import numpy as np
import pytest

from sage.stilllife import scenes
from sage.stilllife.captions import join
from sage.stilllife.prompts import CANONICAL, WORDS, Wording, draw_wording, everything, named, phrases, prompt
from sage.stilllife.scenes import ATTRIBUTES, Companion, Place, Scene, Thing
from sage.stilllife.varied import nameable, varied_scene

SCENES = [varied_scene(i) for i in range(1000)]
MUG = Scene(Thing("mug", "orange", tilt="tilted"), Companion("cube", "blue"), "stone", "brick wall", "sketch")


def drawn(i):
    return draw_wording(np.random.default_rng(i))


def spoken(value, text):
    return any(re.search(rf"\b{w.removeprefix('a ')}\b", text) for w in WORDS.get(value, (value,)))


def test_canonical_wording():
    assert prompt(MUG) == (
        "a pencil sketch of a large tilted orange matte mug in the middle, on stone tiles, "
        "with a tiny blue cube next to it, a brick wall behind"
    )


@pytest.mark.parametrize(
    "wording, keep, text",
    [
        (Wording(article="the"), (), "the mug"),
        (Wording(), (), "a mug"),
        (Wording(article=""), (), "mug"),
        (Wording(listed=True), {"floor"}, "mug, stone tiles"),
        (Wording(), {"colour"}, "an orange mug"),
        (Wording(style_last=True), {"style"}, "a mug, a pencil sketch"),
        (Wording(style_article=False), {"style"}, "pencil sketch of a mug"),
        (Wording(listed=True, style_article=False), {"style", "background"}, "pencil sketch, mug, brick wall"),
        (Wording(lead="there is"), {"tilt"}, "there is a tilted mug"),
        (Wording(commas=False, background=1), {"floor", "background"}, "a mug on stone tiles in front of a brick wall"),
        (Wording(commas=False), {"background"}, "a mug with a brick wall behind"),
        (Wording(second=3), {"second_form", "second_colour"}, "a mug, and a tiny blue cube"),
    ],
)
def test_forms(wording, keep, text):
    assert join(phrases(MUG, wording, keep)) == text


def test_a_second_thing_of_like_size_is_behind_or_in_front():
    for dy, listed, text in ((0.2, False, "a mug, with a blue cube behind it"),
                             (0.0, False, "a mug, with a blue cube in front of it"),
                             (0.0, True, "mug, blue cube in front of it")):
        scene = replace(MUG, second=Companion("cube", "blue", place=Place(-0.1, dy, 2.0)))
        assert join(phrases(scene, Wording(listed=listed), {"second_form", "second_colour"})) == text


def test_the_number_of_named_attributes_is_spread_evenly():
    shares = []
    for i, scene in enumerate(SCENES):
        said, most = named(scene, drawn(i)), everything(scene, drawn(i))
        assert "form" in said and said <= most <= nameable(scene)
        shares.append((len(said) - 1 + 0.5) / len(most))
    found, _ = np.histogram(shares, bins=5, range=(0, 1))
    assert (np.abs(found / len(SCENES) - 0.2) < 0.05).all()
    assert 0.05 < np.mean([len(named(s, drawn(i))) == 1 for i, s in enumerate(SCENES)]) < 0.2


def test_every_attribute_is_named_about_equally_often():
    said = {a: [0, 0] for a in ATTRIBUTES}
    for i, scene in enumerate(SCENES):
        for a in everything(scene, drawn(i)) - {"form"}:
            said[a][0] += a in named(scene, drawn(i))
            said[a][1] += 1
    for a, (yes, all_) in said.items():
        if a not in ("form", "second_form", "second_colour"):  # a second thing's colour waits for its form
            assert 0.42 < yes / all_ < 0.58, a


def test_all_that_is_kept_is_spoken_and_nothing_else():
    for i, scene in enumerate(SCENES[:400]):
        keep = named(scene, drawn(i))
        pieces = phrases(scene, drawn(i))
        text = join(pieces)
        assert {a for a, _ in pieces} - {"", "second"} == keep
        for name, value in scene.attributes().items():
            if value != "none" and name in keep:
                assert spoken(value, text), (name, text)
        assert re.fullmatch(r"[a-z]+(,? [a-z]+)*", text) and len(text.split()) <= 36
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text), text


def test_same_wording_differs_only_in_the_words_of_what_differs():
    for i, scene in enumerate(SCENES[:200]):
        taken = {scene.main.colour, scene.second and scene.second.colour}
        colour = next(c for c in scenes.COLOURS if c not in taken)
        other = replace(scene, main=replace(scene.main, colour=colour))
        a, b = (phrases(s, drawn(i)) for s in (scene, other))
        differing = {v[0] for v, w in zip(a, b, strict=True) if v != w}
        assert differing <= {"colour", ""}  # an article may follow


def test_no_word_serves_two_attributes():
    home: dict[str, str] = {}
    for name, values in {**scenes.MAIN, **scenes.AROUND}.items():
        for value in values:
            for words in WORDS.get(value, (value,)):
                for word in words.split():
                    if word not in ("on", "at", "in", "the", "a", "blue"):  # "blue sky" is the one exception
                        assert home.setdefault(word, name) == name, word


def test_wordings_vary():
    texts = [join(phrases(MUG, drawn(i), ATTRIBUTES)) for i in range(300)]
    assert len(set(texts)) > 290
    starts = {t.split()[0] for t in texts}
    assert {"a", "the", "an", "pencil", "sketch"} <= starts
    assert prompt(MUG, np.random.default_rng(1)) == prompt(MUG, np.random.default_rng(1))


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="'colours' is not one of"):
        phrases(MUG, CANONICAL, {"colours"})
