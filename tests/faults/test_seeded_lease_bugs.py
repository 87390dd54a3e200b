"""The checker finds every seeded bug of leases and streams."""

import pytest

from tests.faults.lease_bugs import LEASE_BUGS
from tests.faults.seeded_bugs import Bug, detect


@pytest.mark.parametrize("bug", LEASE_BUGS, ids=lambda bug: bug.name)
def test_a_seeded_bug_is_found(bug: Bug) -> None:
    assert detect(bug) is not None
