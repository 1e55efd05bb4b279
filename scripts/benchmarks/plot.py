"""A picture of offered load: goodput and latency over what was offered, as SVG.

Rules this file keeps: one self-contained file of shapes and text, readable in black and white; the
axes are logarithmic where the figures are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from benchmarks.measure import Row

_WIDTH, _HEIGHT, _LEFT, _TOP = 640, 220, 70, 30
_GAP = 300


def plot(rows: Sequence[Row]) -> str:
    """Draw the rows `offered_F`: above goodput as a share of capacity, below p50 and p99 in ms."""
    points = [(float(row.name.removeprefix("offered_")), row) for row in rows
              if row.name.startswith("offered_")]
    shares = [(factor, min(1.2, row.ratio or 0.0)) for factor, row in points]
    slow = [(factor, math.log10(max(100.0, row.p99_us))) for factor, row in points]
    usual = [(factor, math.log10(max(100.0, row.p50_us))) for factor, row in points]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH + 120}" '
        f'height="{_GAP + _HEIGHT + 90}" font-family="sans-serif" font-size="12">',
        *_axes(0, "goodput, share of capacity", [(0.0, "0"), (0.5, "0.5"), (1.0, "1")], 0.0, 1.2),
        _line(0, shares, 0.0, 1.2, ""),
        *_axes(_GAP, "latency of answered calls: p50 solid, p99 dashed",
               [(3.0, "1 ms"), (4.0, "10 ms"), (5.0, "100 ms"), (6.0, "1 s")], 2.5, 6.2),
        _line(_GAP, usual, 2.5, 6.2, ""),
        _line(_GAP, slow, 2.5, 6.2, ' stroke-dasharray="6 4"'),
        "</svg>\n",
    ]
    return "\n".join(parts)


def _x(factor: float) -> float:
    return _LEFT + (math.log10(factor) + 1) / 2 * _WIDTH


def _y(top: int, value: float, low: float, high: float) -> float:
    return top + _TOP + _HEIGHT * (1 - (value - low) / (high - low))


def _axes(
    top: int, title: str, ticks: Sequence[tuple[float, str]], low: float, high: float
) -> list[str]:
    parts = [f'<text x="{_LEFT}" y="{top + 18}" font-weight="bold">{title}</text>']
    for value, label in ticks:
        y = _y(top, value, low, high)
        parts += [
            f'<line x1="{_LEFT}" x2="{_LEFT + _WIDTH}" y1="{y:.0f}" y2="{y:.0f}" stroke="#ccc"/>',
            f'<text x="{_LEFT - 8}" y="{y + 4:.0f}" text-anchor="end">{label}</text>',
        ]
    bottom = top + _TOP + _HEIGHT
    parts += [
        f'<text x="{_x(factor):.0f}" y="{bottom + 18}" text-anchor="middle">{factor:g}x</text>'
        for factor in (0.1, 0.5, 1.0, 2.0, 5.0, 10.0)
    ]
    parts.append(f'<text x="{_LEFT + _WIDTH}" y="{bottom + 36}" text-anchor="end">offered, times '
                 "capacity</text>")
    return parts


def _line(
    top: int, points: Sequence[tuple[float, float]], low: float, high: float, style: str
) -> str:
    path = " ".join(f"{_x(factor):.1f},{_y(top, value, low, high):.1f}" for factor, value in points)
    return f'<polyline fill="none" stroke="black" stroke-width="2"{style} points="{path}"/>'
