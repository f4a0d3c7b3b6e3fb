"""How every method is given its settings: the same search, on the same cases, with the same number of trials.

    the first trial     the published numbers
    the first half      points spread evenly over what the method says is worth trying (Halton 1960)
    the second half     points about the best so far, in a box that shrinks from a half to a fifth of the whole

What is tried is declared beside each setting: `setting(..., search=Span(1, 8))`.  A trial is given up where it is
`BEHIND` the best one on the cases that it has done, in parts.  Nothing is drawn at random, so a search that was broken
off goes on as it would have.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from statistics import fmean
from typing import TYPE_CHECKING, Any

from sage.bench.configs import MODELS
from sage.method import Method
from sage.settings import Searched, Settings, Span, annotations

if TYPE_CHECKING:
    from sage.models.backbone import Backbone

BEHIND = 1.0  # of a trial's score, in decibels: some standard error of a difference on five cases
WIDEST, NARROWEST = 0.5, 0.2  # of the box about the best, by its sides
MOST_POINTS = 10  # for each trial: of few choices many points are the same
BASES = (2, 3, 5, 7, 11, 13, 17, 19)  # as many settings can be searched at once

Values = dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """Settings that were tried.

    Attributes:
        values: of the settings that are searched.
        score: more is better; None where they are not possible.  Of a trial that was given up as far below that of the
            best one before it as it was on the cases that it has done.
        failed: cases without a result, each of which counts as nothing.
        each: the score of each case, of fewer than there are where it was given up.
    """

    values: Values
    score: float | None
    failed: int = 0
    each: tuple[float, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def space(method: Method[Any]) -> dict[str, Searched]:
    """What is tried of each setting, by name: of those that the method's name adds, and not of those it settles.

    Edits are by prompts here: settings that say nothing unless something is moved are left alone.
    """
    kinds = method.Settings.searched(regions=False)
    return {**{name: search for name, search in kinds.items() if name not in method.variant}, **method.added}


def start(method: Method[Any], model: "Backbone", steps: int) -> Settings:
    """Where a search begins: the method's defaults for a model, with the published numbers of what is searched.

    Args:
        steps: as many for every method, so that none is given more network calls than it asks for.
    """
    recommended, published = method.recommended(model), method.presets.get("published", {})
    told = {name: getattr(recommended, name) for name in MODELS if name in recommended.names()}
    numbers = {name: published[name] for name in space(method) if name in published}
    length = {"steps": steps} if "steps" in recommended.names() else {}
    return method.defaults(model).but(**{**told, **numbers, **length, **method.variant})


def race(values: Values, parts: Iterable[Sequence[float | None]], leader: Trial | None) -> Trial:
    """A trial of settings, part by part of the cases, as long as it keeps up.

    Args:
        parts: the scores of the cases of each part, None for a failure; the next is asked for only while it is wanted.
        leader: the best trial so far, which has done all cases.
    """
    scores = list[float | None]()
    for part in parts:
        scores += part
        each = tuple(score or 0.0 for score in scores)
        if leader and leader.score is not None and (lead := fmean(leader.each[:len(each)]) - fmean(each)) > BEHIND:
            return Trial(values, leader.score - lead, scores.count(None), each)
    return Trial(values, fmean(each), scores.count(None), each)


def search(kinds: Mapping[str, Searched], first: Values, trials: int, judge: Callable[[Values, Trial | None], Trial],
           whole: Sequence[str] = ()) -> list[Trial]:
    """Try settings.

    Args:
        kinds: what is tried of each.
        first: the values of the first trial.
        trials: how many in all; fewer where there are no more to try.
        judge: tries some, given the best trial so far.
        whole: the settings that are whole numbers.
    Returns:
        The trials in their order.
    """
    tried, half = [judge(first, None)], (trials + 1) // 2
    for point in islice(halton(len(kinds)), MOST_POINTS * trials):
        if len(tried) >= trials or not kinds:
            break
        if (late := len(tried) - half) >= 0:
            width = WIDEST + (NARROWEST - WIDEST) * late / max(1, trials - 1 - half)
            point = _near(_place(kinds, best(tried).values), point, width)
        values = {name: _value(kind, share, name in whole)
                  for (name, kind), share in zip(kinds.items(), point, strict=True)}
        if values not in [trial.values for trial in tried]:
            tried.append(judge(values, best(tried)))
    return tried


def best(tried: Sequence[Trial]) -> Trial:
    """The trial with the highest score, of equal ones the first."""
    return max(tried, key=lambda trial: float("-inf") if trial.score is None else trial.score)


def whole_numbers(owner: type[Settings]) -> tuple[str, ...]:
    """The settings that are whole numbers."""
    return tuple(name for name, kind in annotations(owner).items() if kind in (int, int | None))


def strengths(kind: Searched, count: int, whole: bool) -> list[Any]:
    """Values of a method's strength along its range, from the least to the most."""
    shares = [i / max(1, count - 1) for i in range(count)]
    return list(dict.fromkeys(_value(kind, share, whole) for share in shares))


def halton(dimensions: int) -> Iterator[list[float]]:
    """Points that fill the unit cube evenly, each dimension's digits turned round in another prime base."""
    index = 1
    while True:
        yield [_reversed(index, base) for base in BASES[:dimensions]]
        index += 1


def _reversed(index: int, base: int) -> float:
    value, unit = 0.0, 1.0
    while index:
        unit /= base
        index, digit = divmod(index, base)
        value += digit * unit
    return value


def _near(centre: Sequence[float], point: Sequence[float], width: float) -> list[float]:
    """A point of the unit cube as one of the box about `centre`, cut at the cube's faces."""
    return [min(max(c + width * (p - 0.5), 0.0), 1.0) for c, p in zip(centre, point, strict=True)]


def _value(kind: Searched, share: float, whole: bool) -> Any:
    if not isinstance(kind, Span):
        return kind[min(int(share * len(kind)), len(kind) - 1)]
    return round(kind.at(share)) if whole else kind.at(share)


def _place(kinds: Mapping[str, Searched], values: Values) -> list[float]:
    """Where values lie in the unit cube; one that is not among those to be tried counts for the first of them."""
    return [kind.share(values[name]) if isinstance(kind, Span)
            else ((kind.index(values[name]) if values[name] in kind else 0) + 0.5) / len(kind)
            for name, kind in kinds.items()]
