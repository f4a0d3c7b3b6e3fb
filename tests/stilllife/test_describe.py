"""A description of what was read off a picture."""

from sage.stilllife import varied_scene
from sage.stilllife.describe import described
from sage.stilllife.prompts import prompt
from sage.stilllife.scenes import Companion, Scene, Thing

SCENE = Scene(Thing("mug", "blue", "shiny"), Companion("cone", "green"), "stone", "brick wall")


def read(scene, **shares):
    return {name: (value, shares.get(name, 0.99)) for name, value in scene.attributes().items()}


def test_a_scene_read_right_is_described_as_its_prompt():
    assert described(read(SCENE)) == (prompt(SCENE), ())
    assert "large blue shiny mug" in prompt(SCENE)


def test_what_is_unsure_is_left_out_and_named():
    text, unsure = described(read(SCENE, colour=0.3, floor=0.2, form=0.1))
    assert "blue" not in text and "stone" not in text and "mug" in text and unsure == ("form", "colour", "floor")
    assert "cone" not in described(read(SCENE, second_form=0.4))[0]


def test_what_no_scene_has_is_described_all_the_same():
    odd = read(SCENE) | {"form": ("ball", 0.9), "tilt": ("tilted", 0.9), "second_colour": ("blue", 0.9)}
    text, unsure = described(odd)
    assert "tilted" not in text and "with a tiny cone next to it" in text and unsure == ("second_colour",)
    for seed in range(50):
        assert described(read(varied_scene(seed)))[0]
