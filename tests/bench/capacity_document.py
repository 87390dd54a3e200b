"""Writes the table and the chart in docs/capacity.md. Run by `scripts/capacity-table`.

A test compares them with the document.
"""

import math
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from chat_service.capacity.coefficients import NODE_FULL
from chat_service.capacity.model import Demand, Plan, limits, plan
from chat_service.capacity.report import size
from config.settings import PROJECT_ROOT

DOCUMENT = PROJECT_ROOT / "docs/capacity.md"
CHART = PROJECT_ROOT / "docs/capacity/load.svg"
RATES = (100, 1_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000)
_SECTION = re.compile(r"(<!-- table: begin -->\n).*?(<!-- table: end -->)", re.DOTALL)
_HEADS = (
    *("requests/s", "nodes", "their cores", "commands per request", "primary's cores"),
    *("oplog", "oplog of a day", "on disk", "indexes", "TTL thread", "databases"),
)

_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT, _BOTTOM = 760, 400, 60, 20, 150, 45
_TEXT_HEIGHT = 15
#: The powers of ten at the ends of the axes.
_X, _Y = (2, 6), (-3, 3)
_COLORS = ("#1f6feb", "#d29922", "#a371f7")


def demand(requests: float) -> Demand:
    """Return the load of the table: half posts, 300 bytes, one hour, 9 of 10 are read."""
    return Demand(requests, lifetime_s=3600, size=300)


def table() -> str:
    """Return the table as Markdown."""
    lines = [f"| {' | '.join(_HEADS)} |", "|" + "---:|" * len(_HEADS)]
    for requests in RATES:
        it, first = plan(demand(requests)), limits(demand(requests))[0]
        cells = (
            f"{requests:,}",
            f"{it.nodes:,}",
            f"{it.nodes * it.node_cores:.1f}",
            f"{it.commands_per_request:.2f}",
            f"{it.primary_cores:.1f}",
            f"{size(it.oplog)}/s",
            size(it.oplog_window),
            size(it.documents + it.indexes),
            size(it.indexes),
            f"{it.purge_thread:.0%}",
            f"{math.ceil(requests / first.full_at):,}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def summary() -> str:
    """Return a sentence about one node."""
    low, high = 1.0, 100_000.0
    while high - low > 1:
        middle = (low + high) / 2
        is_full = plan(replace(demand(middle), nodes=1)).node_cores > NODE_FULL
        low, high = (low, middle) if is_full else (middle, high)
    return (
        f"A node that has a core to itself carries {low // 100 * 100:,.0f} of these requests per "
        "second.\n"
    )


def chart() -> str:
    """Return the chart as SVG: the cores for each load, and where one database ends."""
    series: tuple[tuple[str, Callable[[Plan], float]], ...] = (
        ("cores of all nodes", lambda it: it.nodes * it.node_cores),
        ("cores of the primary", lambda it: it.primary_cores),
        ("TTL threads", lambda it: it.purge_thread),
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
    ]
    for power in range(_X[0], _X[1] + 1):
        x = _x(10**power)
        parts.append(_line((x, _TOP), (x, _HEIGHT - _BOTTOM), "#ddd"))
        parts.append(_text(x, _HEIGHT - _BOTTOM + 18, f"{10**power:,}", "middle"))
    for power in range(_Y[0], _Y[1] + 1):
        y = _y(10**power)
        parts.append(_line((_LEFT, y), (_WIDTH - _RIGHT, y), "#ddd"))
        parts.append(_text(_LEFT - 8, y + 4, f"{10.0**power:,g}", "end"))
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(_text(middle, _HEIGHT - 8, "requests per second", "middle"))
    rates = [10 ** (step / 10) for step in range(_X[0] * 10, _X[1] * 10 + 1)]
    plans = [plan(demand(rate)) for rate in rates]
    label_y = 0.0
    for (name, figure), color in zip(series, _COLORS, strict=True):
        points = [(_x(rate), _y(figure(it))) for rate, it in zip(rates, plans, strict=True)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        # The series are in the order of their ends, from the top.
        label_y = max(points[-1][1] + 4, label_y + _TEXT_HEIGHT)
        parts.append(_text(points[-1][0] + 6, label_y, name, "start", color))
    for place, limit in enumerate(limits(demand(RATES[0]))):
        x = _x(limit.full_at)
        parts.append(_line((x, _TOP), (x, _HEIGHT - _BOTTOM), "#c00", dashed=True))
        parts.append(
            _text(x - 4, _TOP + 14 + _TEXT_HEIGHT * place, f"{limit.name} full", "end", "#c00")
        )
    return "\n".join([*parts, "</svg>\n"])


def with_table(text: str) -> str:
    """Return the text of the document with the table of the model."""
    replaced, count = _SECTION.subn(
        lambda match: f"{match[1]}{table()}\n{summary()}{match[2]}", text
    )
    assert count == 1, f"{DOCUMENT} has no section for the table"
    return replaced


def _x(rate: float) -> float:
    share = (math.log10(rate) - _X[0]) / (_X[1] - _X[0])
    return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)


def _y(value: float) -> float:
    share = (math.log10(value) - _Y[0]) / (_Y[1] - _Y[0])
    return _HEIGHT - _BOTTOM - max(share, 0) * (_HEIGHT - _TOP - _BOTTOM)


def _line(
    start: tuple[float, float], end: tuple[float, float], color: str, *, dashed: bool = False
) -> str:
    dashes = ' stroke-dasharray="5 4"' if dashed else ""
    return (
        f'<line x1="{start[0]:.1f}" y1="{start[1]:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}" '
        f'stroke="{color}"{dashes}/>'
    )


def _text(x: float, y: float, text: str, anchor: str, color: str = "#333") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}">{text}</text>'


def main() -> int:
    """Write the table and the chart."""
    DOCUMENT.write_text(with_table(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
    Path(CHART).parent.mkdir(exist_ok=True)
    CHART.write_text(chart(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
