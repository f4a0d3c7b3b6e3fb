import re
from dataclasses import replace

import numpy as np
import pytest

from sage.stilllife import scenes
from sage.stilllife.captions import WORDS, caption, draw_wording, join, phrases
from sage.stilllife.scenes import ATTRIBUTES, Companion, Scene, Thing, training_scene

BALL = Scene(Thing("ball", "red", "striped", "large", "left"), floor="wooden", background="blue sky")


def spoken(value: str, text: str) -> bool:
    return any(re.search(rf"\b{w}\b", text) for w in WORDS.get(value, (value,)))


def test_canonical_wording():
    assert caption(BALL) == "a photo of a large red striped ball on the left, on wooden planks, a blue sky behind"
    scene = Scene(Thing("mug", "white", tilt="tilted"), Companion("cube", "orange"), "snow", "curtain", "sketch")
    assert caption(scene) == (
        "a pencil sketch of a large tilted white matte mug in the middle, on snow, "
        "with a tiny orange cube next to it, a curtain behind"
    )


def test_every_attribute_is_spoken():
    for i in range(300):
        scene = training_scene(i)
        for text in (caption(scene), caption(scene, np.random.default_rng(i), ATTRIBUTES)):
            for name, value in scene.attributes().items():
                if value not in ("none", "upright"):
                    assert spoken(value, text), (name, text)
            assert len(text.replace(",", " ,").split()) <= 35
            assert re.fullmatch(r"[a-z]+(,? [a-z]+)*", text)


def test_no_word_serves_two_attributes():
    home: dict[str, str] = {}
    for name, values in {**scenes.MAIN, **scenes.AROUND}.items():
        for value in values:
            for words in WORDS.get(value, (value,)):
                for word in words.split():
                    if word not in ("on", "at", "in", "the", "blue"):  # "blue sky" is the one exception
                        assert home.setdefault(word, name) == name, word


@pytest.mark.parametrize("dropped", [a for a in ATTRIBUTES if a not in ("form", "second_form")])
def test_dropping_an_attribute(dropped):
    keep = set(ATTRIBUTES) - {dropped}
    missed = 0
    for i in range(40):
        scene = training_scene(i)
        value = scene.attributes()[dropped]
        pieces = phrases(scene, draw_wording(np.random.default_rng(i)), keep)
        assert dropped not in {a for a, _ in pieces}
        assert ("form", scene.main.form) in pieces
        missed += value != "none"
    assert missed > 5


def test_dropping_everything_and_the_second_thing():
    scene = replace(BALL, second=Companion("cube", "blue"))
    assert caption(scene, keep=()) == "a ball"
    assert caption(scene, keep={"colour"}) == "a red ball"
    assert caption(replace(scene, main=Thing("ball", "orange")), keep={"colour"}) == "an orange ball"
    assert "cube" not in caption(scene, keep=set(ATTRIBUTES) - {"second_form"})
    assert "with a tiny cube next" in caption(scene, keep=set(ATTRIBUTES) - {"second_colour"})
    with pytest.raises(ValueError, match="'colours' is not one of"):
        caption(scene, keep={"colours"})


def test_same_seed_differs_only_in_edited_words():
    for i in range(60):
        scene = training_scene(i)
        taken = {scene.main.colour, scene.second and scene.second.colour}
        colour = next(c for c in scenes.COLOURS if c not in taken)
        other = replace(scene, main=replace(scene.main, colour=colour))
        a, b = (caption(s, np.random.default_rng(i), ATTRIBUTES).split() for s in (scene, other))
        differing = [(v, w) for v, w in zip(a, b, strict=True) if v != w]
        assert differing == [(scene.main.colour, colour)]


def test_wordings_vary_and_some_drop_attributes():
    texts = [caption(BALL, np.random.default_rng(i)) for i in range(300)]
    assert len(set(texts)) > 100
    values = [v for v in BALL.attributes().values() if v not in ("none", "upright")]
    full = np.mean([all(spoken(v, t) for v in values) for t in texts])
    assert 0.5 < full < 0.85
    starts = {t.split()[1] for t in texts}
    assert {"photo", "large", "red"} <= starts


def test_pieces_join_to_the_caption():
    assert join(phrases(BALL)) == caption(BALL)
