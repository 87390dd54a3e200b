"""Inject every fault into a running service, and judge what its clients saw.

usage: python -m tests.faults.chaos [--short] [--only NAME ...] [--report FILE]

`scripts/chaos` runs this; `tests.faults.test_scenarios` runs the short form. It exits with 1 if a
guarantee was violated. It shows goals that were missed, but they violate no guarantee.
"""

import argparse
import asyncio
import gc
import json
import math
import statistics
import sys
import tempfile
import time
import traceback
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.faults.chaos_clients import EVERYTHING, TIMELESS, Answer, ChaosClients
from tests.faults.checker import Violation, check
from tests.faults.outages import small_disk
from tests.faults.scenarios import SCENARIOS, Scenario
from tests.faults.testbed import Goal, Testbed
from tests.support.ending import ended_by_signals

#: Kinds of violation with a column of their own; the last column counts the others.
_KINDS = ("lost", "duplicated", "phantom", "late", "disordered", "missed")
#: How often a message is leased before it becomes a dead letter, unless a scenario's settings say.
_MAX_DELIVERIES = 2
#: How long after a fault a scheduled message can be read at the latest, beside the time for
#: rollbacks, in seconds: another node leads by then.
_DUE_S = 15.0


@dataclass
class Row:
    """The results of one scenario."""

    name: str
    title: str
    times: int
    counts: dict[str, int]
    violations: list[Violation]
    availability: float
    p50_s: float
    p99_s: float
    memory_mib: float
    seconds: float
    recovery_times: list[float] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)

    @property
    def is_kept(self) -> bool:
        """Whether every guarantee was kept."""
        return not self.violations


async def run(scenario: Scenario, folder: Path, *, short: bool) -> Row:
    """Start a service, inject the faults, restart everything, read every inbox, and judge."""
    times = scenario.short if short else scenario.times
    settings = {"max_deliveries": str(_MAX_DELIVERIES), **scenario.settings}
    began = time.monotonic()
    with ExitStack() as stack:
        disk = stack.enter_context(small_disk(folder / "disk")) if scenario.needs_disk else folder
        async with Testbed(
            folder,
            scenario.database,
            processes=scenario.processes,
            settings=settings,
            wrappers=scenario.wrappers,
            data_dir=disk / "data",
            is_log_read=scenario.is_log_read,
            steps_mongod=scenario.steps_mongod,
        ) as testbed:
            clients = ChaosClients(
                testbed.address,
                clients=scenario.clients,
                pause_s=scenario.pause_s,
                lifetimes_s=scenario.lifetimes_s,
                shares=TIMELESS if scenario.steps_mongod else EVERYTHING,
                max_deliveries=int(settings["max_deliveries"]),
            )
            testbed.clients = clients
            async with clients:
                await clients.first_success(began)
                # Do not measure the first connections.
                await asyncio.sleep(0.5)
                try:
                    await scenario.act(testbed, times)
                except (TimeoutError, AssertionError) as error:
                    # Judge the history up to here, too.
                    testbed.require(False, f"the scenario ended early: {error!r}")
                await asyncio.sleep(0.5)
            await testbed.settle(scenario.settle_s)
            answered, ended = len(clients.answers), time.monotonic()
            await clients.drain()
            recovery_times, goals = testbed.recovery_times, testbed.goals
    if scenario.recovery_goal_s is not None and recovery_times:
        goals.append(
            Goal(
                "first success, p99", _percentile(recovery_times, 99), scenario.recovery_goal_s, "s"
            )
        )
    return _judge(scenario, testbed, times, clients.answers[:answered], began, ended)


def _judge(
    scenario: Scenario,
    testbed: Testbed,
    times: int,
    answers: list[Answer],
    began: float,
    ended: float,
) -> Row:
    clients = testbed.clients
    verdict = check(
        clients.history,
        late_s=scenario.late_s,
        longest_s=scenario.longest_s,
        release_s=scenario.release_s,
        due_s=scenario.release_s + _DUE_S if scenario.due_s is None else scenario.due_s,
    )
    violations = [*verdict.violations, *testbed.broken]
    right = {0, 200, 201, 409, 410, 503, *([507] if scenario.needs_disk else [])}
    wrong = Counter(a.status for a in answers if a.status not in right)
    if wrong:
        violations.append(Violation("answered", f"with {dict(wrong)}"))
    if testbed.must_answer_all:
        failed = Counter(
            f"{a.status} {a.outcome}"
            for a in answers
            # A lease that has ended is an answer.
            if a.outcome != "ok" and a.status != 410
        )
        if clients.not_connected:
            failed["not connected"] = len(clients.not_connected)
        if failed:
            violations.append(Violation("unanswered", str(dict(failed))))
    served = [answer.ended - answer.began for answer in answers if answer.outcome == "ok"]
    return Row(
        name=scenario.name,
        title=scenario.title,
        times=times,
        counts=dict(verdict.counts),
        violations=violations,
        availability=_availability(answers, clients.not_connected),
        p50_s=_percentile(served, 50),
        p99_s=_percentile(served, 99),
        memory_mib=testbed.memory_mib,
        seconds=ended - began,
        recovery_times=testbed.recovery_times,
        goals=testbed.goals,
    )


def _availability(answers: list[Answer], not_connected: list[float]) -> float:
    """Return the share of requests that were answered as asked: the mean over all seconds."""
    good: Counter[int] = Counter()
    tried: Counter[int] = Counter(int(moment) for moment in not_connected)
    for answer in answers:
        tried[int(answer.ended)] += 1
        good[int(answer.ended)] += answer.outcome == "ok"
    seconds = range(min(tried), max(tried) + 1)
    return statistics.fmean(good[second] / max(tried[second], 1) for second in seconds)


def _percentile(values: list[float], percent: int) -> float:
    """Return the nearest rank, so the 99th percentile of few values is the worst one."""
    ranked = sorted(values)
    return ranked[math.ceil(len(ranked) * percent / 100) - 1] if ranked else math.nan


def table(rows: list[Row]) -> str:
    """Return the rows as a Markdown table."""
    heads = ("fault", "times", "accepted", "read", "recovered", "undelivered", *_KINDS, "other")
    figures = ("served", "first success p50 / p99 / worst", "p50 / p99", "memory")
    lines = [
        "| " + " | ".join((*heads, *figures)) + " |",
        "|---" + "|---:" * (len(heads) + len(figures) - 1) + "|",
    ]
    for row in rows:
        kinds = Counter(violation.kind for violation in row.violations)
        recovery_times = [
            f"{_percentile(row.recovery_times, percent):.2f}" for percent in (50, 99, 100)
        ]
        cells = (
            *(row.title, f"{row.times}"),
            *(str(row.counts.get(key, 0)) for key in ("posts ok", *heads[3:6])),
            *(str(kinds.pop(kind, 0)) for kind in _KINDS),
            *(str(kinds.total()), f"{row.availability:.2%}"),
            " / ".join(recovery_times) + " s" if row.recovery_times else "",
            f"{row.p50_s * 1000:.0f} / {row.p99_s * 1000:.0f} ms",
            f"{row.memory_mib:.0f} MiB",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def summary(rows: list[Row]) -> str:
    """Return the totals over all rows, the goals, and the first violations."""
    total: Counter[str] = Counter()
    for row in rows:
        total.update(row.counts)
    broken = Counter(violation.kind for row in rows for violation in row.violations)
    accepted = max(total["posts ok"], 1)
    lines = [
        f"{total['posts ok']} messages accepted, {total['read']} read, {total['expired']} expired, "
        f"{total['dead']} became dead letters, "
        f"{total['dropped']} dropped by an operator, "
        f"{total['recovered']} read although their post was not answered, {total['undelivered']} "
        f"taken by a read whose answer did not arrive; {sum(row.seconds for row in rows):.0f} s.",
        f"Violations: {dict(broken) or 'none'}. None in {accepted} messages means, with 95% "
        f"confidence, a rate below {3 / accepted:.1e}.",
        "",
        *(f"- {row.title}: {goal}" for row in rows for goal in row.goals),
    ]
    for row in rows:
        lines += [
            f"- VIOLATION {row.title}: {it.kind}: {it.what}"[:500] for it in row.violations[:5]
        ]
    return "\n".join(lines)


def main() -> int:
    """Run the selected scenarios. Print a row after each one, and the table at the end."""
    parser = argparse.ArgumentParser(
        "scripts/chaos",
        description="Inject faults into a running service and check its guarantees.",
        epilog="Exits with 1 if a guarantee was violated. Some scenarios need root or faketime; "
        "they are skipped without it.",
    )
    parser.add_argument(
        "--short",
        action="store_true",
        help="inject each fault a few times; takes minutes, not an hour",
    )
    parser.add_argument(
        "--only",
        action="append",
        metavar="NAME",
        choices=(names := [it.name for it in SCENARIOS]),
        help=f"run only this scenario; may be repeated. One of: {', '.join(names)}",
    )
    parser.add_argument(
        "--report",
        type=Path,
        help="write the table to this file, and all results as JSON beside it",
    )
    arguments = parser.parse_args()
    rows: list[Row] = []
    # A history of millions of requests has no reference cycles; do not search it for them.
    gc.disable()
    for scenario in SCENARIOS:
        times = scenario.short if arguments.short else scenario.times
        if scenario.name not in arguments.only if arguments.only else not times:
            continue
        if missing := scenario.missing():
            print(f"{scenario.name}: skipped; it needs {missing}", flush=True)
            continue
        with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
            rows.append(_run_whole(scenario, Path(folder), short=arguments.short))
        gc.collect()
        row = rows[-1]
        verdict = "all guarantees kept" if row.is_kept else "VIOLATION"
        print(f"{row.name}: {verdict} in {row.seconds:.0f} s", flush=True)
        print(f"  {row.counts} {row.availability:.2%}", flush=True)
        for line in (*row.goals, *row.violations[:5]):
            print(f"  {line}"[:400], flush=True)
        if arguments.report:
            _write(arguments.report, rows)
    print(table(rows), summary(rows), sep="\n\n")
    return 0 if all(row.is_kept for row in rows) else 1


def _run_whole(scenario: Scenario, folder: Path, *, short: bool) -> Row:
    """Run a scenario. If it raises, return a failed row, so the others still run."""
    began = time.monotonic()
    try:
        return asyncio.run(run(scenario, folder, short=short))
    except Exception as error:
        traceback.print_exc()
        seconds = time.monotonic() - began
        broken = [Violation("not run", f"the scenario raised {error!r}")]
        return Row(
            *(scenario.name, scenario.title, 0, {}, broken),
            *(math.nan, math.nan, math.nan, math.nan, seconds),
        )


def _write(path: Path, rows: list[Row]) -> None:
    """Write the report so far. The previous one stays complete until the new one replaces it."""
    facts = json.dumps([asdict(row) for row in rows], indent=1)
    texts = {
        path: f"{table(rows)}\n\n{summary(rows)}\n",
        path.with_suffix(".json"): facts,
    }
    for file, text in texts.items():
        new = file.with_name(f"{file.name}.new")
        new.write_text(text, encoding="utf-8")
        new.replace(file)


if __name__ == "__main__":
    sys.exit(ended_by_signals(main))
