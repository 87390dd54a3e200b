"""scripts/bench in short: it measures everything that it lists, without an error."""

import pytest

from chat_service.capacity.coefficients import Coefficients
from tests.bench.__main__ import SHORT, measure
from tests.bench.goals import goals
from tests.bench.measurements import GO_MONGODB, NAIVE
from tests.bench.report import tables


@pytest.mark.bench
async def test_every_goal_is_measured_and_no_request_fails() -> None:
    seen: list[str] = []
    names = ["others", "mongodb", "access", "rate", "stored", "memory", "waits", "scheduled"]
    results = await measure(names, SHORT, lambda what, done, of: seen.append(what))
    assert all(it.rate > 0 for row in results.rows for it in row.rounds)
    # Services that call the database for each request may well fail under this load.
    failed = {row.name for row in results.rows if any(it.errors for it in row.rounds)}
    assert failed <= {NAIVE, GO_MONGODB}
    found = goals(results)
    assert len(found) == 16
    assert all(goal.what in tables(results, SHORT) for goal in found)
    assert len(seen) > len(results.rows)


@pytest.mark.bench
async def test_every_coefficient_is_measured_and_the_model_compared() -> None:
    results = await measure(["model", "costs"], SHORT, lambda what, done, of: None)
    assert set(results.costs) <= set(Coefficients._fields)
    assert results.costs["purge_message"] > 0
    assert len({it.load for it in results.compared}) == 4
    oplogs = [it for it in results.compared if it.figure.startswith("oplog")]
    assert all(it.model == pytest.approx(it.measured, rel=0.25) for it in oplogs)
