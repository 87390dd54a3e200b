"""Bugs, each seeded into the running code: what a fuzzer must find to be believed.

Each replaces one function by one that is wrong in one way. Used by `tests.fuzz.test_bugs`.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple
from unittest import mock

from websockets.frames import CloseCode
from websockets.server import ServerProtocol

from chat_service.api import validation
from chat_service.handlers import batch
from chat_service.handlers.inbox import InboxHandlers
from chat_service.server.fast_path import FastPathConnection
from chat_service.server.header_cache import HeaderCache, RequestHead
from chat_service.streaming import websocket
from chat_service.streaming.subscription import Subscription


class Bug(NamedTuple):
    """A seeded bug, and the fuzzer that has to find it."""

    name: str
    fuzzer: str
    seeded: Callable[[], AbstractContextManager[Any]]


def skips_lines_that_are_no_headers() -> AbstractContextManager[Any]:
    lookup = HeaderCache.lookup
    no_header = re.compile(rb"(?m)^(?:[ \t:][^\r]*|[^:\r]+)\r\n")

    def lenient(self: HeaderCache, block: bytes) -> RequestHead | None:
        return lookup(self, no_header.sub(b"", block))

    return mock.patch.object(HeaderCache, "lookup", lenient)


def takes_the_first_of_two_lengths() -> AbstractContextManager[Any]:
    lookup = HeaderCache.lookup
    second = re.compile(rb"(?i)(content-length:[^\r]*\r\n(?:.*\r\n)*?)content-length:[^\r]*\r\n")

    def lenient(self: HeaderCache, block: bytes) -> RequestHead | None:
        return lookup(self, second.sub(rb"\1", block))

    return mock.patch.object(HeaderCache, "lookup", lenient)


def forgets_how_long_a_body_may_be() -> AbstractContextManager[Any]:
    lookup = HeaderCache.lookup

    def lenient(self: HeaderCache, block: bytes) -> RequestHead | None:
        with mock.patch.object(self, "_length_max", 1 << 30):
            return lookup(self, block)

    return mock.patch.object(HeaderCache, "lookup", lenient)


def forgets_what_came_with_a_request() -> AbstractContextManager[Any]:
    finish = FastPathConnection._finish

    def forgetful(self: FastPathConnection, *arguments: Any) -> None:
        if len(self._held) > 300:
            self._held = b""
        finish(self, *arguments)

    return mock.patch.object(FastPathConnection, "_finish", forgetful)


def reads_beyond_the_limit() -> AbstractContextManager[Any]:
    begin = InboxHandlers.begin_read

    def unlimited(self: InboxHandlers, parameter: str, query: str) -> Any:
        return begin(self, parameter, query.replace("limit=1", "limit=9"))

    return mock.patch.object(InboxHandlers, "begin_read", unlimited)


def does_not_look_whether_a_batch_is_utf8() -> AbstractContextManager[Any]:
    def lenient(body: bytes, *rest: Any) -> Any:
        return validation.new_message(body.decode("utf-8", "replace").encode(), *rest)

    return mock.patch.object(batch, "new_message", lenient)


def rounds_a_fraction_of_a_second() -> AbstractContextManager[Any]:
    fault = validation._timeout_fault

    def lenient(timeout: Any, seconds_max: int) -> str | None:
        return fault(int(timeout) if timeout == 1.5 else timeout, seconds_max)

    return mock.patch.object(validation, "_timeout_fault", lenient)


def counts_a_name_in_bytes() -> AbstractContextManager[Any]:
    fault = validation._username_fault

    def strict(username: Any, chars_max: int) -> str | None:
        if isinstance(username, str) and len(username.encode("utf-8", "replace")) > chars_max:
            return "is too long"
        return fault(username, chars_max)

    return mock.patch.object(validation, "_username_fault", strict)


def acknowledges_one_too_many() -> AbstractContextManager[Any]:
    acknowledge = Subscription.acknowledge

    async def generous(self: Subscription, ids: Any) -> bool:
        more = [each for each in self._unacked if each not in ids][:1]
        return await acknowledge(self, [*ids, *more])

    return mock.patch.object(Subscription, "acknowledge", generous)


def acknowledges_nothing() -> AbstractContextManager[Any]:
    async def idle(self: Subscription, message_id: str) -> bool:
        return True

    return mock.patch.object(Subscription, "acknowledge_upto", idle)


def gives_back_nothing() -> AbstractContextManager[Any]:
    async def idle(self: Subscription) -> None:
        self._unacked.clear()

    return mock.patch.object(Subscription, "_give_back", idle)


@contextmanager
def closes_with_another_code() -> Iterator[None]:
    fail = ServerProtocol.fail

    def wrong(self: ServerProtocol, code: int, reason: str = "") -> None:
        fail(self, CloseCode.PROTOCOL_ERROR if code == CloseCode.INVALID_DATA else code, reason)

    with mock.patch.object(ServerProtocol, "fail", wrong):
        yield


def fails_on_an_empty_message() -> AbstractContextManager[Any]:
    take = websocket._Socket._take

    async def fails(self: websocket._Socket, message: bytes) -> None:
        assert message, "a message of nothing"
        await take(self, message)

    return mock.patch.object(websocket._Socket, "_take", fails)


BUGS = (
    Bug("skips lines that are no headers", "paths", skips_lines_that_are_no_headers),
    Bug("takes the first of two lengths", "paths", takes_the_first_of_two_lengths),
    Bug("forgets how long a body may be", "paths", forgets_how_long_a_body_may_be),
    Bug("forgets what came with a request", "paths", forgets_what_came_with_a_request),
    Bug("reads beyond the limit", "paths", reads_beyond_the_limit),
    Bug(
        "does not look whether a batch is UTF-8", "decoders", does_not_look_whether_a_batch_is_utf8
    ),
    Bug("rounds a fraction of a second", "decoders", rounds_a_fraction_of_a_second),
    Bug("counts a name in bytes", "decoders", counts_a_name_in_bytes),
    Bug("acknowledges one too many", "sockets", acknowledges_one_too_many),
    Bug("acknowledges nothing", "sockets", acknowledges_nothing),
    Bug("gives back nothing", "sockets", gives_back_nothing),
    Bug("closes with another code", "sockets", closes_with_another_code),
    Bug("fails on an empty message", "sockets", fails_on_an_empty_message),
)
