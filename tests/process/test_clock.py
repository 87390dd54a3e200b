"""The machine's clock steps while the service runs: messages keep their lifetimes."""

import json
import sys
from pathlib import Path

import pytest

from tests.support.client import ChatClient
from tests.support.server import Server
from tests.support.waiting import eventually


def stepping_clock(step: Path) -> tuple[str, ...]:
    """Return the command prefix for a server whose clock is ahead by the seconds in a file."""
    return (
        *(sys.executable, "-P", "-c"),
        "import runpy, sys, time\n"
        "right = time.time\n"
        "def wrong():\n"
        "    try:\n"
        f"        with open({str(step)!r}) as step: return right() + float(step.read() or 0)\n"
        "    except FileNotFoundError: return right()\n"
        "time.time = wrong\n"
        # The rest of the command line is: python -P -m chat_service ...
        "del sys.argv[1:5]\n"
        "runpy.run_module('chat_service', run_name='__main__', alter_sys=True)",
    )


@pytest.mark.parametrize("seconds", [60, -60, 3600, -86400])
async def test_a_clock_that_steps_loses_no_message_and_no_read(
    mongo_uri: str, database: str, tmp_path: Path, seconds: int
) -> None:
    step = tmp_path / "step"
    server = Server(tmp_path, "--mongo-uri", mongo_uri, CHAT_MONGO_DATABASE=database)
    server.wrapper = stepping_clock(step)
    with server:
        chat = ChatClient(server.base)
        for name in ("bob", "eve"):
            await chat.post(name, "before", 30)
        step.write_text(str(seconds), encoding="ascii")
        # Read at once, before the service can have measured the step.
        at_once = await chat.request("GET", "/chat/bob")
        assert (at_once.code, [each["text"] for each in json.loads(at_once.body)]) == (
            200,
            ["before"],
        )
        await chat.post("bob", "after", 30)
        assert await chat.texts("bob") == ["after"]

        async def is_measured() -> bool:
            offset = await chat.metric("chat_clock_offset_seconds")
            return abs(offset + seconds) < 5

        await eventually(is_measured)
        assert await chat.texts("eve") == ["before"]
        chat.close()
