"""The checker finds every seeded bug that lets one client harm others, and nothing without one."""

import pytest

from tests.faults.client_bugs import CLIENT_BUGS
from tests.faults.seeded_bugs import Bug, detect
from tests.faults.sharing import CROWDED, FILLED, CrowdedWorld, FilledWorld
from tests.faults.simulation import run, schedule_of


@pytest.mark.parametrize("bug", CLIENT_BUGS, ids=lambda bug: bug.name)
def test_a_seeded_bug_is_found(bug: Bug) -> None:
    assert detect(bug, 300) is not None


def test_no_client_starves_beside_a_flood() -> None:
    for seed in range(60):
        assert run(schedule_of(seed, CROWDED), CrowdedWorld).violations == []


def test_no_inbox_exceeds_its_quota_without_bound() -> None:
    for seed in range(60):
        assert run(schedule_of(seed, FILLED), FilledWorld).violations == []
