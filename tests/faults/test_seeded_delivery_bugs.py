"""The checker finds every seeded bug of delivery: posts, searches, claims, and their rollback."""

import pytest

from tests.faults.delivery_bugs import DELIVERY_BUGS
from tests.faults.seeded_bugs import Bug, detect


@pytest.mark.parametrize("bug", DELIVERY_BUGS, ids=lambda bug: bug.name)
def test_a_seeded_bug_is_found(bug: Bug) -> None:
    assert detect(bug) is not None
