"""Edits of places: the truth is the one asked for, to the pixel."""

import numpy as np
import pytest

from sage.stilllife.camera import CENTRE, HEIGHT, place_things
from sage.stilllife.edits import dilate
from sage.stilllife.places import KINDS, moved, place_case, scaled, swapped
from sage.stilllife.render import render
from sage.stilllife.scenes import is_held_out
from sage.stilllife.varied import nameable, varied_scene, within_frame

SEEDS = range(8)
PAIRED = next(s for s in (varied_scene(i) for i in range(100)) if s.second)


@pytest.fixture(scope="module", params=range(len(KINDS)), ids=KINDS)
def cases(request):
    return request.param, [place_case(request.param, seed) for seed in SEEDS]


def test_what_the_kind_says_is_done_and_nothing_else(cases):
    kind, drawn = cases
    for case in drawn:
        before, after = place_things(case.source), place_things(case.target)
        assert (case.source.floor, case.source.background, case.source.style, case.source.jitter) == (
            case.target.floor, case.target.background, case.target.style, case.target.jitter)
        if kind in (3, 4):
            with_second, without = (before, after) if kind == 3 else (after, before)
            assert len(with_second) == 2 and len(without) == 1 and case.thing == 1
            assert with_second[0].x == pytest.approx(without[0].x)
            continue
        for i, (a, b) in enumerate(zip(before, after, strict=True)):
            assert (a.form, a.rgb, a.material, a.tilted) == (b.form, b.rgb, b.material, b.tilted)
            edited = KINDS[kind] == "swap" or i == case.thing
            assert (abs(a.x - b.x) + abs(a.y - b.y) + abs(a.scale - b.scale) > 1e-9) == edited
            if KINDS[kind] == "move" and edited:
                shift = np.array((b.x - a.x, b.y - a.y)) * 128
                assert np.allclose(shift, shift.round(), atol=1e-9) and 12 <= abs(shift[0]) <= 56
            if KINDS[kind] == "scale" and edited:
                assert (a.x, a.y) == pytest.approx((b.x, b.y)) and not 0.86 < b.scale / a.scale < 1.17


def test_things_stay_in_the_frame_and_scenes_are_held_out(cases):
    kind, drawn = cases
    for case in drawn:
        for scene in (case.source, case.target):
            assert is_held_out(scene) and all(within_frame(thing) for thing in place_things(scene))
    case = place_case(kind, 0, held_out=False)
    assert not is_held_out(case.source) and not is_held_out(case.target)
    assert place_case(kind, 1) == drawn[1] and len(set(drawn)) == len(drawn)


def test_points_lie_on_the_thing_and_go_where_its_pixels_go(cases):
    kind, drawn = cases
    for case in drawn:
        points = case.points()
        assert len(points) == {"move": 1, "scale": 3, "swap": 2}.get(KINDS[kind], 0)
        if KINDS[kind] == "move":
            a, b = (part.whole[case.thing] for part in case.layers())
            dx, dy = (points[0, 1] - points[0, 0]).round().astype(int)
            assert np.array_equal(np.roll(a, (dy, dx), (0, 1)), b)
        assert ((points >= 0) & (points <= 128)).all()
        assert np.allclose(case.points(64) * 2, points)


def test_the_revealed_floor_is_that_of_the_empty_stage(cases):
    kind, drawn = cases
    if KINDS[kind] in ("insert", "scale"):
        pytest.skip("reveals nothing, or little")
    for case in drawn[:4]:
        truth, empty = case.pictures()[1], render(case.target, 128, shown=())
        revealed = case.revealed()
        near = case.layers()[1].whole.max(0) > 0
        for _ in range(3):  # outlines lie a little outside of what they are the outlines of
            near = dilate(near)
        bare = revealed & (case.layers()[1].shadow.max(0) == 0) & ~near
        assert revealed.sum() > 30 and (case.mask() | ~revealed).mean() > 0.98
        assert np.array_equal(truth[bare], empty[bare])


def test_prompts(cases):
    kind, drawn = cases
    for case in drawn:
        assert len(case.short.source) <= len(case.full.source)
        if KINDS[kind] in ("remove", "insert"):
            longer, shorter = (case.short.source, case.short.target)[:: 1 if kind == 3 else -1]
            assert len(longer) > len(shorter) and case.target.main.form in place_words(shorter)


def place_words(text):
    return text.replace("cup", "mug").replace("sphere", "ball").replace("block", "cube")


def test_moving_there_and_back_is_nothing():
    for i in range(60):
        scene = varied_scene(i)
        for index in range(2 if scene.second else 1):
            back = moved(moved(scene, index, 0.17, 0.02), index, -0.17, -0.02)
            again = scaled(scaled(scene, index, 0.8), index, 1 / 0.8)
            for other in (back, again):
                for a, b in zip(place_things(scene), place_things(other), strict=True):
                    assert a.box == pytest.approx(b.box) and a.scale == pytest.approx(b.scale)
    assert [t.x for t in place_things(swapped(swapped(PAIRED)))] == pytest.approx([t.x for t in place_things(PAIRED)])


def test_names_follow_the_thing():
    moves = 0
    for i in range(60):
        scene = varied_scene(i)
        x = place_things(scene)[0].x
        there = moved(scene, 0, 0.5 - x)
        if scene.second is None:
            assert there.main.position == "middle" and "position" in nameable(there)
            moves += scene.main.position != "middle"
        large = scaled(scene, 0, HEIGHT["large"] / HEIGHT[scene.main.size])
        assert large.main.size == "large" or scene.main.place.scale * scene.jitter.scale < 0.8
        assert set(CENTRE) >= {there.main.position}
    assert moves > 10


@pytest.mark.parametrize("seed", (63, 151))
def test_what_no_place_can_hold_is_drawn_again(seed):
    case = place_case(KINDS.index("scale"), seed)
    assert case.source != case.target


@pytest.mark.parametrize("kind", [-1, 5])
def test_unknown_kinds_are_refused(kind):
    with pytest.raises(ValueError, match=f"kind {kind}"):
        place_case(kind, 0)
