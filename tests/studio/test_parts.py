"""The studio's small parts: the cache, the clock, the form."""

import json

import pytest
from PIL import Image

from sage import EditConfig
from sage.errors import SettingsError
from sage.method import METHODS, method
from sage.studio import form
from sage.studio.cache import Cache
from sage.studio.clock import Cancelled, Clock, Pace
from sage.studio.visit import first_change
from sage.studio.words import carried, compare, instructed


def test_the_cache_keeps_what_was_used_last():
    cache = Cache(10, len)
    for key, value in (("a", "1234"), ("b", "1234")):
        cache.put(key, value)
    assert cache.get("a") == "1234" and cache.used == 8
    cache.put("c", "1234")  # b was not asked for
    assert cache.get("b") is None and cache.get("a") and cache.get("c") and cache.used <= 10


def test_one_value_is_kept_however_large():
    cache = Cache(10, len)
    cache.put("a", "1")
    cache.put("b", "x" * 100)
    assert cache.get("a") is None and cache.get("b") and len(cache) == 1 and cache.largest == 100
    cache.spare(cache.largest)
    assert len(cache) == 0


def test_the_cache_drops_what_is_unwanted():
    cache = Cache(10, len)
    cache.put(("a", 1), "x")
    cache.put(("b", 1), "x")
    cache.drop(lambda key: key[0] == "a")
    assert cache.get(("a", 1)) is None and cache.get(("b", 1)) == "x"


class Hands:
    """A clock for clocks."""

    def __init__(self):
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


def test_time_left_is_foreseen_from_what_was_measured():
    hands = Hands()
    clock = Clock([("invert", 10), ("edit", 10)], Pace(), hands)
    assert clock.left is None and clock.as_dict()["phase"] == ""
    clock("encode", 1, 1)
    for done in range(1, 6):
        hands.time += 2
        clock("invert", done, 10)
    assert clock.left == pytest.approx(5 * 2 + 10 * 4)  # an editing step was not seen yet: twice as long
    assert clock.as_dict() == {"phase": "invert", "done": 5, "total": 10, "again": False, "left": 50.0, "share": 0.167}
    for done in range(6, 11):
        hands.time += 2
        clock("invert", done, 10)
    for done in range(1, 6):
        hands.time += 6
        clock("edit", done, 10)
    assert clock.left == pytest.approx(30) and clock.share == pytest.approx(50 / 80)
    hands.time += 3
    assert clock.left == pytest.approx(27)
    clock("decode", 0, 1)
    assert clock.left == 0

    again = Clock([("edit", 10)], clock.pace, hands)
    assert again.left == pytest.approx(60)


def test_an_edit_made_again_says_so():
    clock = Clock([("edit", 2)])
    for done in (1, 2, 1):
        clock("edit", done, 2)
    assert clock.as_dict()["again"]


def test_a_cancelled_clock_ends_the_work():
    clock = Clock()
    clock("encode", 0, 1)
    clock.cancel()
    with pytest.raises(Cancelled):
        clock("encode", 1, 1)


CONFIGS = [EditConfig(), EditConfig.published(), EditConfig(
    replace=("cat", "dog"), blend=("", "dog"), reweight={"grumpy": 2.5, "old man": 0.1 + 0.2}, size=128,
    seed=2**60 + 1, blend_threshold=0.1234567890123, replace_fraction=1 / 3), EditConfig(replace=None, blend=None)]


@pytest.mark.parametrize("config", [*CONFIGS, *(method(name).Settings() for name in METHODS)])
def test_the_form_gives_back_what_it_was_given(config):
    shown = form.shown(config)
    assert form.read(type(config), json.loads(json.dumps(shown))["values"]) == config
    assert method(shown["method"]).Settings is type(config)


@pytest.mark.parametrize("name, value", [
    ("steps", None), ("steps", ""), ("steps", "many"), ("steps", "2.5"), ("steps", 7), ("seed", "-1"),
    ("seed", "9" * 50), ("seed", 5), ("size", None), ("size", 64), ("size", "0"), ("replace", "a"),
    ("replace", ["a", "b"]), ("reweight", "cat"), ("reweight", "cat:9999"), ("decay", "sideways"),
    ("guidance_scale", "nan"), ("blend_threshold", "2"), ("blend_threshold", True), ("no_such", "1")])
def test_wrong_values_are_one_line(name, value):
    given = form.shown(EditConfig())["values"] | {name: value}
    with pytest.raises(SettingsError) as caught:
        form.read(EditConfig, given)
    assert "\n" not in str(caught.value) and name in str(caught.value)


@pytest.mark.parametrize("given", [{}, None, [1], "x", {"steps": "3"}])
def test_too_few_values(given):
    with pytest.raises(SettingsError, match="was not sent"):
        form.read(EditConfig, given)


@pytest.mark.parametrize("name", METHODS)
def test_every_field_of_every_method_has_a_place_and_help(name):
    cls = method(name).Settings
    shown = form.shown(cls())
    fields = [f for heading, members in shown["groups"] for f in members if heading]
    assert [f["name"] for f in fields] == list(cls.names()) and {*shown["values"]} == {*cls.names()}
    assert all(f["help"].endswith(".") and f["kind"] for f in fields)
    steps = next(f for f in fields if f["name"] == "steps")
    assert steps["kind"] == "whole" and steps["range"] == "1 to 1000"


def test_settings_of_pictures_are_not_shown_where_there_is_none():
    shown = form.shown(method("plain").Settings(), "generate")
    names = {f["name"] for _, members in shown["groups"] for f in members}
    assert names and not names & method("plain").of_pictures and all(members for _, members in shown["groups"])
    assert form.read(method("plain").Settings, shown["values"]) == method("plain").Settings()


def test_what_is_said_of_words_goes_along_to_another_method():
    words = EditConfig(reweight={"dog": 2.0}, blend=("cat", "dog"), steps=7)
    assert carried(method("plain").Settings(), words) == method("plain").Settings()
    there = carried(EditConfig(), words)
    assert there.reweight == {"dog": 2.0} and there.blend == ("cat", "dog") and there.steps == EditConfig().steps


@pytest.mark.parametrize("target, meant, problem", [
    ("make it red", "a red mug on grass", ""), ("Please make the mug green", "a green mug on grass", ""),
    ("make the cone red", "", "names no 'cone'"), ("take a look", "", "not understood"),
    ("a red mug on grass", "", ""), ("painting of a mug", "", ""), ("", "", "")])
def test_an_instruction_is_told_from_a_description(target, meant, problem):
    found = instructed("a blue mug on grass", target)
    assert found["target"] == meant and problem in found["problem"] and bool(found["problem"]) == bool(problem)


def test_nothing_to_compare_yet():
    from sage.models.known import installed
    from sage.models.loading import load_model
    if not installed("stilllife"):
        pytest.skip("the bundled model is missing")
    find = load_model("stilllife").prompts
    assert compare(find, "", "a cat", EditConfig())["target"] == []


@pytest.mark.parametrize("name", METHODS)
def test_sliders_and_presets_come_from_the_settings(name):
    found, settings = method(name), method(name).Settings()
    shown = form.shown(settings)
    assert bool(found.keep) == (shown["keep"] is not None)
    for role, order in (("strength", (-1, 1)), ("keep", (1, -1))):
        if (slider := shown[role]) is None:
            continue
        field, value = slider["name"], getattr(settings, slider["name"])
        assert field == getattr(found, role) and slider["low"] < slider["high"]
        gentle, recommended, bold = (float(shown["presets"].get(p, shown["presets"]["recommended"])[field])
                                     for p in ("gentle", "recommended", "bold"))
        assert recommended == value
        if slider["low"] < value < slider["high"]:
            assert order[0] * (gentle - value) > 0 and order[1] * (bold - value) > 0
    for changes in shown["presets"].values():
        form.read(type(settings), shown["values"] | changes)  # each is within its range


def test_no_two_presets_are_the_same():
    """At the end of its range a setting goes one way alone: two buttons would both be marked."""
    plain = method("plain").Settings
    low, high = plain.searched()["guidance_scale"].low, plain.searched()["guidance_scale"].high
    for value, names in ((low, ["recommended", "bold"]), (high, ["gentle", "recommended"]),
                         (2.0, ["gentle", "recommended", "bold"])):
        assert list(form.shown(plain(guidance_scale=value), "generate")["presets"]) == names


def test_what_is_changed_often_comes_first():
    fields = {f["name"]: f["often"] for _, members in form.shown(EditConfig())["groups"] for f in members}
    assert fields["steps"] and fields["guidance_scale"] and fields["reconstruction_scale"] and not fields["decay"]


def test_the_slider_starts_where_the_first_change_is():
    before = Image.new("RGB", (128, 96), "grey")
    after = before.copy()
    assert first_change(before, after) == 0
    after.paste("red", (64, 20, 90, 60))
    assert 0.45 <= first_change(before, after) <= 0.5
    faint = before.copy()
    faint.paste((135, 135, 135), (10, 10, 60, 60))  # nobody sees that
    assert first_change(before, faint) == 0
    after.paste("blue", (0, 0, 20, 20))
    assert first_change(before, after) == 0
