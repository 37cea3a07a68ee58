"""Line charts for documents: several curves over steps, and every curve's interval at one step; SVG without a library.

The bands of eight curves would hide the curves. Therefore only the marked curve has a band. Every curve's interval stands
beside the chart in its own row, which is also the legend. Colours follow the reader's light or dark scheme.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

LIGHT = ("#0b6e4f", "#1668a8", "#7b3fa0", "#c75000", "#6b7280", "#c51b7d", "#1f2a37", "#8f6400", "#00798c", "#8c4a2f")
DARK = ("#4fd1a5", "#6cb6ff", "#c297ff", "#ff9d5c", "#9aa7b4", "#ff7ac6", "#e6edf3", "#e3b341", "#56d4dd", "#d9a48f")
DASHES = ("", "7 3", "2 3", "9 3 2 3")  # eight lines cannot be distinguished by colour alone
WIDE, HIGH = 930, 268  # of one panel
LEFT, TOP, ACROSS, UP = 46, 46, 420, 176  # the curves' frame
NAMES, LEAST, MOST = 494, 752, 912  # where the rows' names begin, and the ends of their scale


@dataclass(frozen=True)
class Curve:
    """One line: its name, and (value, low, high) at every step."""

    name: str
    values: Sequence[tuple[float, float, float]]


@dataclass(frozen=True)
class Panel:
    """One chart.

    Attributes:
        title: above it.
        curves: all over the same steps.
        marked: the name of the curve that is drawn bold, with its band.
    """

    title: str
    curves: Sequence[Curve]
    marked: str


def charts(panels: Sequence[Panel], x: Sequence[float], *, at: int, goal: float, below: str, beside: str) -> str:
    """An SVG of panels under each other.

    Args:
        panels: every value between 0 and 1.
        x: the steps.
        at: position in ``x`` whose intervals stand beside the curves.
        goal: marked by a dashed line.
        below: under the x axis.
        beside: above the intervals.

    Raises:
        ValueError: a panel with more curves than there are colours.
    """
    if max(len(panel.curves) for panel in panels) > len(LIGHT):
        raise ValueError(f"there are colours for {len(LIGHT)} curves")
    parts = [line for i, panel in enumerate(panels) for line in _panel(panel, x, at, goal, below, beside, i * HIGH)]
    tall = HIGH * len(panels) + 8
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDE} {tall}" font-family="system-ui, sans-serif" '
            'font-size="12">',
            f"<style>{_style()}</style>",
            f'<rect class="paper" width="{WIDE}" height="{tall}"/>',
            *parts,
            "</svg>",
            "",
        ]
    )


def _style() -> str:
    def scheme(paper: str, ink: str, muted: str, line: str, colours: Sequence[str]) -> str:
        rules = [f".paper{{fill:{paper}}}.ink{{fill:{ink}}}.muted{{fill:{muted}}}.line{{stroke:{line}}}.goal{{stroke:{muted}}}"]
        rules += [f".s{i}{{stroke:{colour}}}.f{i}{{fill:{colour}}}" for i, colour in enumerate(colours)]
        return "".join(rules)

    light = scheme("#ffffff", "#1f2a37", "#5f6b7a", "#e2e7ed", LIGHT)
    dark = scheme("#0d1117", "#e6edf3", "#9aa7b4", "#2d333b", DARK)
    return f"{light}.band{{opacity:.14}}@media (prefers-color-scheme:dark){{{dark}.band{{opacity:.25}}}}"


def _panel(panel: Panel, x: Sequence[float], at: int, goal: float, below: str, beside: str, y0: int) -> list[str]:
    bottom = min(0.5, math.floor(10 * min(value for curve in panel.curves for value, _, _ in curve.values)) / 10)
    floor = y0 + TOP + UP

    def place(step: float, value: float) -> tuple[float, float]:
        return (
            LEFT + ACROSS * (step - x[0]) / max(1e-9, x[-1] - x[0]),
            floor - UP * (min(max(value, bottom), 1.0) - bottom) / (1 - bottom),
        )

    def text(across: float, up: float, words: str, kind: str = "muted", more: str = "") -> str:
        return f'<text class="{kind}" x="{across:.1f}" y="{up:.1f}"{more}>{escape(words)}</text>'

    def line(x1: float, y1: float, x2: float, y2: float, kind: str, more: str = "") -> str:
        return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"{more}/>'

    right = ' text-anchor="end"'
    middle = ' text-anchor="middle" font-size="11"'
    out = [text(LEFT, y0 + 24, panel.title, "ink", ' font-size="14" font-weight="600"')]
    for tick in range(round(10 * (1 - bottom)) // 2 + 1):
        value = 1 - tick / 5
        _, up = place(x[0], value)
        out += [line(LEFT, up, LEFT + ACROSS, up, "line"), text(LEFT - 8, up + 4, f"{value:.1f}", more=right)]
    out += [text(place(step, 0)[0], floor + 16, f"{step:g}", more=middle) for step in x]
    out.append(text(LEFT, floor + 34, below, more=' font-size="11"'))
    _, up = place(x[0], goal)
    out += [line(LEFT, up, LEFT + ACROSS, up, "goal", ' stroke-dasharray="3 3"')]
    across, _ = place(x[at], 0)
    out.append(line(across, y0 + TOP, across, floor, "line", ' stroke-width="2"'))
    drawn = sorted(enumerate(panel.curves), key=lambda pair: pair[1].name == panel.marked)  # the marked one on top
    for i, curve in drawn:
        if curve.name == panel.marked:
            edge = [place(s, high) for s, (_, _, high) in zip(x, curve.values, strict=True)]
            edge += [place(s, low) for s, (_, low, _) in reversed(list(zip(x, curve.values, strict=True)))]
            out.append(f'<polygon class="f{i} band" points="{_points(edge)}"/>')
        points = _points([place(s, value) for s, (value, _, _) in zip(x, curve.values, strict=True)])
        out.append(f'<polyline class="s{i}" points="{points}" fill="none" {_pen(i, curve, panel)} stroke-linejoin="round"/>')

    def along(value: float) -> float:
        return LEAST + (MOST - LEAST) * min(max(value, 0.0), 1.0)

    out.append(text(NAMES, y0 + 24, beside, "ink", ' font-size="12" font-weight="600"'))
    for value in (0.0, 0.5, 1.0):
        out.append(line(along(value), y0 + TOP, along(value), floor, "line"))
        out.append(text(along(value), floor + 16, f"{value:.1f}", more=middle))
    out.append(line(along(goal), y0 + TOP, along(goal), floor, "goal", ' stroke-dasharray="3 3"'))
    ranked = sorted(enumerate(panel.curves), key=lambda pair: -pair[1].values[at][0])
    for row, (i, curve) in enumerate(ranked):
        value, low, high = curve.values[at]
        up = y0 + TOP + UP * (row + 0.5) / len(ranked)
        bold = ' font-weight="600"' if curve.name == panel.marked else ""
        out.append(line(NAMES, up, NAMES + 26, up, f"s{i}", f" {_pen(i, curve, panel)}"))
        out.append(text(NAMES + 34, up + 4, curve.name, "ink", bold))
        out.append(line(along(low), up, along(high), up, f"s{i}", ' stroke-width="2.5"'))
        out.append(f'<circle class="f{i}" cx="{along(value):.1f}" cy="{up:.1f}" r="4"/>')
    return out


def _pen(i: int, curve: Curve, panel: Panel) -> str:
    if curve.name == panel.marked:
        return 'stroke-width="3.2"'
    dash = DASHES[i % len(DASHES)]
    return 'stroke-width="1.7"' + (f' stroke-dasharray="{dash}"' if dash else "")


def _points(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{across:.1f},{up:.1f}" for across, up in places)
