"""How the tokens of two prompts correspond, for methods that carry attention over.  Imports no torch.

The rules are those of prompt-to-prompt (Hertz et al. 2208.01626): `aligned` of its refinement, `changed_words` of its
word swap.
"""

from collections.abc import Sequence
from difflib import SequenceMatcher

from sage.prompts.tokens import Prompt, Prompts, Span


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
