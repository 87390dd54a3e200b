#!/usr/bin/env python3
"""Start Debian's Firefox for Playwright, and answer one command that this Firefox does not know.

Playwright drives an unpatched Firefox with WebDriver BiDi, but sets the media features of every
window with `emulation.setMediaFeaturesOverride`, which Firefox 153 ESR lacks. Playwright starts
this program in place of Firefox. It starts Firefox with the same arguments, passes everything on,
and answers that command itself; the fixture sets the features as preferences of Firefox instead.
Remove this when Firefox ESR knows the command.
"""

import asyncio
import json
import re
import sys
from functools import partial

from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve

_LISTENING = re.compile(rb"WebDriver BiDi listening on (ws://\S+)")
_UNKNOWN = "emulation.setMediaFeaturesOverride"


async def _relay(firefox_url: str, playwright: ServerConnection) -> None:
    async with connect(f"{firefox_url}/session", max_size=None, proxy=None) as firefox:

        async def answers() -> None:
            async for frame in firefox:
                await playwright.send(frame)

        passing = asyncio.create_task(answers())
        async for frame in playwright:
            command = json.loads(frame)
            if command["method"] == _UNKNOWN:
                answer = {"type": "success", "id": command["id"], "result": {}}
                await playwright.send(json.dumps(answer))
            else:
                await firefox.send(frame)
        passing.cancel()


async def _main() -> int:
    pipe = asyncio.subprocess.PIPE
    firefox = await asyncio.create_subprocess_exec(
        "/usr/bin/firefox-esr", *sys.argv[1:], stderr=pipe
    )
    assert firefox.stderr is not None
    async for line in firefox.stderr:
        if found := _LISTENING.search(line):
            url = found[1].decode()
            server = await serve(partial(_relay, url), "127.0.0.1", 0, max_size=None)
            port = server.sockets[0].getsockname()[1]
            line = f"WebDriver BiDi listening on ws://127.0.0.1:{port}\n".encode()
        sys.stderr.buffer.write(line)
        sys.stderr.buffer.flush()
    return await firefox.wait()


if __name__ == "__main__":
    sys.exit(asyncio.run(_main()))
