"""The checker finds every seeded bug of keys, receipts, counters and long polls."""

import pytest

from tests.faults.key_bugs import KEY_BUGS
from tests.faults.seeded_bugs import Bug, detect


@pytest.mark.parametrize("bug", KEY_BUGS, ids=lambda bug: bug.name)
def test_a_seeded_bug_is_found(bug: Bug) -> None:
    assert detect(bug) is not None
