"""A minute of generated input, without a finding. `scripts/fuzz` runs for longer."""

import pytest

from tests.fuzz.fuzzer import Fuzzer
from tests.fuzz.running import FUZZERS, fuzz, share_out

pytestmark = pytest.mark.fuzz

SECONDS = 60.0


@pytest.mark.parametrize("kind", FUZZERS, ids=lambda kind: kind.name)
async def test_generated_input_finds_nothing(kind: type[Fuzzer], mongo_uri: str) -> None:
    # The same input in each run, so that a failure comes from a change; `scripts/fuzz` uses other
    # input each time.
    result = await fuzz(kind, 1, share_out(FUZZERS, SECONDS)[kind], mongo_uri)
    assert not result.findings, str(result)
    assert result.cases
