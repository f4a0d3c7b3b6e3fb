import colorsys
from dataclasses import replace

import numpy as np
import pytest

from sage.stilllife import scenes
from sage.stilllife.camera import RGB, place_things
from sage.stilllife.edits import changed_pixels, dilate
from sage.stilllife.render import render, thing_mask
from sage.stilllife.scenes import Companion, Scene, Thing, training_scene
from sage.stilllife.styles import PAPER

MUG = Scene(Thing("mug", "red"), floor="sand", background="grey wall")


def test_shape_type_range_and_determinism():
    for i in range(12):
        scene = training_scene(i)
        picture = render(scene)
        assert picture.shape == (64, 64, 3) and picture.dtype == np.float32
        assert 0 <= picture.min() and picture.max() <= 1
        assert picture.std() > 0.03
        assert np.array_equal(picture, render(scene))


@pytest.mark.parametrize("size, supersample", [(0, 2), (64, 0)])
def test_impossible_sizes_are_refused(size, supersample):
    with pytest.raises(ValueError, match="at least 1"):
        render(MUG, size, supersample)


def test_the_picture_does_not_depend_on_the_resolution():
    for i in range(24):
        scene = training_scene(i)
        fine = render(scene, 128).reshape(64, 2, 64, 2, 3).mean((1, 3))
        assert np.abs(fine - render(scene, 64)).mean() < 0.015


@pytest.mark.parametrize("style", scenes.STYLES)
@pytest.mark.parametrize("attribute", list(scenes.MAIN))
def test_each_attribute_of_the_thing_shows_and_stays_near_it(attribute, style):
    base = replace(MUG, style=style)
    for value in scenes.MAIN[attribute]:
        if value == base.attributes()[attribute]:
            continue
        other = replace(base, main=replace(base.main, **{attribute: value}))
        changed = changed_pixels(render(base), render(other))
        assert changed.mean() > 0.02, value
        if attribute in ("colour", "material"):
            assert not (changed & ~dilate(thing_mask(base))).any(), value


@pytest.mark.parametrize("attribute, choices", [("floor", scenes.FLOORS), ("background", scenes.BACKGROUNDS)])
def test_floor_and_background_show_and_keep_to_their_half(attribute, choices):
    pictures = [render(replace(MUG, **{attribute: value})) for value in choices]
    horizon = round(64 * (1 - MUG.jitter.horizon))
    for i, a in enumerate(pictures):
        for b in pictures[:i]:
            changed = changed_pixels(a, b)
            assert changed.mean() > 0.2
            other_half = changed[: horizon - 3] if attribute == "floor" else changed[horizon + 3 :]
            assert not other_half.any()


def test_styles_show():
    pictures = [render(replace(MUG, style=style)) for style in scenes.STYLES]
    assert all(changed_pixels(a, b).mean() > 0.5 for i, a in enumerate(pictures) for b in pictures[:i])
    photo, _, sketch, night = (p.mean() for p in pictures)
    assert night < photo < sketch


@pytest.mark.parametrize("form", scenes.FORMS)
def test_positions_and_sizes_are_where_they_say(form):
    def column(size, position):
        mask = thing_mask(replace(MUG, main=Thing(form, "red", size=size, position=position)))
        return np.argwhere(mask)[:, 1].mean() / 64

    for size in scenes.SIZES:
        left, middle, right = (column(size, p) for p in scenes.POSITIONS)
        assert left + 0.15 < middle < right - 0.15
    small, large = (thing_mask(replace(MUG, main=Thing(form, "red", size=s))).sum() for s in scenes.SIZES)
    assert large > 2 * small


def test_moving_the_thing_moves_the_change():
    empty = replace(MUG, main=replace(MUG.main, colour="blue"))

    def centroid(position):
        a, b = (replace(s, main=replace(s.main, position=position)) for s in (MUG, empty))
        return np.argwhere(changed_pixels(render(a), render(b)))[:, 1].mean()

    assert centroid("left") + 8 < centroid("middle") < centroid("right") - 8


@pytest.mark.parametrize("tilt", scenes.TILTS)
@pytest.mark.parametrize("form", scenes.FORMS)
def test_things_stay_inside_the_frame_and_their_box(form, tilt):
    if (form, tilt) == ("ball", "tilted"):
        pytest.skip("a ball does not tilt")
    for position in scenes.POSITIONS:
        for jitter in (scenes.Jitter(dx=-0.03, scale=1.07), scenes.Jitter(dx=0.03, scale=1.07)):
            scene = replace(MUG, main=Thing(form, "red", position=position, tilt=tilt), jitter=jitter)
            rows, cols = np.nonzero(thing_mask(scene, size=128))
            left, right, low, high = place_things(scene)[0].box
            assert 0 < left and right < 1 and 0 < low and high < 1
            # The hull is what the silhouette fills, to about a pixel and the rounding of corners.
            assert np.allclose((cols.min(), cols.max() + 1), (left * 128, right * 128), atol=3)
            assert np.allclose((128 - rows.max() - 1, 128 - rows.min()), (low * 128, high * 128), atol=3)


@pytest.mark.parametrize("form", [f for f in scenes.FORMS if f != "ball"])
def test_tilted_things_look_different_and_tall_ones_lean_to_the_right(form):
    upright, tilted = (thing_mask(replace(MUG, main=Thing(form, "red", tilt=t))) for t in scenes.TILTS)
    assert (upright ^ tilted).sum() > 0.15 * upright.sum()

    def lean(mask):
        rows, cols = np.nonzero(mask)
        upper = rows < (rows.min() + rows.max()) / 2
        return cols[upper].mean() - cols[~upper].mean()

    if form in ("cylinder", "cone", "bottle", "ring"):
        assert lean(tilted) > lean(upright) + 2


@pytest.mark.parametrize("style", scenes.STYLES)
@pytest.mark.parametrize("colour", scenes.COLOURS)
def test_the_colour_dominates_the_thing(colour, style):
    scene = replace(MUG, main=Thing("cylinder", colour), style=style)
    seen = np.median(render(scene)[thing_mask(scene)], axis=0)

    def distance(name):
        ideal = 0.28 * np.array(PAPER) + 0.72 * np.array(RGB[name]) if style == "sketch" else RGB[name]
        h, s, _ = colorsys.rgb_to_hsv(*ideal)
        hue, saturation, _ = colorsys.rgb_to_hsv(*seen)
        turn = abs((hue - h + 0.5) % 1 - 0.5) if name != "white" else 0
        return turn + 0.5 * abs(saturation - s)

    assert min(scenes.COLOURS, key=distance) == colour


def test_second_thing_is_beside_and_in_front():
    scene = replace(MUG, second=Companion("cube", "blue", "left"))
    changed = changed_pixels(render(MUG), render(scene))
    rows, cols = np.nonzero(changed)
    assert cols.max() < 28 and rows.min() > 36
    second, main = thing_mask(scene, 1), thing_mask(scene, 0)
    assert (second & main).sum() < 0.06 * main.sum()
    with pytest.raises(IndexError):
        thing_mask(MUG, 1)
