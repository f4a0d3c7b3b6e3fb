"""Which tokens a cache computes anew: lists drawn beforehand, for they depend on no feature (EEdit, 2503.10270).

    score = u + weight age / T,   u ~ U[0, 1)          age: draws since the token was last computed
    score <- score (1 + 2 * 0.8^(1 + ring))            ring 0: in the region; 1, 2, ...: around it; elsewhere unchanged

The highest scores are computed.  Pictures of a batch share u, so that each is drawn for as if it were alone.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from sage.guidance.masks import resize

BONUS, FALL = 2.0, 0.8


def rings(region: Tensor, number: int) -> Tensor:
    """How far places are from a region, in steps to one of eight neighbours.

    Args:
        region: (B, 1, h, w) in {0, 1}.
        number: of rings, the region itself being the first; 0 for none.
    Returns:
        (B, h * w) int64: 0 in the region, 1, 2, ... around it, -1 elsewhere.
    """
    found, grown = torch.full_like(region, -1, dtype=torch.int64), region.float()
    for ring in range(number):
        found = torch.where((grown > 0) & (found < 0), ring, found)
        grown = F.max_pool2d(grown, 3, 1, 1)
    return found.flatten(1)


def favour(ring: Tensor, bonus: float = BONUS) -> Tensor:
    """Factor on the score by ring: 2.6, 2.28, 2.024, ...; 1 for -1."""
    return torch.where(ring < 0, 1.0, 1 + bonus * FALL ** (1.0 + ring))


def on_grid(mask: Tensor, rows: int, columns: int, nearest: bool = False) -> Tensor:
    """(B, 1, h, w) in {0, 1} -> (B, 1, rows, columns): the places that hold any of it, or that do in their middle."""
    if nearest:
        return F.interpolate(mask.float(), (rows, columns), mode="nearest-exact")
    if rows <= mask.shape[-2] and columns <= mask.shape[-1]:
        return F.adaptive_max_pool2d(mask.float(), (rows, columns))
    return resize(mask > 0, rows, columns)


@dataclass
class Draws:
    """Draws the tokens of one layer, pass by pass.

    Args:
        favour: (B or 1, n) factors on the scores.
        ratio: share of the tokens that is drawn.
        weight: of a token's age.
        every: T, the unit of age.
        generator: on the CPU.
    """

    favour: Tensor
    ratio: float
    weight: float
    every: int
    generator: torch.Generator
    age: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """All tokens have just been computed."""
        self.age = torch.zeros_like(self.favour)

    def next(self) -> Tensor:
        """(B or 1, k) int64 places, sorted, k = floor(ratio n)."""
        places = self.favour.shape[1]
        score = torch.rand(places, generator=self.generator) + self.weight * self.age / self.every
        chosen = (score * self.favour).topk(math.floor(round(self.ratio * places, 9)), dim=1).indices.sort().values
        self.age = (self.age + 1).scatter(1, chosen, 0.0)
        return chosen


Lists = dict[tuple[int, str], Tensor]


def drawn(layers: Mapping[str, Draws], step: int, whole: bool) -> Lists:
    """The lists of the next step by (step, layer): none of one that is computed whole, where all is forgotten."""
    lists: Lists = {}
    for name, draws in layers.items():
        if whole:
            draws.forget()
        else:
            lists[step, name] = draws.next()
    return lists


def preprocessed(layers: Mapping[str, Draws], whole: Iterable[bool]) -> Lists:
    """The lists of all steps, drawn before the first: token index preprocessing."""
    return {key: places for step, all_of_it in enumerate(whole)
            for key, places in drawn(layers, step, all_of_it).items()}
