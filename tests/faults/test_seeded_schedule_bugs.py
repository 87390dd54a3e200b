"""The checker finds every seeded bug of scheduled messages."""

import pytest

from tests.faults.schedule_bugs import SCHEDULE_BUGS
from tests.faults.seeded_bugs import Bug, detect


@pytest.mark.parametrize("bug", SCHEDULE_BUGS, ids=lambda bug: bug.name)
def test_a_seeded_bug_is_found(bug: Bug) -> None:
    assert detect(bug) is not None
