"""Prompts of any text: token ids of the promised number, places inside them, or one PromptError."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sage
from sage import EditConfig
from sage.errors import PromptError
from sage.models.known import installed
from sage.prompts.tokens import MAX_PROMPT
from tests import small
from tests.hardening.ends import ends_well, tries

WORDS = st.sampled_from(("a", "cat", "dog,", "an", "(red)", "'dog'", "the", "<|endoftext|>", "don't", "\u200b", "猫",
                         "😀", "e\u0301", "!", "...", "\u202eשלום", "a" * 80, "\ufeff", "\0"))
PROMPTS = st.one_of(st.text(max_size=80), st.text(st.characters(categories=("Cs", "Cc", "Zs", "Mn", "Lu")), max_size=9),
                    st.lists(WORDS, max_size=90).map(" ".join), st.lists(WORDS, max_size=9).map("".join),
                    st.tuples(WORDS, st.integers(60, MAX_PROMPT + 2)).map(lambda p: (p[0] * p[1])[:MAX_PROMPT + 1]))


@pytest.fixture(scope="module")
def model():
    return sage.load_model("stilllife", device="cpu") if installed("stilllife") else pytest.skip("no bundled model")


@pytest.fixture(scope="module")
def little(tmp_path_factory):
    return small.make(tmp_path_factory.mktemp("prompts") / "tokenizer").model


@tries(60, 2000)
@given(PROMPTS, st.booleans())
def test_a_prompt_is_so_many_tokens_or_refused(model, text, truncate):
    find = model.prompts
    prompt = ends_well("prompts", lambda: find.parse(text, truncate), PromptError)
    if prompt is None:
        return
    assert len(prompt.ids) == find.max_length and all(0 <= i < model.text.params.vocabulary for i in prompt.ids)
    places = [p for _, positions in find.words(prompt) for p in positions]
    assert places == list(range(1, len(places) + 1)) and len(places) <= find.max_length - 2
    # The words' own tokens are the prompt's: no place is off by what is between them.
    assert [i for word in prompt.text.split() for i in find._body(word)] == find._body(prompt.text)


@tries(60, 2000)
@given(st.data())
def test_the_difference_of_any_two_prompts_lies_inside_them(model, data):
    source = data.draw(PROMPTS)
    target = data.draw(st.one_of(st.just(source), PROMPTS, st.tuples(PROMPTS, st.integers(0, 99)).map(
        lambda p: source[:p[1]] + p[0] + source[p[1]:])))
    began = time.monotonic()
    plan = ends_well("pairs of prompts", lambda: sage.check_prompts(model, source, target, EditConfig(), truncate=True),
                     PromptError)
    assert time.monotonic() - began < 60
    if plan is None:
        return
    inside = range(1, model.prompts.max_length - 1)
    for side in ("source", "target"):
        places = [p for span in plan.edited for p in getattr(span, side)]
        assert all(p in inside for p in places) and len(set(places)) == len(places)
    assert source != target or not plan.edited
    if plan.blend:
        assert all(p in inside for p in (*plan.blend.source, *plan.blend.target))


@tries(30, 1000)
@given(PROMPTS, PROMPTS, st.sampled_from(("phrase", "words")))
def test_phrases_are_found_or_refused(model, prompt, phrase, match):
    config = EditConfig(reweight={phrase: 2.0}, blend=(phrase, phrase), blend_match=match)
    plan = ends_well("phrases", lambda: sage.check_prompts(model, prompt, prompt, config, truncate=True), PromptError)
    assert plan is None or all(0 < place < model.prompts.max_length - 1 for place, _ in plan.factors)


@tries(3, 60)
@given(PROMPTS, PROMPTS)
def test_any_pair_that_is_accepted_can_be_edited(little, source, target):
    config = EditConfig(steps=1, cross_level=1)
    result = ends_well("pairs of prompts, edited", lambda: sage.edit(
        little, small.picture(), source, target, config, truncate=True), PromptError)
    assert result is None or result.latents.isfinite().all()
