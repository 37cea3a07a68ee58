"""Forest plots: one line per arm, a point with its interval for each of several measures; SVG without a library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

INK, MUTED, LINE, DOT = "#1f2a37", "#5f6b7a", "#e2e7ed", "#2b7a78"
LEFT, WIDE, GAP, ROW, TOP = 250, 170, 30, 22, 46


@dataclass(frozen=True)
class Panel:
    """One measure: its title and (value, low, high) per arm, None where there is nothing to show."""

    title: str
    rows: Sequence[tuple[float, float, float] | None]


def forest(names: Sequence[str], panels: Sequence[Panel], low: float = 0.0, high: float = 1.0) -> str:
    """An SVG of ``len(names)`` lines; every panel has the scale from ``low`` to ``high``."""
    wide, tall = LEFT + len(panels) * (WIDE + GAP), TOP + len(names) * ROW + 26
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {tall}" font-family="system-ui, sans-serif" '
        'font-size="13">',
        f'<rect width="{wide}" height="{tall}" fill="white"/>',
    ]
    for i, name in enumerate(names):
        y = TOP + i * ROW + ROW / 2
        if i % 2 == 0:
            out.append(f'<rect x="0" y="{y - ROW / 2}" width="{wide}" height="{ROW}" fill="#f7f9fa"/>')
        out.append(f'<text x="{LEFT - 14}" y="{y + 4}" text-anchor="end" fill="{INK}">{escape(name)}</text>')
    for p, panel in enumerate(panels):
        left = LEFT + p * (WIDE + GAP)

        def at(value: float, left: float = left) -> float:
            return left + WIDE * (min(max(value, low), high) - low) / (high - low)

        out.append(f'<text x="{left}" y="{TOP - 22}" font-weight="600" fill="{INK}">{escape(panel.title)}</text>')
        for part in (0.0, 0.5, 1.0):
            x = left + WIDE * part
            out.append(f'<line x1="{x}" x2="{x}" y1="{TOP - 6}" y2="{tall - 20}" stroke="{LINE}"/>')
            label = f"{low + part * (high - low):g}"
            out.append(f'<text x="{x}" y="{tall - 6}" text-anchor="middle" font-size="11" fill="{MUTED}">{label}</text>')
        for i, row in enumerate(panel.rows):
            if row is None:
                continue
            value, least, most = row
            y = TOP + i * ROW + ROW / 2
            out.append(f'<line x1="{at(least):.1f}" x2="{at(most):.1f}" y1="{y}" y2="{y}" stroke="{MUTED}" stroke-width="2"/>')
            out.append(f'<circle cx="{at(value):.1f}" cy="{y}" r="4.5" fill="{DOT}"/>')
    return "\n".join([*out, "</svg>"]) + "\n"
