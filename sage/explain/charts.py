"""A curve over the steps of an edit: as SVG in a page, which it leaves to style, and as a picture."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby

from PIL import Image, ImageDraw, ImageFont

from sage.explain.heat import number

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 380, 190, 52, 12, 12, 40  # of the drawing, and its margins


@dataclass(frozen=True)
class Chart:
    """Numbers by step, from the first on; None is a gap in the curve.

    Attributes:
        unit: what the numbers are.
    """

    title: str
    unit: str
    values: Sequence[float | None]

    @property
    def empty(self) -> bool:
        return all(v is None for v in self.values)

    @property
    def top(self) -> float:
        """The end of the upright axis, which begins at 0."""
        return ticks(max((v for v in self.values if v is not None), default=0.0))[-1]

    def x(self, step: int) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (step / max(1, len(self.values) - 1))

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / self.top

    def runs(self) -> list[list[tuple[float, float]]]:
        """The curve's unbroken pieces as points."""
        found = groupby(((self.x(i), v) for i, v in enumerate(self.values)), key=lambda p: p[1] is None)
        return [[(x, self.y(v)) for x, v in run] for gap, run in found if not gap]

    def step_ticks(self) -> list[int]:
        """Steps to be named below the axis, from 0."""
        n = len(self.values)
        every = max(1, math.ceil(n / 10))
        every = next(e for e in (1, 2, 5, 10, 20, 50, 100, 200) if e >= every or e == 200)
        return [0, *(i - 1 for i in range(every, n + 1, every) if i - 1 > every / 2)]

    def svg(self) -> str:
        """An element of its own size, with a line `.cursor` for whoever moves it."""
        body = []
        for value in ticks(self.top):
            y = self.y(value)
            body.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
                        f'<text class="end" x="{LEFT - 7}" y="{y + 4:.1f}">{number(value)}</text>')
        for step in self.step_ticks():
            body.append(f'<text class="middle" x="{self.x(step):.1f}" y="{HEIGHT - BOTTOM + 17}">{step + 1}</text>')
        body.append(f'<text class="middle" x="{(LEFT + WIDTH - RIGHT) / 2:.1f}" y="{HEIGHT - 6}">step</text>')
        for run in self.runs():
            points = " ".join(f"{x:.1f},{y:.1f}" for x, y in run)
            body.append(f'<polyline class="curve" points="{points}"/>')
        body.append(f'<line class="cursor" y1="{TOP}" y2="{HEIGHT - BOTTOM}" x1="{LEFT}" x2="{LEFT}"/>')
        for i, value in enumerate(self.values):
            if value is not None:
                body.append(f'<circle cx="{self.x(i):.1f}" cy="{self.y(value):.1f}" r="2.6">'
                            f"<title>step {i + 1}: {value:.4g}</title></circle>")
        what = escape(f"{self.title}: {self.unit}, at each step", quote=True)
        return (f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{what}" data-left="{LEFT}" '
                f'data-right="{WIDTH - RIGHT}">{"".join(body)}</svg>')

    def picture(self, scale: int = 2) -> Image.Image:
        """The same on white."""
        head = 38
        image = Image.new("RGB", (WIDTH * scale, (HEIGHT + head) * scale), "white")
        draw, font = ImageDraw.Draw(image), ImageFont.load_default(12 * scale)

        def at(x: float, y: float) -> tuple[float, float]:
            return x * scale, (y + head) * scale

        draw.text((8 * scale, 4 * scale), self.title, "black", font)
        draw.text((8 * scale, 20 * scale), self.unit, "#555555", ImageFont.load_default(11 * scale))
        for value in ticks(self.top):
            draw.line([at(LEFT, self.y(value)), at(WIDTH - RIGHT, self.y(value))], "#dddddd", scale)
            draw.text(at(LEFT - 7, self.y(value)), number(value), "#555555", font, anchor="rm")
        for step in self.step_ticks():
            draw.text(at(self.x(step), HEIGHT - BOTTOM + 6), str(step + 1), "#555555", font, anchor="ma")
        draw.text(at((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 18), "step", "#555555", font, anchor="ma")
        for run in self.runs():
            points = [at(x, y) for x, y in run]
            draw.line(points, "#2f6f6a", 2 * scale, joint="curve")
            for x, y in points:
                draw.circle((x, y), 2.5 * scale, "#2f6f6a")
        return image


def ticks(top: float) -> list[float]:
    """From 0 in round steps, three to six of them, to the first that is not below `top`."""
    if not top > 0:
        return [0.0, 1.0]
    size = 10.0 ** math.floor(math.log10(top))
    step = next(s * size for s in (0.1, 0.2, 0.5, 1, 2, 5) if top / (s * size) <= 5.000001)
    return [i * step for i in range(math.ceil(top / step - 1e-6) + 1)]
