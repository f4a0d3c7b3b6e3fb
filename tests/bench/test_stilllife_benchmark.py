import hashlib
import re

import numpy as np
import pytest

from sage.bench.cases import decode_mask
from sage.bench.files import BenchmarkError
from sage.bench.stilllife import FIRST_SEED, FULL, QUICK, draw, write_stilllife
from sage.stilllife import is_held_out

SIDE = 32


def contents(folder):
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    return write_stilllife(tmp_path_factory.mktemp("benchmark"), per_kind=1, side=SIDE)


def test_sizes():
    assert (10 * FULL, 10 * QUICK) == (280, 40)


def test_the_same_bytes_again(benchmark, tmp_path):
    again = write_stilllife(tmp_path, per_kind=1, side=SIDE, workers=2)
    assert contents(benchmark.folder) == contents(tmp_path) and len(contents(tmp_path)) == 22
    assert again.cases == benchmark.cases


def test_what_is_there_is_taken(benchmark):
    before = [p.stat().st_mtime_ns for p in sorted(benchmark.folder.rglob("*"))]
    assert write_stilllife(benchmark.folder, per_kind=1, side=SIDE).cases == benchmark.cases
    assert before == [p.stat().st_mtime_ns for p in sorted(benchmark.folder.rglob("*"))]
    with pytest.raises(BenchmarkError, match="another benchmark"):
        write_stilllife(benchmark.folder, per_kind=2, side=SIDE)


def test_pictures_masks_and_prompts_belong_together(benchmark):
    assert [case.kind for case in benchmark.cases] == list(range(10))
    for case in benchmark.cases:
        edit = draw(case.kind, 0)
        assert (case.source, case.target) == (edit.source_prompt, edit.target_prompt)
        a, b = (np.asarray(p).astype(int) for p in (benchmark.source(case), benchmark.truth(case)))
        assert a.shape == b.shape == (SIDE, SIDE, 3)
        mask = decode_mask(case.runs, SIDE, SIDE)
        changed = np.abs(a - b).max(-1)
        assert (changed[~mask] <= 9).all() and changed[mask].max() > 9  # 8 in 255 before rounding
        marked = [re.findall(r"\[(.*?)\]", text) for text in (case.source_marked, case.target_marked)]
        assert marked == [list(edit.source_words), list(edit.target_words)]
        assert case.phrases == edit.blend_words
        assert case.attributes == (edit.source.attributes(), edit.target.attributes())


def test_an_edit_can_be_asked_for_in_both_ways(tmp_path, benchmark):
    both = write_stilllife(tmp_path, per_kind=1, side=SIDE, wordings=("full", "short"))
    full, short = ([case for case in both.cases if case.wording == wording] for wording in ("full", "short"))
    assert len(full) == len(short) == 10 and [c.name for c in full] == [c.name for c in benchmark.cases]
    for a, b in zip(full, short, strict=True):
        edit = draw(a.kind, 0)
        assert (a.source, a.target) == (edit.full.source, edit.full.target)
        assert (b.source, b.target) == (edit.short.source, edit.short.target)
        assert (a.runs, a.attributes) == (b.runs, b.attributes)
        for get in (both.source, both.truth):
            assert np.array_equal(np.asarray(get(a)), np.asarray(get(b)))
        marked = [re.findall(r"\[(.*?)\]", text) for text in (b.source_marked, b.target_marked)]
        assert marked == [list(edit.short.source_words), list(edit.short.target_words)]
    assert sum(len(case.source) for case in short) < sum(len(case.source) for case in full)
    with pytest.raises(BenchmarkError, match="another benchmark"):
        write_stilllife(tmp_path, per_kind=1, side=SIDE)


def test_words_to_blend_are_single_words_of_both_prompts(benchmark):
    for case in benchmark.cases:
        if case.blended_word:
            assert len(case.blended_word.split()) == 2
            for word, prompt in zip(case.blend(), (case.source, case.target), strict=True):
                assert re.search(rf"\b{word}\b", prompt)
        else:
            assert case.kind in (0, 2, 3, 8, 9)


def test_far_from_what_was_trained_and_tuned_on():
    assert FIRST_SEED >= 100_000  # settings are chosen and training reports made on seeds below 2 000
    for kind in range(10):
        edit = draw(kind, 3)
        assert is_held_out(edit.source) and is_held_out(edit.target)
