"""A minute of generated input, without a finding. `scripts/fuzz` runs for longer."""

import random

import pytest

from tests.fuzz.fuzzer import Fuzzer
from tests.fuzz.running import FUZZERS, fuzz, share_out

pytestmark = pytest.mark.fuzz

SECONDS = 60.0


@pytest.mark.parametrize("kind", FUZZERS, ids=lambda kind: kind.name)
async def test_generated_input_finds_nothing(kind: type[Fuzzer], mongo_uri: str) -> None:
    # Use different input in each run. A finding prints the line that replays it.
    seed = random.randrange(1 << 32)
    result = await fuzz(kind, seed, share_out(FUZZERS, SECONDS)[kind], mongo_uri)
    assert not result.findings, str(result)
    assert result.cases
