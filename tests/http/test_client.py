"""The client's promises, over a real service: nothing lost, nothing twice, errors with a type."""

import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import TracebackType

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tornado.ioloop import IOLoop

from chat_service.client import (
    ChatClient,
    Draft,
    FieldError,
    LeaseOver,
    Message,
    OutcomeUnknown,
    Posted,
    ProblemError,
    ServiceUnavailable,
    Stream,
)
from chat_service.client.events import Event, EventParser
from chat_service.service import Service
from tests.conftest import Connect, StartService
from tests.support.waiting import eventually
from tests.unit.test_layering import imports


class Middleman:
    """Stands between client and service and has connections break. Use as an async context."""

    def __init__(self, port: int) -> None:
        self._target = port
        #: So many answers are lost: the service has carried the request out, its client sees a cut.
        self.lose = 0
        #: Answers that are given in the service's place.
        self.answers: list[bytes] = []
        #: Heads of the requests that were seen.
        self.heads: list[str] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> "Middleman":
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.base = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.close()
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Break all connections, at both ends."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, client: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        self._writers.append(back)
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await client.readuntil(b"\r\n\r\n")
            self.heads.append(head.decode())
            if self.answers:
                back.write(self.answers.pop(0))
                back.close()
                return
            server, forth = await asyncio.open_connection("127.0.0.1", self._target)
            self._writers.append(forth)
            forth.write(head)
            sending = asyncio.create_task(_pump(client, forth))
            if self.lose:
                self.lose -= 1
                answer = await server.read()
                back.write(answer[: len(answer) // 2])
                back.close()
            else:
                await _pump(server, back)
            await sending


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while chunk := await reader.read(65536):
            writer.write(chunk)
            await writer.drain()
    # Whoever is at the other end is to know that this one is gone.
    writer.close()


@pytest.fixture
def connect_client(io_loop: IOLoop) -> Iterator[Callable[..., ChatClient]]:
    """Makes clients of what is at a base URL; closes them at the end."""
    clients: list[ChatClient] = []

    def make(base: str, tries: int = 10) -> ChatClient:
        clients.append(ChatClient(base, tries=tries))
        return clients[-1]

    yield make
    for client in clients:
        io_loop.run_sync(client.close)


@pytest.fixture
def client(service: Service, connect_client: Callable[..., ChatClient]) -> ChatClient:
    """A client of the service."""
    return connect_client(base_of(service))


def base_of(service: Service) -> str:
    """Where a service is."""
    return f"http://127.0.0.1:{service.port}"


def answer(status: int, body: bytes = b"") -> bytes:
    """An answer in the service's place."""
    head = b"HTTP/1.1 %d No\r\nRetry-After: 0\r\nContent-Length: %d\r\n\r\n"
    return head % (status, len(body)) + body


async def take(stream: Stream, count: int) -> list[str]:
    """The texts of the next messages."""
    return [(await anext(stream)).text for _ in range(count)]


async def none_is_unread(client: ChatClient, username: str) -> None:
    """Wait until nothing is unread, nor on loan."""

    async def is_so() -> bool:
        return await client.count(username) == 0

    await eventually(is_so)
    assert await client.read(username) == []


def test_the_client_stands_alone() -> None:
    known = {*sys.stdlib_module_names, "tornado"}
    for name, module in imports("chat_service/client"):
        is_own = module.startswith("chat_service.client")
        assert is_own or module.partition(".")[0] in known, f"{name} imports {module}"


# Posting and reading


async def test_what_is_posted_is_counted_and_read(client: ChatClient) -> None:
    posted = await client.post("a/b é", "hello", 3600)
    assert posted.receipt is None
    assert await client.count("a/b é") == 1
    assert await client.read("a/b é") == [Message("hello", posted.id)]
    assert await client.count("a/b é") == 0
    for text in "xyz":
        await client.post("bob", text)
    assert [message.text for message in await client.read("bob", limit=2)] == ["x", "y"]


async def test_a_read_whose_answer_is_lost_loses_nothing(service: Service) -> None:
    async with Middleman(service.port) as between, ChatClient(between.base) as client:
        posted = [await client.post("bob", text) for text in "abc"]
        between.lose = 2
        assert [message.id for message in await client.read("bob")] == [each.id for each in posted]
        assert between.lose == 0
        assert await client.read("bob") == []


async def test_a_post_whose_answer_is_lost_is_one_message(service: Service) -> None:
    async with Middleman(service.port) as between, ChatClient(between.base) as client:
        between.lose = 2
        posted = await client.post("bob", "once", receipt=True)
        assert between.lose == 0
        assert posted.receipt is not None
        assert (await client.status(posted.id, posted.receipt)).status == "pending"
        assert await client.read("bob") == [Message("once", posted.id)]


async def test_a_client_that_was_closed_says_so(service: Service) -> None:
    async with ChatClient(f"http://127.0.0.1:{service.port}") as client:
        await client.post("bob", "x")
        lease = await client.lease("bob")
    with pytest.raises(RuntimeError, match="closed"):
        await client.read("bob")
    with pytest.raises(RuntimeError, match="closed"):
        client.stream("bob")
    # What is open goes to its end.
    assert await lease.acknowledge() == 1


async def test_posts_with_one_key_are_one_message(client: ChatClient) -> None:
    first = await client.post("bob", "x", key="order 66")
    assert await client.post("bob", "x", key="order 66") == first
    with pytest.raises(ProblemError) as raised:
        await client.post("bob", "y", key="order 66")
    assert (raised.value.status, raised.value.kind) == (422, "key-reused")
    assert await client.count("bob") == 1


async def test_of_many_posts_each_has_its_answer(client: ChatClient) -> None:
    stored, refused, other = await client.post_many(
        [("bob", "1"), Draft("bob", "2", timeout_s=0), ("eve", "3", 60)], receipt=True
    )
    assert isinstance(stored, Posted)
    assert isinstance(other, Posted)
    assert isinstance(refused, ProblemError)
    assert (refused.status, [error.field for error in refused.errors]) == (400, ["timeout"])
    assert stored.receipt is not None
    assert (await client.status(stored.id, stored.receipt)).status == "pending"
    assert await client.read("bob") == [Message("1", stored.id)]
    assert await client.read("eve") == [Message("3", other.id)]


async def test_more_posts_than_one_batch_holds_are_stored_once_and_in_order(
    service: Service,
) -> None:
    async with Middleman(service.port) as between, ChatClient(between.base) as client:
        between.lose = 1
        posted = await client.post_many(("bob", str(number)) for number in range(501))
        read = await client.read("bob")
        assert [message.text for message in read] == [str(number) for number in range(501)]
        assert [each.id for each in posted if isinstance(each, Posted)] == [m.id for m in read]


async def test_a_service_that_is_away_is_asked_a_few_times(
    connect_client: Callable[..., ChatClient],
) -> None:
    async with Middleman(0) as between:
        base = between.base
    client = connect_client(base, tries=2)
    for asked in (client.post("bob", "x"), client.read("bob"), client.count("bob")):
        with pytest.raises(ServiceUnavailable):
            await asked
    assert [type(each) for each in await client.post_many([("bob", "x")])] == [ServiceUnavailable]


async def test_a_busy_service_is_asked_again(service: Service) -> None:
    busy = answer(503, b'{"type": "urn:chat:problem:overloaded"}')
    async with Middleman(service.port) as between, ChatClient(between.base, tries=3) as client:
        between.answers = [busy, busy]
        posted = await client.post("bob", "x")
        between.answers = [busy]
        assert await client.read("bob") == [Message("x", posted.id)]
        between.answers = [busy] * 3
        with pytest.raises(ServiceUnavailable):
            await client.post("bob", "never")
        assert await client.count("bob") == 0


async def test_an_outcome_that_stays_unknown_is_settled_by_its_key(service: Service) -> None:
    async with Middleman(service.port) as between, ChatClient(between.base, tries=2) as client:
        between.lose = 2
        with pytest.raises(OutcomeUnknown) as posting:
            await client.post("bob", "x")
        between.lose = 2
        with pytest.raises(OutcomeUnknown) as reading:
            await client.read("bob")
        posted = await client.post("bob", "x", key=posting.value.key)
        assert await client.read("bob") == []
        again = await client.read("bob", key=reading.value.key)
        assert again == [Message("x", posted.id)]
        between.lose = 2
        (unknown,) = await client.post_many([("bob", "y")])
        assert isinstance(unknown, OutcomeUnknown)
        await client.post_many([("bob", "y")], key=unknown.key)
        assert [message.text for message in await client.read("bob")] == ["y"]


async def test_problems_have_a_type_and_name_their_fields(client: ChatClient) -> None:
    with pytest.raises(ProblemError) as raised:
        await client.post("bob", "x", 0)
    problem = raised.value
    assert (problem.status, problem.kind) == (400, "invalid-request")
    rule = "must be an integer from 1 to 2592000"
    assert problem.errors == (FieldError("timeout", rule),)
    assert problem.title
    assert problem.detail == f"timeout {rule}"
    with pytest.raises(ProblemError, match="username"):
        await client.read("x" * 129)
    with pytest.raises(ProblemError, match="username"):
        await anext(client.stream("x" * 129))
    with pytest.raises(ProblemError) as raised:
        await client.count("x" * 129)
    assert raised.value.status == 400


# Waiting


async def test_a_wait_goes_on_over_many_requests(
    start_service: StartService, connect_client: Callable[..., ChatClient]
) -> None:
    service = await start_service(max_wait_s=0.05)
    async with Middleman(service.port) as between:
        client = connect_client(between.base)
        waiting = asyncio.create_task(client.wait("bob", 600))

        async def has_asked_thrice() -> bool:
            return len(between.heads) > 2

        await eventually(has_asked_thrice)
        posted = await client.post("bob", "at last")
        assert await waiting == [Message("at last", posted.id)]


async def test_a_wait_ends_with_its_time(client: ChatClient) -> None:
    assert await client.wait("bob", 0.05) == []
    assert await client.wait("bob", 0) == []
    posted = await client.post("bob", "x")
    assert await client.wait("bob", 0) == [Message("x", posted.id)]


async def test_a_read_that_is_cancelled_while_it_waits_takes_nothing(
    client: ChatClient, service: Service, connect: Connect
) -> None:
    metrics = connect(service)

    async def is_open(count: int) -> bool:
        return await metrics.metric("chat_http_requests_open") == count

    reading = asyncio.create_task(client.read("bob", wait_s=20))
    # The other one is the question itself.
    await eventually(lambda: is_open(2))
    reading.cancel()
    await asyncio.wait((reading,))
    await eventually(lambda: is_open(1))
    posted = await client.post("bob", "x")
    assert await client.read("bob") == [Message("x", posted.id)]


# Leases


async def test_a_lease_is_acknowledged_when_its_block_ends(client: ChatClient) -> None:
    posted = await client.post("bob", "work", receipt=True)
    assert posted.receipt is not None
    async with await client.lease("bob", wait_s=5) as lease:
        assert lease.messages == [Message("work", posted.id)]
        assert (await client.status(posted.id, posted.receipt)).status == "leased"
        assert await client.count("bob") == 0
    assert (await client.status(posted.id, posted.receipt)).status == "read"


async def test_a_lease_is_given_back_when_its_block_raises(client: ChatClient) -> None:
    await client.post("bob", "work")
    with pytest.raises(ZeroDivisionError):
        async with await client.lease("bob"):
            raise ZeroDivisionError
    assert [message.text for message in await client.read("bob")] == ["work"]


async def test_a_lease_is_given_back_when_its_block_is_cancelled(client: ChatClient) -> None:
    await client.post("bob", "work")
    has_begun = asyncio.Event()

    async def work() -> None:
        async with await client.lease("bob"):
            has_begun.set()
            await asyncio.sleep(600)

    working = asyncio.create_task(work())
    await has_begun.wait()
    working.cancel()
    await asyncio.wait((working,))
    assert working.cancelled()
    assert [message.text for message in await client.read("bob")] == ["work"]


async def test_a_lease_can_be_settled_message_by_message(client: ChatClient) -> None:
    for text in "abcd":
        await client.post("bob", text)
    async with await client.lease("bob", ttl_s=5, limit=3) as lease:
        first, second, third = lease.messages
        assert await lease.extend(600.5) == lease.ttl_s == 600.5
        assert await lease.acknowledge([first.id]) == 1
        assert await lease.acknowledge([first.id]) == 1
        assert await lease.release([second.id]) == 1
        assert await lease.release([second.id, first.id]) == 1
    assert third.text == "c"
    assert [message.text for message in await client.read("bob")] == ["b", "d"]
    assert await lease.acknowledge() == 0


async def test_a_lease_is_settled_by_its_name_from_elsewhere(client: ChatClient) -> None:
    ids = [(await client.post("bob", text)).id for text in "abc"]
    lease = await client.lease("bob")
    name = lease.name
    assert name is not None
    assert repr(lease) == f"Lease({name!r}, ttl_s=30.0, messages=3)"
    assert await client.extend("bob", name, 60) == 60
    assert await client.acknowledge("bob", name, ids[:1]) == 1
    assert await client.release("bob", name, ids[1:2]) == 1
    assert [message.text for message in await client.read("bob")] == ["b"]
    assert await client.acknowledge("bob", name) == 1
    assert await client.release("bob", name) == 0
    with pytest.raises(LeaseOver):
        await client.extend("bob", name, 60)


async def test_a_lease_of_nothing_asks_nothing(service: Service) -> None:
    async with Middleman(service.port) as between, ChatClient(between.base) as client:
        async with await client.lease("bob") as lease:
            assert lease.messages == []
            assert (await lease.acknowledge(), await lease.release(["x"])) == (0, 0)
            assert await lease.extend(5) == 30
        assert len(between.heads) == 1


async def test_a_lease_that_is_over_says_so(client: ChatClient) -> None:
    await client.post("bob", "work")
    lease = await client.lease("bob", ttl_s=0.05)
    another = await client.lease("bob", wait_s=10)
    assert another.messages == lease.messages
    with pytest.raises(LeaseOver):
        await lease.acknowledge()
    with pytest.raises(LeaseOver):
        await lease.extend(5)
    assert await lease.release() == 0


async def test_what_a_lost_answer_left_on_loan_comes_again(service: Service) -> None:
    async with Middleman(service.port) as between, ChatClient(between.base) as client:
        await client.post("bob", "work")
        between.lose = 1
        async with await client.lease("bob", ttl_s=0.2, wait_s=5) as lease:
            assert [message.text for message in lease.messages] == ["work"]
            between.lose = 1
        assert between.lose == 0
        assert await client.read("bob") == []


# Streams


async def test_a_stream_gives_what_is_there_and_what_comes(client: ChatClient) -> None:
    await client.post("bob", "there\r\n\n: è\0")
    async with client.stream("bob") as stream:
        assert await take(stream, 1) == ["there\r\n\n: è\0"]
        coming = asyncio.create_task(take(stream, 1))
        await client.post("bob", "came")
        assert await coming == ["came"]
        await stream.acknowledge()
    await none_is_unread(client, "bob")


async def test_a_message_is_acknowledged_when_the_next_is_asked_for(client: ChatClient) -> None:
    posted = [await client.post("bob", text, receipt=True) for text in "ab"]

    async def statuses() -> list[str]:
        return [(await client.status(each.id, each.receipt or "")).status for each in posted]

    async with client.stream("bob") as stream:
        await anext(stream)
        assert await statuses() == ["leased", "leased"]
        await anext(stream)
        assert await statuses() == ["read", "leased"]


async def test_what_a_consumer_did_not_finish_comes_to_another(client: ChatClient) -> None:
    for text in "abc":
        await client.post("bob", text)
    # Nobody closes this one: it is closed when nobody holds it.
    async for message in client.stream("bob"):
        if message.text == "b":
            break
    async with client.stream("bob") as another:
        assert sorted(await take(another, 2)) == ["b", "c"]


async def test_a_stream_goes_on_after_a_restart_of_the_service(
    start_service: StartService, connect_client: Callable[..., ChatClient]
) -> None:
    service = await start_service()
    client = connect_client(base_of(service))
    for text in "abc":
        await client.post("bob", text)
    taken = []
    async with client.stream("bob") as stream:
        taken += await take(stream, 1)
        assert await service.drain()
        await service.stop()
        waiting = asyncio.create_task(take(stream, 3))
        await start_service(port=service.port)
        await client.post("bob", "d")
        taken += await waiting
        await stream.acknowledge()
    assert taken == ["a", "b", "c", "d"]
    await none_is_unread(client, "bob")


async def test_a_stream_whose_connection_breaks_gives_each_message_once(
    service: Service, connect_client: Callable[..., ChatClient]
) -> None:
    async with Middleman(service.port) as between:
        client = connect_client(between.base)
        for text in "abc":
            await client.post("bob", text)
        async with client.stream("bob") as stream:
            assert await take(stream, 2) == ["a", "b"]
            between.cut()
            assert await take(stream, 1) == ["c"]
            last = await client.post("bob", "d")
            assert (await anext(stream)).id == last.id
            await stream.acknowledge()
        heads = [head for head in between.heads if "/stream " in head]
        assert len(heads) == 2
        assert "Last-Event-Id" not in heads[0]
        assert "Last-Event-Id" in heads[1]
        await none_is_unread(client, "bob")


async def test_what_comes_again_to_a_stream_is_acknowledged_and_not_given_again(
    service: Service, connect_client: Callable[..., ChatClient]
) -> None:
    async with Middleman(service.port) as between:
        client, direct = connect_client(between.base), connect_client(base_of(service))
        posted = [await client.post("bob", text, receipt=True) for text in "ab"]
        async with client.stream("bob") as stream:
            assert await take(stream, 1) == ["a"]
            between.answers = [answer(410, b'{"type": "urn:chat:problem:lease-over"}')]
            assert await take(stream, 1) == ["b"]
            between.cut()

            async def both_are_unread() -> bool:
                return await direct.count("bob") == 2

            await eventually(both_are_unread)
            # Had by somebody else meanwhile, so that the Last-Event-ID says nothing of the first.
            lease = await direct.lease("bob")
            assert await lease.release() == 2
            await direct.post("bob", "c")
            assert await take(stream, 1) == ["c"]
            first = posted[0]
            assert (await direct.status(first.id, first.receipt or "")).status == "read"
            await stream.acknowledge()
        await none_is_unread(direct, "bob")


async def test_a_stream_begins_when_the_service_is_there(service: Service) -> None:
    async with Middleman(service.port) as between, ChatClient(between.base) as client:
        await client.post("bob", "a")
        between.answers = [answer(503), b""]
        assert await take(client.stream("bob"), 1) == ["a"]


async def test_a_stream_goes_on_after_a_next_that_was_cancelled(client: ChatClient) -> None:
    async with client.stream("bob") as stream:
        await client.post("bob", "a")
        assert await take(stream, 1) == ["a"]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await anext(stream)
        await client.post("bob", "b")
        assert await take(stream, 1) == ["b"]


async def test_closing_the_client_ends_its_streams(client: ChatClient) -> None:
    stream = client.stream("bob")
    waiting = asyncio.create_task(anext(stream, None))
    await client.post("bob", "a")
    assert await waiting is not None
    waiting = asyncio.create_task(anext(stream, None))
    await asyncio.sleep(0)
    await client.close()
    assert await waiting is None
    assert await anext(stream, None) is None


# Receipts


async def test_a_sender_follows_a_message_and_takes_it_back(client: ChatClient) -> None:
    posted = await client.post("bob", "lunch?", receipt=True)
    assert posted.receipt is not None
    assert await client.status(posted.id, posted.receipt) == ("pending", None)
    assert await client.revoke(posted.id, posted.receipt)
    assert await client.revoke(posted.id, posted.receipt)
    assert (await client.status(posted.id, posted.receipt)).status == "revoked"
    assert await client.read("bob") == []


async def test_what_is_read_cannot_be_taken_back(client: ChatClient) -> None:
    posted = await client.post("bob", "lunch?", receipt=True)
    assert posted.receipt is not None
    await client.read("bob")
    assert not await client.revoke(posted.id, posted.receipt)
    status, at = await client.status(posted.id, posted.receipt)
    assert status == "read"
    assert at is not None
    assert at.utcoffset() is not None
    for asked in (client.revoke(posted.id, "another"), client.status(posted.id, "another")):
        with pytest.raises(ProblemError) as raised:
            await asked
        assert (raised.value.status, raised.value.kind) == (404, "not-found")


# Server-Sent Events


@pytest.mark.parametrize(
    ("sent", "events"),
    [
        (b"data: a\n\n", [Event("message", "a", "")]),
        (b"data: a\r\rdata:b\r\n\r\n", [Event("message", "a", ""), Event("message", "b", "")]),
        (b"data: a\ndata:  b\ndata\n\n", [Event("message", "a\n b\n", "")]),
        (b"data: a\r\ndata: b\r\n\r\n", [Event("message", "a\nb", "")]),
        (b"data\n\n", [Event("message", "", "")]),
        (b"\xef\xbb\xbfevent: open\ndata: {}\n\n", [Event("open", "{}", "")]),
        (b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\ndata: b\n\n", [Event("message", "b", "")]),
        (b"id: 1\n\nid: 2\0\ndata: a\n\n", [Event("message", "a", "1")]),
        (
            b"id: 1\ndata: a\n\nid\ndata: b\n\n",
            [Event("message", "a", "1"), Event("message", "b", "")],
        ),
        (b": data: a\n:\ndata: b\nother: c\n\n", [Event("message", "b", "")]),
        (b"event: x\n\ndata: a\n\n", [Event("message", "a", "")]),
        (b"data: \xe2\x82\xac \xff\n\n", [Event("message", "€ �", "")]),
        (b"data: never ended\n", []),
    ],
)
def test_events_are_read_by_the_rules(sent: bytes, events: list[Event]) -> None:
    assert EventParser().feed(sent) == events
    parser = EventParser()
    assert [event for byte in sent for event in parser.feed(bytes((byte,)))] == events


@pytest.mark.parametrize(
    ("value", "retry_ms"),
    [("1500", 1500), ("0", 0), ("-1", None), ("1.5", None), ("²", None), ("9" * 5000, 10**9)],
)
def test_a_retry_counts_where_it_is_a_number(value: str, retry_ms: int | None) -> None:
    parser = EventParser()
    assert parser.feed(f"retry: {value}\n\n".encode()) == []
    assert parser.retry_ms == retry_ms


_PIECES = st.sampled_from(
    [
        "\r",
        "\n",
        "\r\n",
        "data",
        "id",
        "event",
        "retry",
        ":",
        ": ",
        " ",
        "é",
        "€",
        "𝄞",
        "\ufeff",
        "7",
    ]
).map(str.encode) | st.binary(max_size=3)


@given(st.lists(_PIECES, max_size=40).map(b"".join), st.lists(st.integers(0, 99), max_size=6))
@example(b"data: a\r\ndata: b\r\n\r\n", [8])
@example(b"\xef\xbb\xbfdata: \xf0\x9d\x84\x9e\r\n\r\n", [1, 10, 15, 16])
def test_where_a_stream_is_cut_makes_no_difference(sent: bytes, cuts: list[int]) -> None:
    whole, pieces = EventParser(), EventParser()
    ends = sorted({cut for cut in cuts if cut < len(sent)})
    chunks = [sent[start:end] for start, end in zip([0, *ends], [*ends, len(sent)], strict=True)]
    assert [event for chunk in chunks for event in pieces.feed(chunk)] == whole.feed(sent)
    assert pieces.retry_ms == whole.retry_ms
