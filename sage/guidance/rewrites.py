"""Cross- and self-attention edits: probabilities in, probabilities out, never in place.

Columns of a map are tokens.  Nothing is renormalised, as in prompt-to-prompt (Hertz et al. 2022) and SAGE.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sage.errors import PromptError


def check_lengths(source: Sequence[int], target: Sequence[int]) -> None:
    """PromptError unless the phrases' token counts are n:n, 1:n or n:1."""
    n, m = len(source), len(target)
    if not (n and m and (n == m or n == 1 or m == 1)):
        raise PromptError(f"cannot replace the attention of {m} tokens by that of {n}: the counts must be equal, "
                          "or one of them 1")


def carry_columns(reference: Tensor, source: Sequence[int], target: Sequence[int]) -> Tensor:
    """What the target's tokens get: the source's columns one to one, one copied to each, or their mean.

    Args:
        reference: (B, H, N, M) recorded map.
    Returns:
        (B, H, N, len(target))
    """
    check_lengths(source, target)
    columns = reference[..., list(source)]
    if len(target) == 1:
        return columns.mean(dim=-1, keepdim=True)
    return columns.expand(*columns.shape[:-1], len(target))


def replace_columns(map: Tensor, columns: Tensor, target: Sequence[int]) -> Tensor:
    """`map` (B, H, N, M) with the columns of the tokens `target` replaced."""
    index = torch.tensor(list(target), device=map.device)
    return map.index_copy(-1, index, columns.to(map).expand(*map.shape[:-1], len(target)))


def reweight(map: Tensor, factors: Tensor) -> Tensor:
    """`map` (B, H, N, M) with each token's column multiplied by its factor (M,)."""
    return map * factors.to(map)
