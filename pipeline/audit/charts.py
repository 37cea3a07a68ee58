"""The report's charts: small inline SVGs, drawn here so that the report needs no script and no network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

INK, MUTED, LINE = "#1f2a37", "#5f6b7a", "#e2e7ed"
RELEASED, STEERED, HELD, STOPPED = "#2b7a78", "#7fb7b2", "#d9a441", "#b5533c"
NEUTRAL = "#8fa1b5"


@dataclass(frozen=True)
class Bar:
    """One bar of the funnel: its label, its parts (value, colour), and a note at its end."""

    label: str
    parts: tuple[tuple[int, str], ...]
    note: str = ""

    @property
    def total(self) -> int:
        return sum(value for value, _ in self.parts)


def funnel(bars: Sequence[Bar], whole: int) -> str:
    """Horizontal bars on one scale; ``whole`` is its full width."""
    row, left, width, total_width = 34, 140, 500, 960
    out = []
    for i, bar in enumerate(bars):
        y, x = i * row, float(left)
        at = f'x="{left - 16}" y="{y + 19}" text-anchor="end"'
        out.append(f'<text {at} font-weight="600" fill="{INK}">{escape(bar.label)}</text>')
        out.append(f'<rect x="{left}" y="{y + 4}" width="{width}" height="22" rx="3" fill="#f1f4f7"/>')
        for value, colour in bar.parts:
            share = width * value / whole if whole else 0
            if share:
                out.append(f'<rect x="{x:.1f}" y="{y + 4}" width="{share:.1f}" height="22" rx="3" fill="{colour}"/>')
            x += share
        out.append(
            f'<text x="{left + width + 14}" y="{y + 20}" font-weight="600" fill="{INK}">{bar.total}'
            f'<tspan dx="8" font-weight="400" fill="{MUTED}">{escape(bar.note)}</tspan></text>'
        )
    return _svg(total_width, len(bars) * row + 2, out, "Funnel from requested to accepted pictures")


@dataclass(frozen=True)
class Panel:
    """One histogram: its title, and its layers (counts per bin, colour) from the axis upwards."""

    title: str
    layers: tuple[tuple[Sequence[int], str], ...]


def similarity(panels: Sequence[Panel], threshold: float, *, lowest: float, width_of_bin: float) -> str:
    """Histograms of similarity under each other on one axis, with the threshold drawn through all of them.

    Args:
        panels: what to draw; every layer has the same number of bins.
        threshold: where a picture starts to count as near.
        lowest: where the first bin starts. width_of_bin: how wide each is.
    """
    stacks = [[list(counts) for counts, _ in panel.layers] for panel in panels]
    filled = [b for stack in stacks for column in stack for b, count in enumerate(column) if count]
    first = lowest + width_of_bin * min(filled, default=0)
    low = 0.0 if not filled or first >= 0 else -1.0 if first < -0.5 else -0.5
    skip = round((low - lowest) / width_of_bin)
    stacks = [[column[skip:] for column in stack] for stack in stacks]
    bins = len(stacks[0][0])
    left, width, height, gap, top = 48, 880, 110, 52, 40
    most = max([sum(column) for stack in stacks for column in zip(*stack, strict=True)] + [1])
    out: list[str] = []
    for p, (panel, stack) in enumerate(zip(panels, stacks, strict=True)):
        base = top + p * (height + gap) + height
        out.append(f'<text x="{left}" y="{base - height - 12}" font-weight="600" fill="{INK}">{escape(panel.title)}</text>')
        for fraction in (0.5, 1.0):
            y = base - height * fraction
            out.append(f'<line x1="{left}" x2="{left + width}" y1="{y}" y2="{y}" stroke="{LINE}"/>')
            out.append(f'<text x="{left - 8}" y="{y + 4}" text-anchor="end" fill="{MUTED}">{most * fraction:g}</text>')
        for b in range(bins):
            y = float(base)
            for (_, colour), counts in zip(panel.layers, stack, strict=True):
                tall = height * counts[b] / most
                if tall:
                    y -= tall
                    x = left + width * b / bins
                    box = f'x="{x + 0.75:.1f}" y="{y:.1f}" width="{width / bins - 1.5:.1f}" height="{tall:.1f}"'
                    out.append(f'<rect {box} fill="{colour}"/>')
        out.append(f'<line x1="{left}" x2="{left + width}" y1="{base}" y2="{base}" stroke="{MUTED}"/>')
        for tick in range(round(low * 10), 11, 2):
            x = left + width * (tick / 10 - low) / (1 - low)
            out.append(f'<text x="{x:.1f}" y="{base + 17}" text-anchor="middle" fill="{MUTED}">{tick / 10:.1f}</text>')
    bottom = top + len(panels) * (height + gap) - gap
    x = left + width * (threshold - low) / (1 - low)
    for p in range(len(panels)):  # panel by panel, so that it does not run through the labels of the axis
        start = top + p * (height + gap)
        at = f'x1="{x:.1f}" x2="{x:.1f}" y1="{start - 22 + 16 * bool(p)}" y2="{start + height}"'
        out.append(f'<line {at} stroke="{STOPPED}" stroke-width="1.5" stroke-dasharray="5 4"/>')
    side, anchor = (-7, "end") if x > left + width / 2 else (7, "start")
    out.append(
        f'<text x="{x + side:.1f}" y="{top - 14}" text-anchor="{anchor}" fill="{STOPPED}" font-weight="600">'
        f"copy threshold {threshold:.3f}</text>"
    )
    return _svg(960, bottom + 28, out, "Similarity to the nearest reference, before and after")


def interval(low: float, high: float, value: float, colour: str = RELEASED) -> str:
    """A rate between 0 and 1 with its interval, as a thin line for a table cell."""
    wide = 120
    spread = f'x1="{low * wide:.1f}" x2="{high * wide:.1f}" y1="8" y2="8"'
    out = [
        f'<line x1="0" x2="{wide}" y1="8" y2="8" stroke="{LINE}" stroke-width="2"/>',
        f'<line {spread} stroke="{colour}" stroke-width="4" stroke-opacity=".35"/>',
        f'<circle cx="{value * wide:.1f}" cy="8" r="4" fill="{colour}"/>',
    ]
    size = f'viewBox="-5 0 {wide + 10} 16" width="{wide + 10}" height="16"'
    return f'<svg class="interval" {size} aria-hidden="true">{"".join(out)}</svg>'


def _svg(width: int, height: int, parts: Sequence[str], title: str) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}" '
        f'font-size="13">{"".join(parts)}</svg>'
    )
