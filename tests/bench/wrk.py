"""The load generator wrk, if it is installed: it costs a tenth of a generator in Python.

wrk only supports a closed loop; `tests.bench.generator` does that too, and everything else.
"""

import asyncio
import shutil
from pathlib import Path

import msgspec

from chat_service.loadgen.generator import Load
from tests.bench.generator import Measured
from tests.support.ending import child

_SCRIPT = Path(__file__).with_name("requests.lua")


def is_installed() -> bool:
    """Return whether wrk is on the PATH."""
    return shutil.which("wrk") is not None


async def press(load: Load, seconds: float, token: str = "") -> Measured:
    """Run the load for `seconds` in a separate process. Send a token with every request."""
    async with child(
        *("wrk", "--threads", "1", "--connections", str(load.connections)),
        *("--duration", f"{max(round(seconds), 1)}s", "--timeout", "10s"),
        *("--script", str(_SCRIPT), f"http://127.0.0.1:{load.port}", "--"),
        *(str(load.posts), str(load.users), load.prefix, str(load.text_bytes)),
        *(str(load.seed), str(int(load.in_turn)), token),
        stdout=asyncio.subprocess.PIPE,
    ) as process:
        output, _ = await process.communicate()
    assert process.returncode == 0, "wrk failed"
    return msgspec.json.decode(output.splitlines()[-1], type=Measured)
