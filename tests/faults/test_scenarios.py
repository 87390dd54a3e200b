"""Each fault in short: the service keeps its guarantees. `scripts/chaos` runs more of each."""

import asyncio
from pathlib import Path

import pytest

from tests.faults.chaos import run
from tests.faults.scenarios import SCENARIOS, Scenario

pytestmark = pytest.mark.chaos

#: The partitions take longest and come first, so that no worker has them left at the end.
SHORT = sorted((each for each in SCENARIOS if each.short), key=lambda it: it.database != "network")


class GuaranteeBrokenError(AssertionError):
    """A broken guarantee, which no busy machine explains: tox runs this test no second time."""


@pytest.mark.parametrize("scenario", SHORT, ids=lambda scenario: scenario.name)
def test_every_guarantee_holds_during(scenario: Scenario, tmp_path: Path) -> None:
    if missing := scenario.missing():
        pytest.skip(f"the scenario needs {missing}")
    row = asyncio.run(run(scenario, tmp_path, short=True))
    violations = "\n".join(f"{it.kind}: {it.what}"[:1500] for it in row.violations)
    if any(it.kind != "required" for it in row.violations):
        raise GuaranteeBrokenError(violations)
    assert not row.violations, violations
    assert row.counts["posts ok"] > 50
    assert row.counts["reads ok"] > 50
