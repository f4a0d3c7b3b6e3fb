"""Prompts as tokens: what is parsed, cut, found and different, with a small CLIP tokenizer."""

import json

import pytest
from transformers import CLIPTokenizer

from sage.errors import PromptError
from sage.prompts.tokens import Prompt, Prompts, Span

# Whole words of the vocabulary; whatever else is spelt in letters, so that "zebra" has five tokens.
WORDS = ("cat", "dog", "red", "blue", "ball", "photo", "grass", "on", "the", "of", "an", "and", "with")
LENGTH = 20


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> Prompts:
    folder = tmp_path_factory.mktemp("tokenizer")
    letters = [chr(c) for c in range(33, 127) if not chr(c).isupper()]
    merges, tokens = [], []
    for word in WORDS:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            pair = (parts[0], parts[1])
            if pair not in merges:
                merges.append(pair)
                tokens.append("".join(pair))
            parts[:2] = ["".join(pair)]
    vocabulary = ["!", *(x for x in letters if x != "!"), *(f"{x}</w>" for x in letters), *tokens,
                  "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    (folder / "tokenizer_config.json").write_text(json.dumps(
        {"model_max_length": LENGTH, "pad_token": "!", "tokenizer_class": "CLIPTokenizer"}))  # padded as SD 2.x
    return Prompts(CLIPTokenizer.from_pretrained(str(folder)), LENGTH)


def text_at(prompts: Prompts, prompt: Prompt, positions) -> list[str]:
    tokens = prompts.tokenizer.convert_ids_to_tokens(list(prompt.ids))
    return [tokens[p].removesuffix("</w>") for p in positions]


def changed(prompts: Prompts, source: str, target: str) -> list[tuple[str, str]]:
    """The text of each span of the difference."""
    a, b = prompts.parse(source), prompts.parse(target)
    return [("".join(text_at(prompts, a, s.source)), "".join(text_at(prompts, b, s.target)))
            for s in prompts.differences(a, b)]


def test_parse_is_the_tokenizer_s_own_padding(prompts):
    for text in ("a cat on the grass", "zebra, cat!", "", "A CAT"):
        theirs = prompts.tokenizer(text, padding="max_length", max_length=LENGTH).input_ids
        assert list(prompts.parse(text).ids) == theirs


def test_parse_makes_runs_of_blanks_one(prompts):
    assert prompts.parse("  a \t cat\n on   the grass ") == prompts.parse("a cat on the grass")
    assert prompts.parse("a  cat").text == "a cat"


def test_a_prompt_of_just_the_length_fits(prompts):
    assert len(prompts.parse(" ".join(["cat"] * 18)).ids) == LENGTH


def test_too_long_a_prompt_names_what_would_be_cut(prompts):
    text = " ".join(["cat"] * 17 + ["red", "ball"])
    with pytest.raises(PromptError, match=r"has 19 tokens, 1 too many for this model: 'ball' would be cut") as caught:
        prompts.parse(text)
    assert "--truncate" in str(caught.value) and "\n" not in str(caught.value)
    cut = prompts.parse(text, truncate=True)
    assert cut.text == text and len(cut.ids) == LENGTH
    assert list(cut.ids) == prompts.tokenizer(text, truncation=True, max_length=LENGTH).input_ids
    assert text_at(prompts, cut, (18, 19)) == ["red", "<|endoftext|>"]


def test_find_first_and_all(prompts):
    p = prompts.parse("a red cat and a zebra and a red cat")
    assert prompts.find(p, "red cat") == (2, 3)
    assert prompts.find(p, "red cat", every=True) == (2, 3, 13, 14)
    assert prompts.find(p, "zebra") == (6, 7, 8, 9, 10)
    assert prompts.find(p, " Red   CAT ") == (2, 3)
    assert text_at(prompts, p, prompts.find(p, "cat and a")) == ["cat", "and", "a"]


def test_find_overlapping_occurrences_counts_a_token_once(prompts):
    assert prompts.find(prompts.parse("cat cat cat"), "cat cat", every=True) == (1, 2, 3)


@pytest.mark.parametrize("phrase", ("dog", "cat red", "", "  ", "zebr", "grass on"))
def test_a_phrase_that_is_not_there_is_an_error_that_says_so(prompts, phrase):
    with pytest.raises(PromptError, match="is not in the prompt 'a red cat and a zebra'"):
        prompts.find(prompts.parse("a red cat and a zebra"), phrase)


def test_padding_and_marks_are_not_part_of_the_prompt(prompts):
    p = prompts.parse("a cat")
    for phrase in ("!", "<|endoftext|>", "<|startoftext|>"):
        with pytest.raises(PromptError):
            prompts.find(p, phrase, every=True)
    assert prompts.find(prompts.parse("a cat!"), "!", every=True) == (3,)


def test_what_was_cut_is_not_found(prompts):
    p = prompts.parse(" ".join(["cat"] * 18 + ["dog"]), truncate=True)
    with pytest.raises(PromptError):
        prompts.find(p, "dog")


def test_words_with_their_tokens(prompts):
    p = prompts.parse("a zebra, red cat")
    assert [(w, len(t)) for w, t in prompts.words(p)] == [("a", 1), ("zebra,", 6), ("red", 1), ("cat", 1)]
    assert [x for _, positions in prompts.words(p) for x in positions] == list(range(1, 10))
    cut = prompts.parse(" ".join(["cat"] * 16 + ["zebra", "dog"]), truncate=True)
    assert prompts.words(cut)[-2:] == [("zebra", (17, 18)), ("dog", ())]


def test_find_word_is_the_rule_of_prompt_to_prompt(prompts):
    p = prompts.parse("a cat on the cat, a cat")
    assert prompts.find_word(p, "cat") == (2, 8)
    assert prompts.find_word(p, "cat,") == (5, 6)
    for absent in ("Cat", "dog", "a cat", ""):
        assert prompts.find_word(p, absent) == ()


def test_nothing_differs_between_equals(prompts):
    for same in ("a cat", "a  cat"):
        assert changed(prompts, "a cat", same) == []


@pytest.mark.parametrize("source, target, spans", (
    ("a cat on the grass", "a dog on the grass", [("cat", "dog")]),
    ("a cat on the grass", "a zebra on the grass", [("cat", "zebra")]),
    ("a zebra on the grass", "a cat on the grass", [("zebra", "cat")]),
    ("a red cat and a dog", "a blue cat and a ball", [("red", "blue"), ("dog", "ball")]),
    ("a cat on the grass", "a red cat on the grass", [("", "red")]),
    ("a red cat on the grass", "a cat on the grass", [("red", "")]),
    ("a cat", "a cat on the grass", [("", "onthegrass")]),
    ("photo of a red ball", "photo of a blue cat", [("redball", "bluecat")])))
def test_differences(prompts, source, target, spans):
    assert changed(prompts, source, target) == spans


@pytest.mark.parametrize("source, target, spans", (
    ("a cat, on the grass", "a dog, on the grass", [("cat", "dog")]),
    ("a cat.", "a dog", [("cat", "dog")]),
    ("a cat", "a cat, red", [("", "red")]),
    ("a cat on grass.", "a cat on grass", []),
    ("(cat)", "(dog)", [("cat", "dog")]),
    ("a cat", "an orange cat", [("", "orange")]),
    ("a dog and a cat", "an orange dog and a cat", [("", "orange")])))
def test_punctuation_and_articles_are_not_edits(prompts, source, target, spans):
    assert changed(prompts, source, target) == spans


def test_positions_of_a_difference(prompts):
    a, b = prompts.parse("a zebra, red cat"), prompts.parse("a dog, red cat")
    assert prompts.differences(a, b) == [Span((2, 3, 4, 5, 6), (2,))]
    a, b = prompts.parse("the (zebra) on grass"), prompts.parse("the (ball), on grass")
    assert prompts.differences(a, b) == [Span((3, 4, 5, 6, 7), (3,))]
    # English has 'd, so that 'dog' is spelt 'd og ': no token of it is "dog".
    a, b = prompts.parse("the 'dog' on grass"), prompts.parse("the dog on grass")
    (span,) = prompts.differences(a, b)
    assert text_at(prompts, a, span.source) == ["'", "d", "o", "g", "'"] and text_at(prompts, b, span.target) == ["dog"]


def test_differences_of_cut_prompts_stay_inside(prompts):
    a = prompts.parse(" ".join(["cat"] * 17 + ["zebra"]), truncate=True)
    b = prompts.parse(" ".join(["cat"] * 17 + ["dog"]), truncate=True)
    assert prompts.differences(a, b) == [Span((18,), (18,))]
    assert prompts.differences(prompts.parse(" ".join(["cat"] * 18 + ["dog"]), truncate=True),
                               prompts.parse(" ".join(["cat"] * 18 + ["red"]), truncate=True)) == []
