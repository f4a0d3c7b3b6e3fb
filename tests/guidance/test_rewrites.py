"""Replacement and reweighting of columns, against the words of the rule."""

import pytest
import torch
from torch import Tensor

from sage.errors import PromptError
from sage.guidance.rewrites import check_counts, replace_columns, replacement, reweight
from sage.prompts.tokens import Span


def map(seed: int, batch: int = 1) -> Tensor:
    return torch.randn(batch, 2, 5, 9, generator=torch.Generator().manual_seed(seed)).softmax(-1)


def replaced(target: Tensor, source: Tensor, *spans: Span) -> Tensor:
    return replace_columns(target, source, *(t[None] for t in replacement(spans, 9)))


def untouched(out: Tensor, target: Tensor, *columns: int) -> bool:
    rest = [i for i in range(9) if i not in columns]
    return torch.equal(out[..., rest], target[..., rest])


def test_equally_many_tokens_go_one_to_one():
    t, s = map(0), map(1)
    out = replaced(t, s, Span((2, 3), (5, 4)))
    assert torch.equal(out[..., 5], s[..., 2]) and torch.equal(out[..., 4], s[..., 3])
    assert untouched(out, t, 4, 5)


def test_one_token_is_copied_to_each_of_several_undivided():
    t, s = map(0), map(1)
    out = replaced(t, s, Span((2,), (4, 5, 6)))
    for column in (4, 5, 6):
        assert torch.equal(out[..., column], s[..., 2])
    assert untouched(out, t, 4, 5, 6)


def test_several_tokens_are_averaged_into_one():
    t, s = map(0), map(1)
    out = replaced(t, s, Span((2, 3, 7), (4,)))
    assert torch.allclose(out[..., 4], s[..., [2, 3, 7]].mean(-1), rtol=1e-6)
    assert untouched(out, t, 4)


def test_several_spans_at_once():
    t, s = map(0), map(1)
    out = replaced(t, s, Span((1,), (1,)), Span((2, 3), (6,)))
    assert torch.equal(out[..., 1], s[..., 1]) and torch.allclose(out[..., 6], s[..., [2, 3]].mean(-1))
    assert untouched(out, t, 1, 6)


def test_no_span_changes_nothing():
    assert torch.equal(replaced(map(0), map(1)), map(0))


def test_nothing_is_renormalised():
    out = replaced(map(0), map(1), Span((2,), (4, 5, 6)))
    assert (out.sum(-1) - 1).abs().max() > 0.05
    assert (reweight(map(0), torch.full((1, 9), 2.0)).sum(-1) - 2).abs().max() < 1e-5


def test_nothing_is_changed_in_place():
    t, s = map(0), map(1)
    replaced(t, s, Span((2,), (4, 5)))
    reweight(t, torch.full((1, 9), 3.0))
    assert torch.equal(t, map(0)) and torch.equal(s, map(1))


def test_gradients_pass_through_what_stays():
    t = map(0).requires_grad_()
    reweight(replaced(t, map(1), Span((2,), (4, 5))), torch.full((1, 9), 3.0)).sum().backward()
    assert (t.grad[..., [4, 5]] == 0).all() and (t.grad[..., 3] == 3).all()


@pytest.mark.parametrize("source, target", (((1, 2), (1, 2, 3)), ((1, 2, 3), (4, 5)), ((), (1,)), ((1,), ())))
def test_other_counts_are_refused(source, target):
    with pytest.raises(PromptError, match=f"{len(target)} target tokens by that of {len(source)} source tokens"):
        check_counts(Span(source, target))
    with pytest.raises(PromptError):
        replacement([Span(source, target)], 9)


def test_each_picture_has_its_own_spans_and_factors():
    t, s = map(0, 2), map(1, 2)
    carry, keep = (torch.stack(x) for x in zip(replacement([Span((2,), (3,))], 9), replacement([], 9), strict=True))
    out = replace_columns(t, s, carry, keep)
    assert torch.equal(out[0, ..., 3], s[0, ..., 2]) and torch.equal(out[1], t[1])
    factors = torch.ones(2, 9)
    factors[1, 4] = 0.5
    out = reweight(t, factors)
    assert torch.equal(out[0], t[0]) and torch.equal(out[1, ..., 4], t[1, ..., 4] * 0.5)
    assert untouched(out, t, 4)


def test_half_precision_stays_so():
    t, s = map(0).to(torch.float16), map(1)
    assert replaced(t, s, Span((2,), (3,))).dtype == reweight(t, torch.ones(1, 9)).dtype == torch.float16
