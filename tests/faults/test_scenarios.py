"""Each fault in short: the promises hold. `scripts/chaos` has more of each."""

import asyncio
from pathlib import Path

import pytest

from tests.faults.chaos import run
from tests.faults.scenarios import SCENARIOS, Scenario

pytestmark = pytest.mark.chaos


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_every_promise_is_kept_while(scenario: Scenario, tmp_path: Path) -> None:
    if missing := scenario.missing():
        pytest.skip(f"it needs {missing}")
    row = asyncio.run(run(scenario, tmp_path, short=True))
    assert row.violations == []
    assert row.counts["posts ok"] > 50
    assert row.counts["reads ok"] > 50
