"""Free places: what is drawn stays in the frame, is named rightly, and moves as a whole."""

from dataclasses import replace

import numpy as np
import pytest

from sage.stilllife.camera import CENTRE, place_things
from sage.stilllife.render import layers, render, thing_mask
from sage.stilllife.scenes import Companion, Place, Scene, Thing, is_held_out
from sage.stilllife.varied import nameable, relation, varied_scene, within_frame

SCENES = [varied_scene(i) for i in range(400)]
MUG = Scene(Thing("mug", "red"), Companion("cube", "blue", "left"), floor="sand", background="grey wall")


def placed(dx=0.0, dy=0.0, scale=1.0):
    return replace(MUG, main=replace(MUG.main, place=Place(dx, dy, scale)))


def test_same_seed_same_scene_and_only_evaluation_scenes_are_held_out():
    assert varied_scene(3) == SCENES[3] != varied_scene(4)
    assert not any(is_held_out(s) for s in SCENES)
    assert all(is_held_out(varied_scene(i, held_out=True)) for i in range(40))


def test_things_stay_in_the_frame_on_the_floor_and_spread_over_it():
    mains = [place_things(s)[0] for s in SCENES]
    assert all(within_frame(thing) for s in SCENES for thing in place_things(s))
    assert all(thing.y < s.jitter.horizon for s, thing in zip(SCENES, mains, strict=True))
    x, _ = np.histogram([thing.x for thing in mains], bins=6, range=(0.2, 0.8))
    assert (x > len(SCENES) / 20).all()
    assert np.std([thing.y for thing in mains]) > 0.02


def test_names_are_kept_only_where_they_fit():
    unsaid = {"position": 0, "size": 0}
    for scene in SCENES:
        names, thing = nameable(scene), place_things(scene)[0]
        if "position" in names:
            nearest = min(CENTRE, key=lambda p: abs(CENTRE[p] - thing.x))
            # Wide things are held off the frame's edges, towards the middle.
            assert nearest == scene.main.position or nearest == "middle" and thing.box[1] - thing.box[0] > 0.45
        for name in unsaid:
            unsaid[name] += name not in names
        assert ("second_form" in names) == (scene.second is not None)
    assert all(0.03 < n / len(SCENES) < 0.3 for n in unsaid.values())


def test_pairs_are_of_like_size_and_hide_a_part_of_each_other():
    pairs = [s for s in (varied_scene(i) for i in range(1200)) if s.second and relation(s) != "beside"]
    assert 0.03 < len(pairs) / 1200 < 0.12
    assert {relation(s) for s in pairs} == {"behind", "before"}
    for scene in pairs[:12]:
        main, second = layers(scene).whole
        whole, seen = (part.sum((1, 2)) for part in (layers(scene).whole, layers(scene).seen))
        hidden = 1 if relation(scene) == "behind" else 0
        assert seen[1 - hidden] == whole[1 - hidden]
        assert 0.2 * whole[hidden] < seen[hidden] <= whole[hidden]
        assert 0.25 < second.sum() / main.sum() < 4


@pytest.mark.parametrize("style", ["photo", "cartoon", "night"])
@pytest.mark.parametrize("form", ["mug", "bottle", "ring", "mushroom"])
def test_a_move_by_whole_pixels_moves_every_pixel_of_the_thing(form, style):
    n, dx, dy = 128, 19, 5
    scene = replace(MUG, main=Thing(form, "red", "striped"), second=None, style=style)
    there = replace(scene, main=replace(scene.main, place=Place(dx / n, dy / n)))
    mask = layers(scene, n).whole[0] == 1
    mask_there = layers(there, n).whole[0] == 1
    assert np.array_equal(np.roll(mask, (-dy, dx), (0, 1)), mask_there)
    before, after = render(scene, n), render(there, n)
    # A ray may end a hair further on a slope, so one pixel in many may differ by more than rounding.
    apart = np.abs(np.roll(before, (-dy, dx), (0, 1)) - after).max(-1)[mask_there]
    assert np.quantile(apart, 0.99) < 1 / 255


def test_scaling_keeps_the_middle_of_the_foot():
    for factor in (0.5, 1.3):
        a, b = place_things(placed())[0], place_things(placed(scale=factor))[0]
        assert (a.x, a.y) == (b.x, b.y)
        assert b.box[3] - b.box[2] == pytest.approx(factor * (a.box[3] - a.box[2]))


def test_what_a_thing_hid_is_the_empty_stage():
    for scene in SCENES[:6]:
        empty = render(scene, shown=())
        main_alone, all_but_main = render(scene, shown=(0,)), render(scene, shown=range(1, 2))
        touched = layers(scene).shadow[0] + (layers(scene).whole[0] > 0) > 0
        grown = np.array([np.roll(touched, (i, j), (0, 1)) for i in (-2, 0, 2) for j in (-2, 0, 2)]).any(0)
        assert np.array_equal(main_alone[~grown], empty[~grown])
        assert np.abs(main_alone - empty)[thing_mask(scene)].max() > 0.1
        if scene.second is None:
            assert np.array_equal(all_but_main, empty) and np.array_equal(main_alone, render(scene))


def test_layers():
    scene = replace(MUG, second=Companion("cube", "blue", "left", Place(0.25, 0.0, 1.5)))
    for size in (32, 64):
        found = layers(scene, size)
        assert found.whole.shape == found.seen.shape == found.shadow.shape == (2, size, size)
        assert found.whole.dtype == np.float32 and 0 <= found.shadow.min() <= found.shadow.max() <= 1
        assert np.array_equal(found.whole[0] >= 0.5, thing_mask(scene, 0, size))
        assert np.array_equal(found.seen[1], found.whole[1])  # it stands in front
        assert 0 < found.seen[0].sum() < found.whole[0].sum()
        assert (found.seen.sum(0) <= 1).all()
    # Shadows darken the floor where they are, and lie on nothing else.
    horizon = round(64 * (1 - scene.jitter.horizon))
    dark = found.shadow.max(0)
    assert not dark[: horizon - 2].any()
    seen = found.seen.sum(0) == 0
    lighter = render(scene, shown=()) - render(scene)
    assert (lighter[(dark > 0.5) & seen] > 0.05).all() and np.abs(lighter[(dark == 0) & seen]).max() < 1e-6


def test_edges_are_as_sharp_as_the_picture_is_large():
    scene = replace(MUG, background="brick wall", floor="stone")

    def steepest(size):
        return np.abs(np.diff(render(scene, size, shown=()), axis=0)).max()

    # An edge of a fixed width would be a ramp of several pixels, and its steps smaller by as much.
    assert steepest(512) > 0.6 * steepest(64)


@pytest.mark.parametrize("name, value", [("dx", 1.2), ("dy", -3.0), ("scale", 0.1)])
def test_impossible_places_are_named(name, value):
    with pytest.raises(ValueError, match=f"place {name} {value}"):
        Place(**{name: value})
