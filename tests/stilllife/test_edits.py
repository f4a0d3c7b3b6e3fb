import re
from functools import cache

import numpy as np
import pytest

from sage.stilllife.camera import place_things
from sage.stilllife.edits import KINDS, LEAST_CHANGE, THRESHOLD, dilate, edit_case
from sage.stilllife.scenes import ATTRIBUTES, is_held_out
from sage.stilllife.varied import relation, within_frame

SEEDS = range(12)
ALLOWED = {
    1: {"form"},
    2: {"second_form", "second_colour"},
    3: {"second_form", "second_colour"},
    4: {"second_form", "second_colour"},
    5: {"tilt", "position"},
    6: {"colour"},
    7: {"material"},
    8: {"background", "floor"},
    9: {"style"},
}
COUNT = {0: 2, 2: 2, 3: 2}


@cache
def cases_of(kind, somewhere):
    return [edit_case(kind, seed, varied=somewhere) for seed in SEEDS]


@pytest.fixture(scope="module", params=range(len(KINDS)), ids=KINDS)
def cases(request):
    return request.param, cases_of(request.param, False)


@pytest.fixture(scope="module", params=range(len(KINDS)), ids=KINDS)
def varied(request):
    return request.param, cases_of(request.param, True)


def changed(case):
    a, b = case.source.attributes(), case.target.attributes()
    return {name for name in a if a[name] != b[name]}


def replaced(prompts):
    """The source prompt with its edited words replaced by the target's, one after the other."""
    text, position = prompts.source, 0
    for old, new in zip(prompts.source_words, prompts.target_words, strict=True):
        at = re.search(rf"\b{old}\b", text[position:])
        assert at, (old, text)
        text = text[: position + at.start()] + new + text[position + at.end() :]
        position += at.start() + len(new)
    return text


def test_places_are_kept_and_scenes_simple(varied):
    kind, drawn = varied
    assert edit_case(kind, 1, varied=True) == drawn[1] and len(set(drawn)) == len(drawn)
    for case in drawn:
        assert changed(case) <= ALLOWED.get(kind, set(ATTRIBUTES)) and len(changed(case)) == COUNT.get(kind, 1)
        assert case.source.main.place == case.target.main.place and case.source.jitter == case.target.jitter
        assert case.mask(128).mean() > 0.005
        for scene in (case.source, case.target):
            assert is_held_out(scene) and all(within_frame(thing) for thing in place_things(scene))
            assert scene.second is None or relation(scene) == "beside"
    assert any(case.source.main.place.dx for case in drawn)


@pytest.mark.parametrize("kind", range(len(KINDS)), ids=KINDS)
def test_short_prompts_name_the_noun_and_what_changes(kind):
    for somewhere in (False, True):
        for case in cases_of(kind, somewhere):
            short = case.short
            if not somewhere and kind == 4 and case.source.main.form in short.source_words:
                continue  # the word stands there twice
            assert len(short.source) <= len(case.full.source) and len(short.source.split()) <= 13
            if kind in (2, 3):
                longer, shorter, words = (
                    (short.target, short.source, short.target_words)
                    if kind == 2
                    else (short.source, short.target, short.source_words)
                )
                assert {short.source_words, short.target_words} == {(), words}
                assert re.sub(f",? {words[0]}", "", longer) == shorter != longer
            else:
                assert replaced(short) == short.target != short.source
            if case.blend_words and all(case.blend_words):
                assert all(w in p for w, p in zip(short.blend_words, (short.source, short.target), strict=True))


def test_full_prompts_of_varied_cases_differ_in_the_edited_words(varied):
    kind, drawn = varied
    for case in drawn:
        if kind not in (2, 3):
            assert replaced(case.full) == case.full.target != case.full.source


def test_only_what_the_kind_names_changes(cases):
    kind, drawn = cases
    for case in drawn:
        a, b = case.source.attributes(), case.target.attributes()
        changed = {name for name in a if a[name] != b[name]}
        assert len(changed) == COUNT.get(kind, 1)
        assert changed <= ALLOWED.get(kind, set(a))
        assert case.source.jitter == case.target.jitter
        if kind in (2, 3):
            without, with_second = (case.source, case.target)[:: 1 if kind == 2 else -1]
            assert without.second is None and with_second.second is not None


def test_prompts_differ_in_exactly_the_edited_words(cases):
    kind, drawn = cases
    for case in drawn:
        if kind in (2, 3):
            longer, shorter, words = (
                (case.target_prompt, case.source_prompt, case.target_words)
                if kind == 2
                else (case.source_prompt, case.target_prompt, case.source_words)
            )
            assert {case.source_words, case.target_words} == {(), words}
            assert longer.replace(f", {words[0]}", "") == shorter != longer
            continue
        assert len(case.source_words) == len(case.target_words) > 0
        assert not set(zip(case.source_words, case.target_words, strict=True)) & {(w, w) for w in case.source_words}
        assert replaced(case.full) == case.target_prompt


def test_prompts_name_everything(cases):
    _, drawn = cases
    for case in drawn:
        for scene, prompt in ((case.source, case.source_prompt), (case.target, case.target_prompt)):
            a = scene.attributes()
            assert all(re.search(rf"\b{a[n]}\b", prompt) for n in ("form", "colour", "material", "background"))
            if scene.second:
                assert f"tiny {scene.second.colour} {scene.second.form}" in prompt
            assert ("upright" in prompt) <= (a["tilt"] == "upright")


def test_blend_words_name_the_edited_thing(cases):
    kind, drawn = cases
    for case in drawn:
        if kind in (8, 9):
            assert case.blend_words is None
        elif kind == 0:
            assert case.blend_words is None or all(case.blend_words)
        else:
            assert case.blend_words[0] in case.source_prompt and case.blend_words[1] in case.target_prompt
            assert (case.blend_words[0] == "") == (kind == 2) and (case.blend_words[1] == "") == (kind == 3)
            thing = (lambda s: s.second) if kind in (2, 3, 4) else (lambda s: s.main)
            for scene, words in zip((case.source, case.target), case.blend_words, strict=True):
                if words:
                    assert words.endswith(thing(scene).form)


def test_mask_is_the_changed_pixels_grown_by_one(cases):
    _, drawn = cases
    for case in drawn[:4]:
        a, b = case.pictures()
        changed = np.abs(a - b).max(-1) > THRESHOLD
        assert changed.mean() > LEAST_CHANGE
        grown = np.zeros_like(changed)
        for r, c in np.argwhere(changed):
            grown[max(r - 1, 0) : r + 2, max(c - 1, 0) : c + 2] = True
        mask = case.mask()
        assert mask.dtype == bool and mask.shape == (64, 64)
        assert np.array_equal(mask, grown)
        assert case.mask(32).shape == (32, 32)


def test_held_out_on_both_sides_or_on_neither(cases):
    kind, drawn = cases
    assert all(is_held_out(s) for case in drawn for s in (case.source, case.target))
    for seed in range(4):
        case = edit_case(kind, seed, held_out=False)
        assert not is_held_out(case.source) and not is_held_out(case.target)


def test_same_seed_same_case_other_seed_other_case(cases):
    kind, drawn = cases
    assert edit_case(kind, 1) == drawn[1]
    assert len(set(drawn)) == len(drawn)


@pytest.mark.parametrize("kind", [-1, 10])
def test_unknown_kinds_are_refused(kind):
    with pytest.raises(ValueError, match=f"kind {kind}"):
        edit_case(kind, 0)


def test_dilation_reaches_corners_and_keeps_to_the_frame():
    mask = np.zeros((5, 6), bool)
    mask[0, 0] = mask[4, 3] = True
    grown = dilate(mask)
    assert grown[:2, :2].all() and grown[3:, 2:5].all() and grown.sum() == 10
