"""The checker finds every seeded bug of dead letters."""

import pytest

from tests.faults.death_bugs import DEATH_BUGS
from tests.faults.seeded_bugs import Bug, detect


@pytest.mark.parametrize("bug", DEATH_BUGS, ids=lambda bug: bug.name)
def test_a_seeded_bug_is_found(bug: Bug) -> None:
    assert detect(bug) is not None
