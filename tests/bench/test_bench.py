"""scripts/bench in short: it measures everything that it lists, without an error."""

import subprocess
import sys
from pathlib import Path

import pytest

from chat_service.capacity.coefficients import Coefficients
from tests.bench.__main__ import SHORT, measure
from tests.bench.contenders import processor_s, processor_s_of_all
from tests.bench.goals import goals
from tests.bench.measurements import GO_MONGODB, GO_POSTGRES, GO_REDIS, NAIVE, Bench
from tests.bench.report import tables

#: Numbers of goals against what only some machines can run, and of all others.
GOALS_IN_GO, OTHER_GOALS = {GO_POSTGRES: 6, GO_REDIS: 2, GO_MONGODB: 3}, 15


@pytest.mark.bench
async def test_every_goal_is_measured_and_no_request_fails() -> None:
    seen: list[str] = []
    names = ["others", "mongodb", "lone", "idle", "large", "access", "rate", "stored", "memory"]
    names += ["waits", "scheduled"]
    results = await measure(names, SHORT, lambda what, done, of: seen.append(what))
    # Services that call the database for each request may well fail under this load.
    failed = {
        row.name for row in results.rows if any(it.errors or not it.rate for it in row.rounds)
    }
    assert failed <= {NAIVE, GO_MONGODB}
    found = goals(results)
    missing = {name for name in GOALS_IN_GO if any(name in why for why in results.missing)}
    numbers = {name: sum(name in goal.what for goal in found) for name in GOALS_IN_GO}
    assert numbers == {name: (name not in missing) * n for name, n in GOALS_IN_GO.items()}
    assert len(found) - sum(numbers.values()) == OTHER_GOALS
    assert all(goal.what in tables(results, SHORT) for goal in found)
    assert len(seen) > len(results.rows)


@pytest.mark.bench
async def test_what_a_machine_cannot_run_is_left_out_and_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    bench = Bench("", 0, SHORT, lambda what, done, of: None)
    async with bench.in_go(GO_POSTGRES) as others:
        assert others == []
    assert bench.results.missing == [f"{GO_POSTGRES} was not measured: go is not installed."]
    assert bench.results.missing[0] in tables(bench.results, SHORT)


_CHILD = "import time\nwhile time.process_time() < 0.3: pass"
_PARENT = (
    f"import subprocess, sys; subprocess.run([sys.executable, '-c', {_CHILD!r}]); print(flush=True)"
)


@pytest.mark.bench
def test_time_of_processes_that_have_ended_is_counted() -> None:
    command = [sys.executable, "-c", f"{_PARENT}; input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"\n"
        used = processor_s_of_all(parent.pid)
        assert used - processor_s(parent.pid) > 0.25
        parent.communicate(b"\n")


@pytest.mark.bench
async def test_every_coefficient_is_measured_and_the_model_compared() -> None:
    results = await measure(["model", "costs"], SHORT, lambda what, done, of: None)
    assert set(results.costs) <= set(Coefficients._fields)
    assert results.costs["purge_message"] > 0
    assert len({it.load for it in results.compared}) == 4
    oplogs = [it for it in results.compared if it.figure.startswith("oplog")]
    # The model assumes the batches of a machine that does nothing else.
    assert all(it.model == pytest.approx(it.measured, rel=0.5) for it in oplogs), oplogs
