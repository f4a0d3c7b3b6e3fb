"""Instructions make target prompts: held to the world's own edits, and to what they must not touch."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage.errors import PromptError
from sage.prompts.instructions import _all_said, follow
from sage.stilllife.edits import edit_case
from sage.stilllife.prompts import WORDS

MUG = ("a photograph of a big shiny blue mug in the centre, with a tiny green cone next to it, on stone tiles, a brick "
       "wall in the background")


@pytest.mark.parametrize("instruction, old, new", [
    ("make the mug red", "blue mug", "red mug"),
    ("Please paint the mug red!", "blue mug", "red mug"),
    ("change the colour of the big mug to yellow", "blue mug", "yellow mug"),
    ("make it small", "big shiny", "small shiny"),
    ("make it striped and red", "shiny blue", "striped red"),
    ("tilt the mug", "big shiny", "big tilted shiny"),
    ("turn the cone orange", "green cone", "orange cone"),
    ("remove the cone", ", with a tiny green cone next to it", ""),
    ("get rid of the green cone", ", with a tiny green cone next to it", ""),
    ("replace the mug with a bottle", "blue mug", "blue bottle"),
    ("swap the cone for a red ball", "green cone", "red ball"),
    ("turn it into a sketch", "photograph", "pencil sketch"),
    ("make it night", "photograph", "night scene"),
    ("put it in front of a forest", "a brick wall", "a forest"),
    ("change the background to a sunset", "a brick wall", "a sunset"),
    ("make the floor snow", "stone tiles", "snow"),
    ("put the mug on grass", "stone tiles", "grass"),
    ("move it to the left", "in the centre", "on the left")])
def test_only_what_is_asked_for_changes(instruction, old, new):
    assert MUG.count(old) == 1
    assert follow(instruction, MUG) == MUG.replace(old, new)


@pytest.mark.parametrize("source, instruction, target", [
    ("a mug", "make it orange", "an orange mug"),
    ("an orange mug", "make it red", "a red mug"),
    ("a mug", "add a red cube", "a mug, with a tiny red cube next to it"),
    ("a mug, a sketch", "add an orange cone behind it", "a mug, with an orange cone behind it, a sketch"),
    ("a mug against a forest", "add a cone", "a mug, with a tiny cone next to it against a forest"),
    ("a mug", "put it in front of a forest", "a mug, a forest behind"),
    ("a mug on the left", "put it on sand", "a mug on the left on sand"),
    ("a mug on a wooden floor", "put it on grass", "a mug on grass"),
    ("a picture of a mug", "turn it into a cartoon", "a cartoon of a mug"),
    ("a red mug and a tiny blue cube", "remove the cube", "a red mug"),
    ("a red mug and a tiny blue cube", "remove the little cube", "a red mug"),
    ("a mug, in front of a red cube", "delete the red cube", "a mug"),
    ("a cat on a sofa", "replace the cat with an owl", "an owl on a sofa"),
    ("a mug", "make it red, then tilt it and move it to the right", "a tilted red mug on the right")])
def test_what_a_prompt_does_not_say_is_added_where_it_belongs(source, instruction, target):
    assert follow(instruction, source) == target


@pytest.mark.parametrize("instruction, said", [
    ("do magic", "'do magic' is not understood, but these are: make the mug red"),
    ("make the mug happy", "is not understood"),
    ("make the mug red and dance", "is not understood"),
    ("make the bottle red", "names no 'bottle': it names 'big shiny blue mug' and 'tiny green cone'"),
    ("make the red mug green", "names no 'red mug'"),
    ("make the mug blue", "changes nothing"),
    ("remove the mug", "cannot be removed"),
    ("add a ball", "already"),
    ("move the cone to the left", "only the main thing"),
    ("", "0 characters"), ("make it red " * 50, "at most 400")])
def test_what_is_not_understood_is_answered_in_one_line(instruction, said):
    with pytest.raises(PromptError, match=re.escape(said)) as error:
        follow(instruction, MUG)
    assert "\n" not in str(error.value)


def said_by(text: str) -> list[tuple[str, str]]:
    return sorted((said.kind, said.value) for said in _all_said(text))


def word(value: str) -> str:
    return WORDS.get(value, (value,))[0].removeprefix("a ")


def asked(case, text: str) -> str:
    """How a person asks for an edit of the world."""
    a, b = case.source.attributes(), case.target.attributes()
    name = next(n for n in a if a[n] != b[n])
    new, thing = word(b[name]), next(s.value for s in _all_said(text) if s.kind == "form")
    other = word(a["second_form"])
    return {"form": f"replace the {thing} with a {new}", "style": f"turn it into a {new}",
            "background": f"change the background to a {new}", "floor": f"put it on {new}",
            "position": f"move the {thing} to {b['position'].join(('the ', ''))}",
            "second_colour": f"make the {other} {new}", "second_form": f"replace the {other} with a {new}",
            }.get(name, f"make the {thing} {new}")


@pytest.mark.parametrize("kind", (1, 4, 5, 6, 7, 8, 9, 3))
def test_the_worlds_edits_are_what_their_instructions_make(kind):
    for seed in range(5):
        case = edit_case(kind, seed, varied=True)
        if kind == 3:
            instruction = f"remove the {case.source.attributes()['second_form']}"
        else:
            instruction = asked(case, case.full.source)
        found = follow(instruction, case.full.source)
        wanted, extra = said_by(case.full.target), [("tilt", "upright")]
        assert [s for s in said_by(found) if s not in extra] == [s for s in wanted if s not in extra], (
            instruction, case.full.source, found)


@settings(max_examples=200, deadline=2000)
@given(st.text(max_size=80) | st.lists(st.sampled_from(
    "make turn put remove the a it mug cone red in front of forest on grass and with replace add , . night to".split()),
    max_size=14).map(" ".join), st.sampled_from((MUG, "mug", "a cat", ",,,", "a a a")))
def test_whatever_is_asked_ends_in_a_prompt_or_one_line(instruction, source):
    try:
        found = follow(instruction, source)
    except PromptError as error:
        assert "\n" not in str(error) or "\n" in instruction
    else:
        assert found and found != source
