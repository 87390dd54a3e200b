"""The runbook's searches of the log find what their entries say."""

import subprocess
from collections.abc import Iterator

import pytest
from tornado.ioloop import IOLoop

from tests.support.blocks import blocks
from tests.support.client import ChatClient
from tests.support.runbook import DOCUMENT
from tests.support.server import Server

_JOURNAL = "journalctl --unit chat-inbox --since -1h --output cat"
_SAMPLE_INBOX = "4df272a9855f"


@pytest.fixture
def client(io_loop: IOLoop, server: Server) -> Iterator[ChatClient]:
    """A client of the service that runs as a separate process, with a log of its own."""
    connected = ChatClient(server.base)
    yield connected
    connected.close()


def search(server: Server, part: str, inbox: str = "") -> str:
    """Return what the one block with this part prints for the log of a server."""
    (text,) = (
        block.text for block in blocks(DOCUMENT) if part in block.text and _JOURNAL in block.text
    )
    command = text.replace(_JOURNAL, f"cat '{server.log}'").replace(_SAMPLE_INBOX, inbox)
    ran = subprocess.run(["bash", "-c", command], capture_output=True, check=True, encoding="utf-8")
    return ran.stdout


async def test_another_reader_is_found_no_matter_how_it_reads(
    server: Server, client: ChatClient
) -> None:
    await client.request("POST", "/chat/bob", b"hello", User_Agent="sender/1")
    for agent, method, path in (
        ("plain/1", "GET", "/chat/bob"),
        ("polls/1", "GET", "/chat/bob?wait=0"),
        ("leases/1", "POST", "/chat/bob/lease"),
        ("reads/1", "POST", "/chat/bob/read"),
        ("streams/1", "GET", "/chat/bob/stream?refused=1"),
    ):
        await client.request(method, path, User_Agent=agent)
    acknowledgement = b'{"lease":"00000000000000000000000000000000"}'
    await client.request("POST", "/chat/bob/ack", acknowledgement, User_Agent="acks/1")
    await client.request("HEAD", "/chat/bob", User_Agent="counts/1")
    lines = [line for line in server.errors().splitlines() if '"agent": "sender/1"' in line]
    inbox = lines[-1].partition('"inbox": "')[2].partition('"')[0]
    found = search(server, "lease|read|ack|stream", inbox)
    for agent in ("plain/1", "polls/1", "leases/1", "reads/1", "streams/1", "acks/1"):
        assert f'"agent": "{agent}"' in found
    for agent in ("sender/1", "counts/1"):
        assert agent not in found
    assert '"route": "/chat/:username/lease", "status": 200' in found


async def test_the_sender_of_most_posts_is_found(server: Server, client: ChatClient) -> None:
    for _ in range(3):
        await client.request("POST", "/chat/bob", b"again", User_Agent="busy/1")
    await client.request("POST", "/chat/bob", b"hello", User_Agent="rare/1")
    await client.request("POST", "/chat/bob/lease", User_Agent="leases/1")
    found = search(server, '"method": "POST"')
    # The programs of the machine, which `ps` prints, follow.
    assert [line.split() for line in found.splitlines()[:2]] == [
        ["3", '"agent":', '"busy/1"'],
        ["1", '"agent":', '"rare/1"'],
    ]
    assert "leases/1" not in found
