"""The results as tables, and the figures and plots in docs/performance.md."""

import os
import platform
import re
from pathlib import Path

from chat_service.capacity.coefficients import MEASURED
from tests.bench import budget, wrk
from tests.bench.goals import Goal, goals
from tests.bench.measurements import Scale
from tests.bench.results import Results

#: Runs with fewer seconds over all rounds are too short to judge goals by.
_JUDGED_FROM_S = 10
_HEADS = ("load", "service", "conn.", "requests/s", "p50", "p99", "CPU", "MongoDB CPU", "errors")
_SECTION = r"(<!-- {0}: begin -->\n).*?(<!-- {0}: end -->)"


def tables(results: Results, scale: Scale) -> str:
    """Return the goals and all figures as Markdown tables."""
    lines = ["| goal | limit | measured | |", "|---|---|---|---|"]
    lines += [
        f"| {goal.what} | {goal.wanted} | {goal.measured} | {_verdict(goal, scale)} |"
        for goal in goals(results)
    ]
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


def _verdict(goal: Goal, scale: Scale) -> str:
    if scale.rounds * scale.seconds < _JUDGED_FROM_S:
        return "run too short"
    return "met" if goal.is_met else "MISSED"


def machine(scale: Scale) -> str:
    """Describe the machine and the duration in a sentence."""
    presser = "wrk" if wrk.is_installed() else "the generator in tests/bench"
    return (
        f"On {os.cpu_count()} cores shared by the service, MongoDB and the load generator. Python "
        f"{platform.python_version()}; load from {presser}; medians of {scale.rounds} "
        f"alternating rounds of {scale.seconds:g} s. CPU is processor time per request."
    )


def write_document(document: Path, results: Results, scale: Scale) -> None:
    """Replace what was measured between the document's markers: tables and plots, and steps."""
    from tests.bench.plots import draw

    if results.rows:
        pictures = draw(results, document.parent / document.stem)
        images = "\n".join(
            f"![{title}]({path.relative_to(document.parent)})\n" for title, path in pictures.items()
        )
        _replace(document, "figures", f"{machine(scale)}\n\n{tables(results, scale)}\n\n{images}")
    if results.budgets:
        _replace(document, "steps", f"{budget.tables(results.budgets)}\n")


def _replace(document: Path, name: str, section: str) -> None:
    text = document.read_text(encoding="utf-8")
    pattern = re.compile(_SECTION.format(name), re.DOTALL)
    replaced, count = pattern.subn(lambda match: f"{match[1]}{section}{match[2]}", text)
    assert count == 1, f"{document} has no section of {name}"
    document.write_text(replaced, encoding="utf-8")
