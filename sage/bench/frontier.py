"""What was changed against what was kept, a curve for each method over its own strength: as SVG, which a page styles.

A method is on the front where at one of its strengths no other is better in both; these are drawn in colour and named,
the others are there to be pointed at.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 420, 54, 150, 14, 46  # of the drawing, and its margins
COLOURS = 8  # that the page has
LINE = 13  # of the names, in units of the drawing

Place = tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """A method, or a single place where there is one only.

    Attributes:
        places: (kept, changed) from the weakest strength to the strongest, more of both being better.
        names: of the places.
        chosen: which of them the search chose.
        mark: "curve", or "bound" for what is not in the race.
    """

    name: str
    places: Sequence[Place]
    names: Sequence[str]
    chosen: int = 0
    mark: str = "curve"


@dataclass(frozen=True)
class Frontier:
    """A picture of some curves.

    Attributes:
        kept, changed: what the axes are called.
        always: the curve that is drawn in colour wherever it is.
    """

    title: str
    kept: str
    changed: str
    curves: Sequence[Curve]
    always: str = "sage"

    def front(self) -> list[str]:
        """The names of the methods on the front."""
        racing = [c for c in self.curves if c.mark == "curve"]

        def beaten(place: Place, by: Curve) -> bool:
            return any(x >= place[0] and y >= place[1] and (x, y) != place for x, y in by.places)

        return [c.name for c in racing if any(not any(beaten(place, other) for other in racing if other is not c)
                                              for place in c.places)]

    def svg(self) -> str:
        """The picture as an element."""
        shown = set(self.front()) | {self.always}
        xs, ys = ([place[i] for c in self.curves for place in c.places] for i in (0, 1))
        x_ticks, y_ticks = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))
        axes = _Axes(min(*x_ticks, *xs), max(*x_ticks, *xs), min(*y_ticks, *ys), max(*y_ticks, *ys))
        grid = [*(f'<line class="grid" x1="{axes.x(t):.1f}" x2="{axes.x(t):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
                  f'<text class="middle" x="{axes.x(t):.1f}" y="{HEIGHT - BOTTOM + 17}">{t:g}</text>' for t in x_ticks),
                *(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{axes.y(t):.1f}" y2="{axes.y(t):.1f}"/>'
                  f'<text class="end" x="{LEFT - 7}" y="{axes.y(t) + 4:.1f}">{t:g}</text>' for t in y_ticks)]
        middle = (TOP + HEIGHT - BOTTOM) / 2
        titles = [f'<text class="middle" x="{(LEFT + WIDTH - RIGHT) / 2:.1f}" y="{HEIGHT - 8}">{escape(self.kept)} '
                  "&#8594;</text>",
                  f'<text class="middle" x="13" y="{middle:.1f}" transform="rotate(-90 13 {middle:.1f})">'
                  f"{escape(self.changed)} &#8594;</text>"]
        # What is named lies above what is not.
        ordered = sorted(self.curves, key=lambda c: (c.name in shown, c.mark == "bound", c.name == self.always))
        colours = {c.name: i % COLOURS for i, c in enumerate(c for c in self.curves if c.mark == "curve"
                                                              and c.name != self.always)}  # the same in all pictures
        drawn = [_drawn(c, axes, _kind(c, shown, colours, self.always)) for c in ordered]
        named = [c for c in ordered if c.name in shown or c.mark == "bound"]
        labels = _labels([(c, *_end(c, axes)) for c in named], shown, colours, self.always)
        return (f'<svg class="frontier" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(self.title)}">'
                f'{"".join([*grid, *titles, *drawn, *labels])}</svg>')


@dataclass(frozen=True)
class _Axes:
    left: float
    right: float
    low: float
    high: float

    def x(self, value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - self.left) / (self.right - self.left or 1)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - self.low) / (self.high - self.low or 1)


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers within, at least two of which are there."""
    span = high - low or abs(high) or 1.0
    unit = 10 ** math.floor(math.log10(span / most))
    step = next(unit * factor for factor in (1, 2, 5, 10, 20) if span / (unit * factor) <= most)
    first, last = math.floor(low / step), max(math.ceil(high / step), math.floor(low / step) + 1)
    return [round(i * step, 10) for i in range(first, last + 1)]


def _kind(c: Curve, shown: set[str], colours: dict[str, int], always: str) -> str:
    if c.mark == "bound":
        return "bound"
    if c.name == always:
        return "ours"
    return f"c{colours[c.name]}" if c.name in shown else "rest"


def _drawn(c: Curve, axes: _Axes, kind: str) -> str:
    points = [(axes.x(x), axes.y(y)) for x, y in c.places]
    line = f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>' if len(points) > 1 else ""
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{4.5 if i == c.chosen else 2.2}"><title>{escape(name)}: '
                   f"kept {place[0]:.2f}, changed {place[1]:.2f}</title></circle>"
                   for i, ((x, y), place, name) in enumerate(zip(points, c.places, c.names, strict=True)))
    return f'<g class="{kind}"><title>{escape(c.name)}</title>{line}{dots}</g>'


def _end(c: Curve, axes: _Axes) -> Place:
    x, y = c.places[c.chosen]
    return axes.x(x), axes.y(y)


def _labels(at: Sequence[tuple[Curve, float, float]], shown: set[str], colours: dict[str, int],
            always: str) -> list[str]:
    """Names in a column right of the drawing, each at the height of its place or as near as there is room."""
    placed, bottom = [], TOP - LINE / 2
    for c, x, y in sorted(at, key=lambda found: found[2]):
        bottom = max(bottom + LINE, y)
        placed.append((c, x, y, bottom))
    over = max(0.0, (placed[-1][3] if placed else 0) - (HEIGHT - BOTTOM))
    out, left = [], WIDTH - RIGHT + 10
    for i, (c, x, y, label) in enumerate(placed):
        label = max(TOP + LINE * i, label - over)
        kind = _kind(c, shown, colours, always)
        out.append(f'<g class="{kind} name"><path d="M{x + 5:.1f} {y:.1f} L{left - 3} {label:.1f}"/>'
                   f'<text x="{left}" y="{label + 4:.1f}">{escape(c.name)}</text></g>')
    return out
