"""Attention edits: probabilities in, probabilities out, never in place; and the contexts that apply them.

Columns of a map are tokens.  Nothing is renormalised, as in prompt-to-prompt (Hertz et al. 2022) and SAGE.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from sage.errors import PromptError
from sage.guidance.hooks import rewrite, swap
from sage.models.sites import Projection, QueriesKeys, Site
from sage.prompts.tokens import Span


def check_counts(span: Span) -> None:
    """PromptError unless the tokens of source and target are n:n, 1:n or n:1."""
    n, m = len(span.source), len(span.target)
    if not (n and m and (n == m or n == 1 or m == 1)):
        raise PromptError(f"cannot replace the attention of {m} target tokens by that of {n} source tokens: "
                          "the counts must be equal, or one of them 1")


def replacement(spans: Iterable[Span], length: int) -> tuple[Tensor, Tensor]:
    """Replacement as a linear map on columns: each target token takes its source token's attention.

    One token is copied to each of several; several are averaged into one.

    Args:
        length: M, the tokens of a prompt.
    Returns:
        carry (M, M), source columns -> target columns, and keep (M,), 1 where the target's own column stays.
    Raises:
        PromptError: token counts that are not n:n, 1:n or n:1.
    """
    carry, keep = torch.zeros(length, length), torch.ones(length)
    for span in spans:
        check_counts(span)
        n, m = len(span.source), len(span.target)
        pairs = zip(span.source * (m if n == 1 else 1), span.target * (n if m == 1 else 1), strict=True)
        for s, t in pairs:
            carry[s, t] = 1 / n if m == 1 else 1.0
            keep[t] = 0.0
    return carry, keep


def refinement(aligned: Sequence[int], length: int) -> tuple[Tensor, Tensor]:
    """Refinement (Hertz et al. 2022, eq. 6) as a linear map on columns.

    A token that both prompts have takes the source's attention, a new one keeps its own.

    Args:
        aligned: of `sage.prompts.words`.
    Returns:
        carry (M, M) and keep (M,), as of `replacement`.
    """
    carry, keep = torch.zeros(length, length), torch.zeros(length)
    for j, i in enumerate(aligned):
        if i < 0:
            keep[j] = 1.0
        else:
            carry[i, j] = 1.0
    return carry, keep


def word_swap(changed: Iterable[Span], length: int, shifted: bool = True) -> tuple[Tensor, Tensor]:
    """Word swap (Hertz et al. 2022, sec. 3.2) as a linear map on columns: every token takes the source's attention.

    Those of a changed word take that of the word in its place, in equal shares where their numbers differ.

    Args:
        shifted: behind the last change too, tokens are paired in their order; else by their position, as in the
            original code, where two prompts of different length are out of step.
    Returns:
        carry (M, M) and keep (M,), as of `replacement`; columns for which the source has none are kept if `shifted`,
        and else zero.
    """
    carry, i, j = torch.zeros(length, length), 0, 0
    for span in changed:
        before = span.source[0] - i
        carry[range(i, i + before), range(j, j + before)] = 1.0
        n, m = len(span.source), len(span.target)
        if n == m:
            carry[span.source, span.target] = 1.0
        else:
            carry[span.source[0]:span.source[-1] + 1, span.target[0]:span.target[-1] + 1] = 1 / m
        i, j = i + before + n, j + before + m
    rest = range(length - max(i, j))
    carry[[(i if shifted else j) + k for k in rest], [j + k for k in rest]] = 1.0
    return carry, (carry.sum(dim=0) == 0).float() if shifted else torch.zeros(length)


def replace_columns(map: Tensor, reference: Tensor, carry: Tensor, keep: Tensor) -> Tensor:
    """The target's map with some columns taken from the recorded source map.

    Args:
        map, reference: (B, H, N, M).
        carry, keep: (B, M, M) and (B, M), of `replacement`.
    """
    return map * keep[:, None, None].to(map) + reference.to(map) @ carry[:, None].to(map)


def reweight(map: Tensor, factors: Tensor) -> Tensor:
    """`map` (B, H, N, M) with each token's column multiplied by its factor (B, M)."""
    return map * factors[:, None, None].to(map)


# ---- contexts


Between = Callable[[dict[str, Tensor], Site], Mapping[str, Tensor]]


def between(sites: Sequence[Site], branches: Iterable[str], change: Between) -> AbstractContextManager[None]:
    """Context in which, in a batch of several branches, the maps of one are made from those of others.

    Args:
        branches: their names, in the order of the batch's rows (`Job.together`).
        change: (maps (B, H, N, M) by branch, site) -> new maps, of those branches that change.
    """
    names = tuple(branches)

    def rewritten(map: Tensor, site: Site) -> Tensor:
        maps = dict(zip(names, map.chunk(len(names)), strict=True))
        return torch.cat([*(maps | dict(change(maps, site))).values()])

    return rewrite(sites, rewritten)


def lent(sites: Sequence[Site], branches: Iterable[str], lenders: Mapping[str, str],
         own: bool = False) -> AbstractContextManager[None]:
    """Context in which, in a batch of several branches, some use the keys and values of others (Cao et al. 2023).

    Args:
        branches: their names, in the order of the batch's rows (`Job.together`).
        lenders: by the name of a branch the one that lends.
        own: beside their own; else in place of them.
    """
    names = tuple(branches)
    row = [names.index(lenders.get(name, name)) for name in names]

    def swapped(given: Projection, site: Site) -> Projection:
        def of_lender(t: Tensor) -> Tensor:
            parts = t.chunk(len(names))
            borrowed = torch.cat([parts[i] for i in row])
            return torch.cat([borrowed, t], dim=2) if own else borrowed  # what is there twice weighs as if once

        return Projection(given.queries, of_lender(given.keys), of_lender(given.values))

    return swap(sites, swapped)


def rewrite_columns(sites: Sequence[Site], reference: Sequence[QueriesKeys], carry: Tensor,
                    keep: Tensor) -> AbstractContextManager[None]:
    """Context in which the maps at `sites` take columns of the recorded ones."""
    recorded = {site.path: pair for site, pair in zip(sites, reference, strict=True)}
    return rewrite(list(sites), lambda map, site: replace_columns(map, recorded[site.path].map(), carry, keep))


def rewrite_maps(sites: Sequence[Site], reference: Sequence[QueriesKeys]) -> AbstractContextManager[None]:
    """Context in which the maps at `sites` are the recorded ones."""
    recorded = {site.path: pair for site, pair in zip(sites, reference, strict=True)}
    return rewrite(list(sites), lambda map, site: recorded[site.path].map().to(map))


def reweighted(sites: Iterable[Site], factors: Tensor) -> AbstractContextManager[None]:
    """Context in which every cross-attention map among `sites` is reweighted."""
    return rewrite([s for s in sites if s.kind == "cross"], lambda map, site: reweight(map, factors))
