"""A token that expires or is revoked ends what it is used for, and nothing is lost."""

import asyncio
import json
import os
import socket
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import pytest
from structlog.testing import capture_logs
from websockets.asyncio.client import ClientConnection, connect

from chat_service.service import Service
from tests.conftest import StartService
from tests.support.access import PATHS, RIGHTS, asked, bearer, everybody, read, send, write
from tests.support.events import EventStream
from tests.support.proxy import MongoProxy
from tests.support.raw import Wire, assert_problem, get, request, texts_of
from tests.support.waiting import eventually

REVOKED: Final = '[[revoked]]\nsub = "bob"\nbefore = 2026-01-01T00:00:00Z\n'
#: Files after which bob may no longer read his inbox, and the status from then on.
ENDINGS: Final[Mapping[str, tuple[str, int]]] = {
    "removed": (everybody(bob="-"), 401),
    "revoked": (everybody() + REVOKED, 401),
    "expired": (everybody(bob=f"{RIGHTS['bob']}\nuntil = 2026-01-01T00:00:00Z"), 401),
    "without the right": (everybody(bob='send = ["*"]\nread = ["other"]'), 403),
}


#: Requests that wait for a message in an empty inbox, by what they are.
WAITS: Final[Mapping[str, bytes]] = {
    "a long poll": read("bob", bearer("bob"), query="?wait=50"),
    "a long poll on Tornado's": read("bob", bearer("bob"), PATHS["tornado"], query="?wait=50"),
    "a read by post": request(b"POST", b"/chat/bob/read?wait=50", bearer("bob"), body=b""),
    "a lease": request(b"POST", b"/chat/bob/lease?wait=50", bearer("bob"), body=b""),
}


async def metric(service: Service, name: str) -> float:
    """Return the value of a metric."""
    wire = Wire(service.port)
    text = (await wire.ask(get(b"/metrics", bearer("root")))).body.decode()
    await wire.close()
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(name + " "))


async def waiters(service: Service, number: int) -> None:
    """Wait until so many requests wait."""

    async def there_are() -> bool:
        return await metric(service, "chat_waiters") == number

    await eventually(there_are)


@asynccontextmanager
async def websocket(service: Service) -> AsyncIterator[ClientConnection]:
    """A WebSocket of bob's inbox."""
    url = f"ws://127.0.0.1:{service.port}/chat/bob/stream"
    async with connect(url, additional_headers=asked("bob")) as socket:
        yield socket


async def unread(service: Service) -> list[str]:
    """Return the texts that a reader of all inboxes gets from bob's, after waiting for one."""
    wire = Wire(service.port)
    texts = texts_of(await wire.ask(read("bob", bearer("root"), query="?wait=20")))
    await wire.close()
    return texts


#: Claims for a key are never rolled back, so that a repeat gets them.
KEYED: Final = read("bob", bearer("bob"), b"Idempotency-Key: " + b"k" * 22, query="?wait=50")


@pytest.mark.parametrize("sent", [*WAITS.values(), KEYED], ids=[*WAITS, "a read with a key"])
@pytest.mark.parametrize("ending", ENDINGS)
async def test_a_wait_ends_with_its_token(
    ending: str, sent: bytes, guarded: Service, access_file: Path
) -> None:
    text, status = ENDINGS[ending]
    wire = Wire(guarded.port)
    connection = await wire.connect()
    await connection.send(sent)
    await waiters(guarded, 1)
    write(access_file, text)
    answer = await connection.answer()
    assert answer is not None
    assert_problem(answer, status, "unauthorized" if status == 401 else "forbidden")
    await waiters(guarded, 0)
    # The connection serves the next request, which is refused as well.
    assert (await connection.ask(sent)).status == status
    await wire.close()


async def test_a_wait_ends_when_its_token_expires(guarded: Service, access_file: Path) -> None:
    until = datetime.fromtimestamp(time.time() + 2, UTC).isoformat()
    write(access_file, everybody(bob=f"{RIGHTS['bob']}\nuntil = {until}"))
    wire = Wire(guarded.port)
    connections = [await wire.connect() for _ in WAITS]
    for connection, sent in zip(connections, WAITS.values(), strict=True):
        await connection.send(sent)
    for connection in connections:
        answer = await connection.answer()
        assert answer is not None
        assert_problem(answer, 401, "unauthorized")
    assert (await wire.ask(read("bob", bearer("bob")))).status == 401
    await wire.close()


@pytest.mark.parametrize("sent", WAITS.values(), ids=WAITS)
async def test_messages_of_an_ended_wait_become_unread(
    sent: bytes, start_service: StartService, access_file: Path, mongo_uri: str, tmp_path: Path
) -> None:
    async with MongoProxy(mongo_uri, tmp_path) as proxy:
        service = await start_service(
            mongo_uri=proxy.uri, shards=1, access="tokens", access_file=str(access_file)
        )
        wire = Wire(service.port)
        reading = await wire.connect()
        await reading.send(sent)
        await waiters(service, 1)
        # The claim is under way when the token ends.
        proxy.hold["update"] = b"token"
        await wire.ask(send("bob", bearer("alice")))
        await proxy.held.wait()
        write(access_file, ENDINGS["removed"][0])
        answer = await reading.answer()
        assert answer is not None
        assert_problem(answer, 401, "unauthorized")
        proxy.release()
        assert await unread(service) == ["hi"]
        await wire.close()
        await service.stop()


async def test_other_holders_go_on_waiting(guarded: Service, access_file: Path) -> None:
    wire = Wire(guarded.port)
    bobs, alices = await wire.connect(), await wire.connect()
    await bobs.send(read("bob", bearer("bob"), query="?wait=50"))
    await alices.send(read("alice", bearer("alice"), query="?wait=50"))
    await waiters(guarded, 2)
    write(access_file, ENDINGS["removed"][0])
    assert await bobs.answer() is not None
    await waiters(guarded, 1)
    await wire.ask(send("alice", bearer("root")))
    answer = await alices.answer()
    assert answer is not None
    assert texts_of(answer) == ["hi"]
    await wire.close()


@pytest.mark.parametrize("ending", ENDINGS)
async def test_an_event_stream_ends_with_its_token(
    ending: str, guarded: Service, access_file: Path
) -> None:
    wire = Wire(guarded.port)
    await wire.ask(send("bob", bearer("alice")))
    async with EventStream(guarded.port, headers=[bearer("bob")]) as stream:
        assert await stream.texts(1) == ["hi"]
        await waiters(guarded, 1)
        write(access_file, ENDINGS[ending][0])
        with pytest.raises(asyncio.IncompleteReadError):
            await stream.next()
    assert await unread(guarded) == ["hi"]
    async with EventStream(guarded.port, headers=[bearer("bob")]) as again:
        assert again.status == ENDINGS[ending][1]
    await wire.close()


@pytest.mark.parametrize("ending", ENDINGS)
async def test_a_websocket_is_closed_with_1008(
    ending: str, guarded: Service, access_file: Path
) -> None:
    wire = Wire(guarded.port)
    await wire.ask(send("bob", bearer("alice")))
    await wire.ask(send("bob", bearer("alice")))
    async with websocket(guarded) as socket:
        first = json.loads(await socket.recv())
        await socket.recv()
        await socket.send(json.dumps({"type": "ack", "id": first["id"]}))
        await waiters(guarded, 1)
        write(access_file, ENDINGS[ending][0])
        await socket.wait_closed()
        assert socket.close_code == 1008
    assert await unread(guarded) == ["hi"]
    await wire.close()


#: Requests of many messages, by what they are, and the metric that counts what was taken for them.
LONG: Final = {
    "a stream": (get(b"/chat/bob/stream", bearer("bob")), "chat_messages_leased_total"),
    "a read": (read("bob", bearer("bob")), "chat_messages_read_total"),
    "a read on Tornado's": (
        read("bob", bearer("bob"), PATHS["tornado"]),
        "chat_messages_read_total",
    ),
}


@pytest.mark.settings(write_timeout_s=600)
@pytest.mark.parametrize(("sent", "counter"), LONG.values(), ids=LONG)
async def test_a_client_that_takes_nothing_is_cut_off(
    sent: bytes,
    counter: str,
    guarded: Service,
    access_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("chat_service.server.exchange._ENDING_S", 0.1)
    wire = Wire(guarded.port)
    body = json.dumps([{"username": "bob", "text": "x" * 60_000} for _ in range(60)]).encode()
    for _ in range(5):
        await wire.ask(request(b"POST", b"/chat/batch", bearer("root"), body=body))
    with socket.create_connection(("127.0.0.1", guarded.port)) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.sendall(sent)
        taken = [-1.0, 0.0]

        async def is_stuck() -> bool:
            await asyncio.sleep(0.2)
            taken.append(await metric(guarded, counter))
            return taken[-1] == taken[-2] > 0

        await eventually(is_stuck)
        assert taken[-1] < 300
        write(access_file, ENDINGS["removed"][0])

        async def is_closed() -> bool:
            return await metric(guarded, "chat_http_requests_open") == 1

        await eventually(is_closed)
    await wire.close()


async def test_a_broken_file_keeps_the_rules(guarded: Service, access_file: Path) -> None:
    wire = Wire(guarded.port)
    assert await metric(guarded, "chat_access_file_broken") == 0

    async def is_broken() -> bool:
        return await metric(guarded, "chat_access_file_broken") == 1

    for broken in (everybody() + "[[token]]", "not TOML", everybody(bob="send = 1")):
        with capture_logs() as logs:
            write(access_file, broken)
            await eventually(is_broken)
        (said,) = [each for each in logs if each["log_level"] == "error"]
        assert str(access_file) in said["reason"]
        assert (await wire.ask(read("bob", bearer("bob")))).status == 200

        write(access_file, everybody())

        async def is_fine() -> bool:
            return not await is_broken()

        await eventually(is_fine)
    os.unlink(access_file)
    await eventually(is_broken)
    assert (await wire.ask(read("bob", bearer("bob")))).status == 200
    await wire.close()


async def test_a_new_token_works_without_a_restart(guarded: Service, access_file: Path) -> None:
    wire = Wire(guarded.port)
    assert (await wire.ask(read("x", bearer("nobody")))).status == 401
    write(access_file, everybody(nobody='read = ["*"]'))

    async def is_known() -> bool:
        return (await wire.ask(read("x", bearer("nobody")))).status == 200

    await eventually(is_known)
    await wire.close()


@pytest.mark.parametrize("changed", ["-", 'send = ["alice"]'], ids=["removed", "without the right"])
async def test_a_post_in_parts_is_refused_once_its_token_ended(
    changed: str, guarded: Service, access_file: Path, path: bytes
) -> None:
    wire = Wire(guarded.port)
    posting = await wire.connect()
    sent = send("bob", bearer("bob"), path)
    await posting.send(sent[:-5])

    async def is_open() -> bool:
        return await metric(guarded, "chat_http_requests_open") == 2

    await eventually(is_open)
    write(access_file, everybody(bob=changed))

    async def has_ended() -> bool:
        return (await wire.ask(send("bob", bearer("bob")))).status != 201

    await eventually(has_ended)
    await wire.ask(read("bob", bearer("root")))
    await posting.send(sent[-5:])
    answer = await posting.answer()
    assert answer is not None
    assert answer.status == (401 if changed == "-" else 403)
    assert texts_of(await wire.ask(read("bob", bearer("root")))) == []
    await wire.close()


@pytest.mark.parametrize("target", [b"/chat/bob?wait=50", b"/chat/bob/stream"])
async def test_the_end_of_a_wait_is_audited(
    target: bytes, guarded: Service, access_file: Path
) -> None:
    wire = Wire(guarded.port)
    await (await wire.connect()).send(get(target, bearer("bob")))
    await waiters(guarded, 1)
    with capture_logs() as logs:
        write(access_file, ENDINGS["removed"][0])
        await waiters(guarded, 0)
    events = [(line["event"], line["subject"]) for line in logs if "subject" in line]
    assert sorted(events) == [("denied", "bob"), ("revoked", "bob")]
    await wire.close()
