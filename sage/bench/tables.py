"""Lines of results -> means with intervals, for each kind and overall, and paired comparisons.

Intervals are 95 % percentile bootstrap intervals of the mean over cases, with a fixed seed: the same lines give the
same digits.  A comparison is over the cases that both configurations have.
"""

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations
from textwrap import wrap
from typing import Any

import numpy as np

from sage.bench.metrics import METRICS, Metric
from sage.bench.scoring import DONE, Line
from sage.stilllife.edits import KINDS

DRAWS = 2000
WEIGHTS = {m.key: m.weight for m in METRICS if m.weight}
LEAST = 16  # characters to which the name above a column of a terminal is broken at the most


@dataclass(frozen=True)
class Interval:
    """A mean over `count` cases and its 95 % interval."""

    mean: float
    low: float
    high: float
    count: int

    def negated(self) -> "Interval":
        """The same of the negated values."""
        return Interval(-self.mean, -self.high, -self.low, self.count)

    def text(self, metric: Metric, signed: bool = False) -> str:
        """`12.3 [11.8, 12.9]` in the units of the tables."""
        sign = "+" if signed else ""
        mean, low, high = (f"{v * metric.scale:{sign}.{metric.decimals}f}" for v in (self.mean, self.low, self.high))
        return f"{mean} [{low}, {high}]"


def interval(values: Sequence[float], weights: Sequence[float] | None = None) -> Interval | None:
    """Mean and bootstrap interval, None of nothing.

    Args:
        weights: what each counts for in the mean, above 0; by default all alike.
    """
    if not len(values):
        return None
    x, drawn = np.asarray(values, np.float64), _draws(len(values))
    if weights is None:
        mean, means = x.mean(), x[drawn].mean(axis=1)
    else:
        w = np.asarray(weights, np.float64)
        mean, means = (w @ x) / w.sum(), (w * x)[drawn].sum(axis=1) / w[drawn].sum(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(float(mean), float(low), float(high), len(x))


@lru_cache(maxsize=16)
def _draws(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(count, size=(DRAWS, count))


@dataclass(frozen=True)
class Comparison:
    """Configuration a minus configuration b, case by case.

    Attributes:
        wins: share of the cases in which a is the better one; equal ones count half.
    """

    a: str
    b: str
    metric: str
    difference: Interval
    wins: float


class Results:
    """The lines of some configurations, to be asked for figures.

    Attributes:
        configurations: names, in the order of their first lines.
        metrics: those of which any line has a value.
        names: of the kinds, by their numbers.

    Args:
        costs: whether what a result took is a figure too.
    """

    def __init__(self, lines: Iterable[Line], names: Sequence[str] = KINDS, costs: bool = False):
        self.lines, self.names, self.costs = _with_costs(lines) if costs else list(lines), names, costs
        self.kinds = sorted({line.kind for line in self.lines})
        self.by_case: dict[str, dict[str, Line]] = {}
        for line in self.lines:
            self.by_case.setdefault(line.configuration, {})[line.case] = line
        self.configurations = list(self.by_case)
        self._means: dict[tuple[str, str, int | None], Interval | None] = {}
        self.metrics = [m for m in METRICS if any(line.scores.get(m.key) is not None for line in self.lines)]

    def of(self, cases: Collection[str]) -> "Results":
        """Those of some of the cases, by their names."""
        return Results([line for line in self.lines if line.case in cases], self.names, self.costs)

    def scores(self, configuration: str, metric: str, kind: int | None = None) -> dict[str, float]:
        """The values of one figure by case, those without one left out."""
        return {case: score for case, line in self.by_case[configuration].items()
                if line.status == DONE and kind in (None, line.kind) and (score := line.scores.get(metric)) is not None}

    def mean(self, configuration: str, metric: str, kind: int | None = None) -> Interval | None:
        key = configuration, metric, kind
        if key not in self._means:
            scores, weight = self.scores(*key), WEIGHTS.get(metric)
            of_case = self.scores(configuration, weight, kind) if weight else {}
            weights = [of_case[case] for case in scores] if weight else None
            self._means[key] = interval(list(scores.values()), weights)
        return self._means[key]

    def failed(self, configuration: str, kind: int | None = None) -> list[Line]:
        """The lines without a result."""
        return [line for line in self.by_case[configuration].values()
                if line.status != DONE and kind in (None, line.kind)]

    def compare(self, a: str, b: str, metric: Metric, kind: int | None = None) -> Comparison | None:
        """a against b; None where they share no case."""
        first, second = (self.scores(name, metric.key, kind) for name in (a, b))
        differences = np.array([first[case] - second[case] for case in first if case in second])
        found = interval(differences.tolist())
        if found is None:
            return None
        better = differences if metric.higher_is_better else -differences
        return Comparison(a, b, metric.key, found, float(np.mean((better > 0) + 0.5 * (better == 0))))

    def comparisons(self) -> list[Comparison]:
        """Every pair of configurations in every figure, over all kinds."""
        found = [self.compare(a, b, m) for a, b in combinations(self.configurations, 2) for m in self.metrics]
        return [c for c in found if c]


def _with_costs(lines: Iterable[Line]) -> list[Line]:
    lines = list(lines)
    costs = ("seconds", "calls", *(["gradients"] if any(line.gradients for line in lines) else []))
    return [replace(line, scores={**line.scores, **{name: getattr(line, name) for name in costs}})
            if line.status == DONE else line for line in lines]


def as_dict(results: Results) -> dict[str, Any]:
    """Everything as JSON values, in the units of the formulas; the same lines give the same text."""
    def plain(found: Interval | None) -> dict[str, float] | None:
        return None if found is None else vars(found)

    rows = [{"configuration": c, "kind": None if kind is None else results.names[kind],
             "failed": len(results.failed(c, kind)),
             **{m.key: plain(results.mean(c, m.key, kind)) for m in results.metrics}}
            for kind in (None, *results.kinds) for c in results.configurations]
    pairs = [{**vars(c), "difference": vars(c.difference)} for c in results.comparisons()]
    return {"table": rows, "comparisons": pairs}


def as_json(results: Results, networks: Mapping[str, str] | None = None) -> str:
    """The same as text, with what is known of the networks behind the figures."""
    return json.dumps(as_dict(results) | ({"networks": dict(networks)} if networks else {}), indent=1) + "\n"


def as_record(title: str, results: Results, facts: Mapping[str, str],
              wordings: Mapping[str, Collection[str]] | None = None, baselines: Sequence[str] = ()) -> str:
    """A Markdown file to keep: what was measured, when, where and how; the table, and one for each part.

    Args:
        wordings: the names of the cases of each wording; of several each has a table, beside each kind.
        baselines: configurations that all others are compared with, case by case.
    """
    parts = [f"# {title}\n", "".join(f"- {name}: {' '.join(value.split())}\n" for name, value in facts.items()),
             "Means over cases with 95 % bootstrap intervals.\n", as_markdown(results),
             *differences(results, baselines)]
    for wording, cases in (wordings or {}).items() if len(wordings or ()) > 1 else ():
        own = results.of(cases)
        parts += [f"## {wording} prompts\n", as_markdown(own), *differences(own, baselines)]
    for kind in results.kinds if len(results.kinds) > 1 else ():
        parts += [f"## {results.names[kind]}\n", as_markdown(results, kind)]
    return "\n".join(parts)


def as_markdown(results: Results, kind: int | None = None) -> str:
    """One table: a row for each configuration, a column for each figure."""
    heads = ["", *(m.title for m in results.metrics)]
    rows = [heads, ["---"] * len(heads)]
    for c in results.configurations:
        cells = [results.mean(c, m.key, kind) for m in results.metrics]
        rows.append([c, *("" if v is None else v.text(m) for v, m in zip(cells, results.metrics, strict=True))])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def differences(results: Results, baselines: Sequence[str]) -> list[str]:
    """For each baseline a table: the others less it, over the same cases, and the share of these in which they win."""
    parts = []
    for baseline in baselines:
        rows = [[f"minus {baseline}", *(m.title for m in results.metrics)], ["---"] * (len(results.metrics) + 1)]
        for c in results.configurations:
            found = [results.compare(c, baseline, m) for m in results.metrics]
            if c != baseline:
                rows.append([c, *("" if d is None else f"{d.difference.text(m, signed=True)}, {d.wins:.0%}"
                                  for d, m in zip(found, results.metrics, strict=True))])
        parts += ["Paired differences with 95 % intervals, and the share of cases won.\n",
                  "".join(f"| {' | '.join(row)} |\n" for row in rows)]
    return parts


def as_text(results: Results, width: int) -> str:
    """The table for a terminal: a row for each figure, and side by side as many configurations as `width` holds."""
    titles = [m.title for m in results.metrics]
    first = max(map(len, titles), default=0)
    blocks: list[list[list[str]]] = []
    room = 0
    for name in results.configurations:
        found = [results.mean(name, m.key) for m in results.metrics]
        cells = ["" if v is None else v.text(m) for v, m in zip(found, results.metrics, strict=True)]
        head = wrap(re.sub(r"([:,])(?! )", r"\1 ", name), max([LEAST, *map(len, cells)]), break_on_hyphens=False)
        wide = max(map(len, (*head, *cells))) + 2
        if not blocks or room < wide:
            blocks.append([])
            room = width - first
        room -= wide
        blocks[-1].append([line.rjust(wide) for line in (*head, *cells)])
    return "\n".join(_block(titles, first, columns) for columns in blocks)


def _block(titles: Sequence[str], first: int, columns: Sequence[Sequence[str]]) -> str:
    """Columns beside their rows' titles, the heads standing on one line with their last ones."""
    tall = max(map(len, columns))
    rows = zip(*([" " * len(column[0])] * (tall - len(column)) + list(column) for column in columns), strict=True)
    lefts = [""] * (tall - len(titles)) + list(titles)
    return "".join((left.ljust(first) + "".join(row)).rstrip() + "\n" for left, row in zip(lefts, rows, strict=True))
