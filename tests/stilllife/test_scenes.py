from collections import Counter

import numpy as np
import pytest

from sage.stilllife import scenes
from sage.stilllife.scenes import Companion, Jitter, Scene, Thing, held_out_scene, is_held_out, training_scene


def test_scenes_are_values():
    assert training_scene(3) == training_scene(3)
    assert hash(training_scene(3)) == hash(training_scene(3))
    assert len({training_scene(i) for i in range(200)}) == 200


def test_training_never_shows_what_is_held_out():
    assert not any(is_held_out(training_scene(i)) for i in range(1500))
    assert all(is_held_out(held_out_scene(i)) for i in range(100))


def test_one_combination_in_sixteen_is_held_out():
    rng = np.random.default_rng(0)
    share = np.mean([is_held_out(scenes.sample_scene(rng)) for _ in range(4000)])
    assert abs(share - 1 / 16) < 0.015


def test_holding_out_ignores_jitter_and_the_second_thing():
    for i in range(50):
        scene = held_out_scene(i)
        second = scenes.sample_companion(np.random.default_rng(i), scene.main)
        assert is_held_out(Scene(scene.main, second, scene.floor, scene.background, scene.style, Jitter()))


def test_every_value_is_drawn_about_as_often_as_promised():
    rng = np.random.default_rng(1)
    n = 4000
    drawn = [scenes.sample_scene(rng).attributes() for _ in range(n)]
    counts = {a: Counter(d[a] for d in drawn) for a in scenes.ATTRIBUTES}
    for attribute, values in {
        "form": scenes.FORMS,
        "colour": scenes.COLOURS,
        "material": scenes.MATERIALS,
        "size": scenes.SIZES,
        "position": scenes.POSITIONS,
        "floor": scenes.FLOORS,
        "background": scenes.BACKGROUNDS,
    }.items():
        assert set(counts[attribute]) == set(values)
        assert all(abs(counts[attribute][v] / n - 1 / len(values)) < 0.04 for v in values)
    assert abs(counts["style"]["photo"] / n - 0.4) < 0.04
    assert abs(1 - counts["second_form"]["none"] / n - 0.3) < 0.04
    standing = [d for d in drawn if d["form"] != "ball"]
    assert abs(np.mean([d["tilt"] == "tilted" for d in standing]) - 1 / 3) < 0.04


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: Thing("pyramid", "red"), "form 'pyramid'.*mushroom"),
        (lambda: Thing("ball", "teal"), "colour 'teal'.*purple"),
        (lambda: Thing("mug", "red", material="furry"), "material 'furry'.*striped"),
        (lambda: Thing("mug", "red", size="huge"), "size 'huge'"),
        (lambda: Thing("mug", "red", position="top"), "position 'top'"),
        (lambda: Thing("mug", "red", tilt="fallen"), "tilt 'fallen'"),
        (lambda: Thing("ball", "red", tilt="tilted"), "ball"),
        (lambda: Companion("mug", "red"), "second form 'mug'"),
        (lambda: Companion("ball", "red", "middle"), "side 'middle'"),
        (lambda: Jitter(dx=0.2), "dx 0.2"),
        (lambda: Scene(Thing("mug", "red"), floor="lava"), "floor 'lava'"),
        (lambda: Scene(Thing("mug", "red"), background="sea"), "background 'sea'"),
        (lambda: Scene(Thing("mug", "red"), style="oil"), "style 'oil'"),
        (lambda: Scene(Thing("mug", "red", position="left"), Companion("ball", "blue", "left")), "side 'left'"),
        (lambda: Scene(Thing("mug", "red"), Companion("ball", "red")), "second colour 'red'"),
    ],
)
def test_bad_values_are_named(make, said):
    with pytest.raises(ValueError, match=said):
        make()
