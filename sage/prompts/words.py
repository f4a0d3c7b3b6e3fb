"""How the tokens of two prompts correspond, for methods that carry attention over.

The rules are those of prompt-to-prompt (Hertz et al. 2208.01626): `aligned` of its refinement, `changed_words` of its
word swap.
"""

from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import TYPE_CHECKING

from sage.prompts.tokens import Prompt, Prompts, Span

if TYPE_CHECKING:
    from torch import Tensor


def aligned(source: Sequence[int], target: Sequence[int], length: int) -> tuple[int, ...]:
    """For each token of the target the position of the source token that it is, -1 where it is new.

    Global alignment of the token ids (Needleman & Wunsch 1970): 1 for a match, -1 for a mismatch, 0 for a gap.  Among
    alignments of equal worth, read from the end, a token of the target alone comes before one of the source alone, and
    that before a pair.

    Args:
        source, target: ids with both marks, without padding.
        length: of the result; what pads the target corresponds to itself.
    """
    worth = [[0] * (len(target) + 1) for _ in range(len(source) + 1)]
    for i, s in enumerate(source, start=1):
        for j, t in enumerate(target, start=1):
            worth[i][j] = max(worth[i][j - 1], worth[i - 1][j], worth[i - 1][j - 1] + (1 if s == t else -1))
    i, j, found = len(source), len(target), [-1] * len(target)
    while i and j:
        if worth[i][j] == worth[i][j - 1]:
            j -= 1
        elif worth[i][j] == worth[i - 1][j]:
            i -= 1
        else:
            i, j = i - 1, j - 1
            found[j] = i
    return (*found, *range(len(target), length))


def gaps_paired(aligned: Sequence[int], source: "Tensor", target: "Tensor") -> tuple[int, ...]:
    """An alignment in which, between two aligned tokens, the likest of the pairs that are left is aligned too.

    A pair's likeness is that of the source prompt's embedding at the place of the target's token and of the target
    prompt's at that of the source's, which is InfEdit's rule (Xu et al. 2312.04965, code).

    Args:
        aligned: for each token of the target the source's, or -1 (`aligned`).
        source, target: (M, D) embedded prompts.
    """
    from torch.nn.functional import cosine_similarity
    found, j = list(aligned), 0
    while j < len(aligned):
        start = j
        while aligned[j] < 0:
            j += 1
        places = range(start, j)
        of_source = range(aligned[start - 1] + 1, aligned[j]) if places else range(0)
        if of_source:
            likeness = cosine_similarity(source[list(places)][:, None], target[list(of_source)][None], dim=-1)
            row, column = divmod(int(likeness.argmax()), len(of_source))
            found[places[row]] = of_source[column]
        j += 1
    return tuple(found)


def paired(source: Sequence[int], target: Sequence[int]) -> tuple[int, ...]:
    """For each token of the target the position of the source token in its place, -1 where there is none.

    Tokens of the longest common runs are in each other's place, and so are those between two runs if there are equally
    many, which is EDICT's rule (Wallace et al. 2211.12446, code).

    Args:
        source, target: ids with padding.
    """
    found = [-1] * len(target)
    for what, i, i_end, j, j_end in SequenceMatcher(None, source, target, autojunk=False).get_opcodes():
        if what == "equal" or i_end - i == j_end - j:
            found[j:j_end] = range(i, i_end)
    return tuple(found)


def changed_words(prompts: Prompts, source: Prompt, target: Prompt) -> tuple[Span, ...] | None:
    """The words, split at spaces, in which two prompts of equally many differ; None if they have not equally many."""
    a, b = prompts.words(source), prompts.words(target)
    if len(a) != len(b):
        return None
    return tuple(Span(here, there) for (word, here), (other, there) in zip(a, b, strict=True)
                 if word != other and here and there)


def first_places(ids: Sequence[int], local: Sequence[int]) -> tuple[int, ...]:
    """Where in a prompt's tokens others are found in their order, each for the first time from where the last one was.

    Args:
        ids: of the prompt, with both marks.
        local: without marks; those from the first that is not there on are left out.
    """
    found, at = list[int](), 1
    for token in local:
        while at < len(ids) - 1 and ids[at] != token:
            at += 1
        if at == len(ids) - 1:
            break
        found.append(at)
    return tuple(found)
