"""A minute of made-up input, and none of it finds anything. `scripts/fuzz` goes on for longer."""

import random

import pytest

from tests.fuzz.fuzzer import Fuzzer
from tests.fuzz.running import FUZZERS, fuzz, share_out

pytestmark = pytest.mark.fuzz

SECONDS = 60.0


@pytest.mark.parametrize("kind", FUZZERS, ids=lambda kind: kind.name)
async def test_made_up_input_finds_nothing(kind: type[Fuzzer], mongo_uri: str) -> None:
    # Other input in each run: what it found is replayed by the line that it prints.
    seed = random.randrange(1 << 32)
    result = await fuzz(kind, seed, share_out(FUZZERS, SECONDS)[kind], mongo_uri)
    assert not result.findings, str(result)
    assert result.cases
