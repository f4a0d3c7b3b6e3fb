"""The newcomer's edits: 60 of them, apart from all others, each in five wordings of the same request."""

import re

import pytest

from sage.stilllife import is_held_out
from training.short_edits import FIRST_SEED, KINDS, PHRASINGS, edits, phrasings


@pytest.fixture(scope="module")
def made():
    return edits()


def test_sixty_different_edits_of_held_out_scenes(made):
    assert len(made) == 60 == len(set(made))
    assert FIRST_SEED > 200_000 and {edit.kind for edit in made} == set(KINDS)
    assert all(is_held_out(scene) for edit in made for scene in (edit.source, edit.target))


def test_five_short_ways_to_ask_for_the_same(made):
    lengths, longer = [], 0
    for i, edit in enumerate(made):
        asked = phrasings(edit, i)
        assert len(asked) == PHRASINGS and asked == phrasings(edit, i)
        a, the, bare, *more = (prompts.source for prompts in asked)
        assert re.search(r"\ban? ", a) and re.search(r"\bthe ", the)
        assert bare.split()[0] not in ("a", "an", "the") or edit.kind == 9  # a style has its own article
        assert len(set(asked)) >= 3
        for prompts in asked:
            assert prompts.source != prompts.target
            assert "upright" not in prompts.source + prompts.target or edit.kind == 5
        longer += any(len(text.split()) > len(a.split()) for text in more)
        lengths += [len(text.split()) for text in (a, the, bare, *more)]
    assert max(lengths) <= 20 and sum(lengths) / len(lengths) < 7 and longer > 30
