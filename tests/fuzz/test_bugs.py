"""Checks of the fuzzers: each finds every bug that is seeded for it."""

import pytest

from tests.fuzz.running import FUZZERS, fuzz
from tests.fuzz.seeded_bugs import BUGS, Bug

pytestmark = pytest.mark.fuzz

#: A bug is found within seconds; this only ends the search for one that is not.
SECONDS = 200.0


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
async def test_a_seeded_bug_is_found(bug: Bug, mongo_uri: str) -> None:
    (kind,) = [kind for kind in FUZZERS if kind.name == bug.fuzzer]
    with bug.seeded():
        result = await fuzz(kind, 1, SECONDS, mongo_uri, findings_max=1, shortens=False)
    assert result.findings, str(result)
