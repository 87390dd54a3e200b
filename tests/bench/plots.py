"""Plots of a run, as SVG files."""

from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("svg")

from matplotlib import pyplot

from tests.bench.measurements import MIXED
from tests.bench.results import Results, Round, Row

#: Make equal figures give equal files.
pyplot.rcParams.update({"svg.hashsalt": "bench", "font.size": 9, "axes.axisbelow": True})
_COLORS = ("#1f6feb", "#79b8ff", "#8b949e", "#d29922", "#a371f7")


def draw(results: Results, folder: Path) -> dict[str, Path]:
    """Draw every plot for which the results have figures. Return the files by title."""
    folder.mkdir(parents=True, exist_ok=True)
    mixed = [row for row in results.rows if row.what == MIXED]
    others = [row for row in results.rows if row.what != MIXED and row.rounds[0].rate > 1100]
    pictures = {}
    for title, name, rows, unit, figure in (
        ("Requests per second, half posts, half reads", "rate", mixed, "requests/s", _rate),
        ("Latency at the 99th percentile, half posts, half reads", "p99", mixed, "ms", _p99),
        ("Processor time of the service per request", "server", mixed, "µs", _server),
        ("Processor time of the database per request", "database", mixed, "µs", _database),
        ("Requests per second, other loads", "others", others, "requests/s", _rate),
    ):
        if rows:
            pictures[title] = _bars(title, rows, unit, figure, folder / f"{name}.svg")
    return pictures


def _rate(it: Round) -> float:
    return it.rate


def _p99(it: Round) -> float:
    return it.p99_ms


def _server(it: Round) -> float:
    return it.server_us


def _database(it: Round) -> float:
    return it.database_us


def _bars(
    title: str, rows: list[Row], unit: str, figure: Callable[[Round], float], path: Path
) -> Path:
    """Draw a bar for each row, as long as its median, and a dot for each round."""
    names = list(dict.fromkeys(row.name for row in rows))
    picture, axes = pyplot.subplots(figsize=(7.5, 0.6 + 0.28 * len(rows)))
    for place, row in enumerate(rows):
        color = _COLORS[names.index(row.name) % len(_COLORS)]
        axes.barh(place, row.median(figure), color=color, height=0.7)
        values = [figure(it) for it in row.rounds]
        axes.plot(values, [place] * len(values), ".", color="black", markersize=3)
        axes.annotate(f" {row.median(figure):,.0f}", (max(values), place), va="center", fontsize=8)
    what = "" if len({row.what for row in rows}) == 1 else "{0.what}: "
    axes.set_yticks(
        range(len(rows)),
        [(what + "{0.name}, {0.connections} connections").format(row) for row in rows],
    )
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel(unit)
    axes.set_title(title, loc="left")
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    picture.savefig(path, bbox_inches="tight", metadata={"Date": None})
    pyplot.close(picture)
    return path
