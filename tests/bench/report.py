"""The results as tables, and the figures and plots in docs/performance.md."""

import os
import platform
import statistics
from pathlib import Path

from chat_service.capacity.coefficients import MEASURED
from tests.bench import budget, wrk
from tests.bench.goals import Goal, goals
from tests.bench.measurements import MIXED, Scale
from tests.bench.results import Lone, Results

#: Runs with fewer seconds over all rounds are too short to judge goals by.
_JUDGED_FROM_S = 10
_HEADS = ("load", "service", "conn.", "requests/s", "p50", "p99", "CPU", "database CPU", "errors")


def tables(results: Results, scale: Scale) -> str:
    """Return the goals and all figures as Markdown tables."""
    lines = ["| goal | limit | measured | |", "|---|---|---|---|"]
    lines += [
        f"| {goal.what} | {goal.wanted} | {goal.measured} | {_verdict(goal, scale)} |"
        for goal in goals(results)
    ]
    if results.rows:
        lines += ["", f"| {' | '.join(_HEADS)} |", "|---|---|" + "---:|" * (len(_HEADS) - 2)]
    for row in results.rows:
        rate, p50, p99 = (
            row.median(lambda it: it.rate),
            row.median(lambda it: it.p50_ms),
            row.median(lambda it: it.p99_ms),
        )
        server, database = (
            row.median(lambda it: it.server_us),
            row.median(lambda it: it.database_us),
        )
        errors = sum(it.errors for it in row.rounds)
        lines.append(
            f"| {row.what} | {row.name} | {row.connections} | {rate:,.0f} | {p50:.1f} ms "
            f"| {p99:.1f} ms | {server:.0f} µs | {database:.0f} µs | {errors} |"
        )
    if results.lone:
        lines += [
            "",
            "| a lone client, p50 | post | read of one | empty read |",
            "|---|---:|---:|---:|",
        ]
        lines += [_lone(it) for it in results.lone]
    if results.idle:
        lines += ["", "| idle | its MongoDB | seconds |", "|---:|---:|---:|"]
        lines += [
            f"| {it.server:.2%} of a core | {it.database:.2%} | {it.seconds:g} |"
            for it in results.idle
        ]
    if results.memory:
        lines += [
            "",
            "| connections | kind | memory per connection |",
            "|---:|---|---:|",
        ]
        lines += [
            f"| {memory.connections:,} | {memory.name} | {memory.bytes_each / 1024:.1f} KiB |"
            for memory in results.memory
        ]
    if results.waking:
        lines += [
            "",
            "| wake-up by a message | messages | p50 | p99 | slowest |",
            "|---|---:|---:|---:|---:|",
        ]
        lines += [
            f"| {it.name} | {it.messages:,} | {it.p50_ms:.1f} ms | {it.p99_ms:.1f} ms "
            f"| {it.max_ms:.1f} ms |"
            for it in results.waking
        ]
    if results.scheduled:
        lines += [
            "",
            "| scheduled messages, after their due time | p50 | p99 | latest |",
            "|---|---:|---:|---:|",
        ]
        lines += [
            f"| {it.name} | {it.p50_ms:.0f} ms | {it.p99_ms:.0f} ms | {it.max_ms:.0f} ms |"
            for it in results.scheduled
        ]
    if results.costs:
        lines += ["", "| coefficient | measured | used |", "|---|---:|---:|"]
        lines += [
            f"| `{name}` | {cost:,.1f} | {getattr(MEASURED, name):,.1f} |"
            for name, cost in results.costs.items()
        ]
    if results.compared:
        lines += ["", "| load | figure | measured | model | |", "|---|---|---:|---:|---:|"]
        lines += [
            f"| {it.load} | {it.figure} | {it.measured:,.3g} | {it.model:,.3g} "
            f"| {it.model / it.measured - 1:+.0%} |"
            for it in results.compared
        ]
    if results.missing:
        lines += ["", *results.missing]
    return "\n".join(lines)


def _lone(lone: Lone) -> str:
    """Return a row of the table of lone clients."""
    kinds = (
        [it.post_ms for it in lone.rounds],
        [it.read_ms for it in lone.rounds],
        [it.empty_ms for it in lone.rounds],
    )
    cells = (f"{statistics.median(its):.2f} ms" for its in kinds)
    return f"| {lone.name} | {' | '.join(cells)} |"


def _verdict(goal: Goal, scale: Scale) -> str:
    if scale.rounds * scale.seconds < _JUDGED_FROM_S:
        return "run too short"
    return "met" if goal.is_met else "MISSED"


def machine(scale: Scale) -> str:
    """Describe the machine and the duration in a sentence."""
    presser = "wrk" if wrk.is_installed() else "the generator in tests/bench"
    return (
        f"On {os.cpu_count()} cores shared by services, databases and the load generator. "
        f"Python {platform.python_version()}; load from {presser}; medians of {scale.rounds} "
        f"alternating rounds of {scale.seconds:g} s. CPU is processor time per request."
    )


def rates(results: Results) -> str:
    """Return the summary for people who only look at the README, as a Markdown table."""
    lines = ["| connections | | requests/s | p99 | processor time, with the database's |"]
    lines += ["| ---: | --- | ---: | ---: | ---: |"]
    for row in results.rows:
        if row.what == MIXED:
            rate, p99 = row.median(lambda it: it.rate), row.median(lambda it: it.p99_ms)
            cost = row.median(lambda it: it.server_us + it.database_us)
            lines.append(
                f"| {row.connections} | {row.name} | {rate:,.0f} | {p99:.1f} ms | {cost:.0f} µs |"
            )
    return "\n".join(lines)


def write_document(document: Path, results: Results, scale: Scale) -> None:
    """Replace what was measured between the document's markers: rates, figures and steps."""
    from tests.bench.plots import draw

    text = document.read_text(encoding="utf-8")
    sections = {}
    if any(row.what == MIXED for row in results.rows):
        sections["rates"] = f"{rates(results)}\n"
    if results.rows and _has(text, "figures"):
        pictures = draw(results, document.parent / document.stem)
        images = "\n".join(
            f"![{title}]({path.relative_to(document.parent)})\n" for title, path in pictures.items()
        )
        sections["figures"] = f"{machine(scale)}\n\n{tables(results, scale)}\n\n{images}"
    if results.budgets:
        sections["steps"] = f"{budget.tables(results.budgets)}\n"
    found = [name for name in sections if _has(text, name)]
    assert found, f"{document} has no section for what was measured"
    for name in found:
        begin, end = _markers(name)
        before, _, rest = text.partition(begin)
        text = before + begin + sections[name] + end + rest.partition(end)[2]
    document.write_text(text, encoding="utf-8")


def _markers(name: str) -> tuple[str, str]:
    return f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"


def _has(text: str, name: str) -> bool:
    return all(marker in text for marker in _markers(name))
