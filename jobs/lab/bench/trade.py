"""A chart of what is reached over what it costs, for documents: points with their intervals, each joined to its control; SVG.

Colours follow the reader's light or dark scheme, as in :mod:`jobs.lab.bench.curves`. The legend stands beside the chart: a
number at every point names its row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from jobs.lab.bench.curves import DARK, LIGHT

WIDE, ROW = 930, 22
LEFT, TOP, ACROSS, UP = 62, 46, 470, 300  # the frame
NAMES = 560  # where the legend begins


@dataclass(frozen=True)
class Point:
    """(value, low, high) of what is reached, and of what it costs: both are changes, −0.1 is a tenth less."""

    effect: tuple[float, float, float]
    cost: tuple[float, float, float]


@dataclass(frozen=True)
class Line:
    """A form: its name, its point, and its control's."""

    name: str
    own: Point
    control: Point


def trade(lines: Sequence[Line], *, effect: float, loss: float) -> str:
    """An SVG: change of similarity to the left, change of captions upwards; the goals' corner is shaded.

    Args:
        lines: at least one.
        effect, loss: the goals: at least so much change of similarity (−0.35), at most so much loss of captions (−0.05).
    """
    points = [p for line in lines for p in (line.own, line.control)]
    far, deep = min(-0.1, effect, *(p.effect[0] for p in points)) - 0.05, min(-0.1, loss, *(p.cost[0] for p in points)) - 0.03
    near, top = max(0.05, *(p.effect[0] for p in points)), max(0.03, *(p.cost[0] for p in points))

    def x(value: float) -> float:
        return LEFT + ACROSS * (near - min(max(value, far), near)) / (near - far)

    def y(value: float) -> float:
        return TOP + UP * (top - min(max(value, deep), top)) / (top - deep)

    tall = max(TOP + UP + 56, TOP + ROW * len(lines) + 60)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDE} {tall}" font-family="system-ui, sans-serif" '
        'font-size="12">',
        f"<style>{_style()}</style>",
        f'<rect class="paper" width="{WIDE}" height="{tall}"/>',
        f'<rect class="f0 goal" x="{x(effect):.1f}" y="{TOP}" width="{LEFT + ACROSS - x(effect):.1f}" '
        f'height="{y(loss) - TOP:.1f}"/>',
        f'<text class="ink" x="{LEFT}" y="24" font-size="14" font-weight="600">captions kept over similarity taken</text>',
    ]
    out += [
        f'<line class="line" x1="{x(-t / 10):.1f}" x2="{x(-t / 10):.1f}" y1="{TOP}" y2="{TOP + UP}"/>'
        f'<text class="muted" x="{x(-t / 10):.1f}" y="{TOP + UP + 16}" text-anchor="middle">{-10 * t if t else 0} %</text>'
        for t in range(int(-10 * far) + 1)
    ]
    out += [
        f'<line class="line" x1="{LEFT}" x2="{LEFT + ACROSS}" y1="{y(-t / 20):.1f}" y2="{y(-t / 20):.1f}"/>'
        f'<text class="muted" x="{LEFT - 8}" y="{y(-t / 20) + 4:.1f}" text-anchor="end">{-5 * t if t else 0}</text>'
        for t in range(int(-20 * deep) + 1)
    ]
    below = TOP + UP + 36
    out.append(f'<text class="muted" x="{LEFT}" y="{below}">change of similarity to the reference → ; upwards: captions in the '
               "judge’s top 5, change in points</text>")  # fmt: skip
    for i, line in enumerate(lines):
        out += _drawn(i, line, x, y)
    out.append(f'<text class="ink" x="{NAMES}" y="24" font-weight="600">filled: its reference; open: a random reference</text>')
    for i, line in enumerate(lines):
        up = TOP + ROW * i + 12
        out.append(f'<circle class="f{i % len(LIGHT)}" cx="{NAMES + 8}" cy="{up}" r="8"/>{_number(i, NAMES + 8, up)}')
        out.append(f'<text class="ink" x="{NAMES + 24}" y="{up + 4}">{escape(line.name)}</text>')
    return "\n".join([*out, "</svg>", ""])


def _drawn(i: int, line: Line, x: object, y: object) -> list[str]:
    assert callable(x) and callable(y)
    of, (own, control) = i % len(LIGHT), (line.own, line.control)
    (at, left, right), (up, low, high) = own.effect, own.cost
    return [
        f'<line class="s{of}" x1="{x(at):.1f}" y1="{y(up):.1f}" x2="{x(control.effect[0]):.1f}" y2="{y(control.cost[0]):.1f}" '
        'stroke-dasharray="2 3"/>',
        f'<line class="s{of} thin" x1="{x(left):.1f}" x2="{x(right):.1f}" y1="{y(up):.1f}" y2="{y(up):.1f}"/>',
        f'<line class="s{of} thin" x1="{x(at):.1f}" x2="{x(at):.1f}" y1="{y(low):.1f}" y2="{y(high):.1f}"/>',
        f'<circle class="s{of} open" cx="{x(control.effect[0]):.1f}" cy="{y(control.cost[0]):.1f}" r="4"/>',
        f'<circle class="f{of}" cx="{x(at):.1f}" cy="{y(up):.1f}" r="8"/>{_number(i, x(at), y(up))}',
    ]


def _number(i: int, across: float, up: float) -> str:
    return f'<text class="on" x="{across:.1f}" y="{up + 4:.1f}" text-anchor="middle" font-size="11">{i + 1}</text>'


def _style() -> str:
    def scheme(paper: str, ink: str, muted: str, line: str, colours: Sequence[str]) -> str:
        rules = [
            f".paper,.open{{fill:{paper}}}.ink{{fill:{ink}}}.muted{{fill:{muted}}}.line{{stroke:{line}}}.on{{fill:{paper}}}"
        ]
        rules += [f".s{i}{{stroke:{colour}}}.f{i}{{fill:{colour}}}" for i, colour in enumerate(colours)]
        return "".join(rules)

    light = scheme("#ffffff", "#1f2a37", "#5f6b7a", "#e2e7ed", LIGHT)
    dark = scheme("#0d1117", "#e6edf3", "#9aa7b4", "#2d333b", DARK)
    return f"{light}.thin{{opacity:.5}}.goal{{opacity:.1}}@media (prefers-color-scheme:dark){{{dark}.goal{{opacity:.2}}}}"
