"""Bugs that are seeded into the running code. A fuzzer must find them to be trusted.

Each replaces one function by a version that is wrong in one way. Used by `tests.fuzz.test_bugs`.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple
from unittest import mock

from websockets.frames import CloseCode
from websockets.protocol import Protocol

from chat_service.api import validation
from chat_service.api.identity import Client
from chat_service.handlers import batch
from chat_service.handlers.inbox import InboxHandlers
from chat_service.server.fast_connection import FastPathConnection
from chat_service.server.header_cache import HeaderCache, RequestHead
from chat_service.streaming import websocket
from chat_service.streaming.subscription import Subscription


class Bug(NamedTuple):
    """A seeded bug, and the fuzzer that must find it."""

    name: str
    fuzzer: str
    seeded: Callable[[], AbstractContextManager[Any]]


def skips_malformed_header_lines() -> AbstractContextManager[Any]:
    lookup = HeaderCache.lookup
    no_header = re.compile(rb"(?m)^(?:[ \t:][^\r]*|[^:\r]+)\r\n")

    def lenient(self: HeaderCache, block: bytes) -> RequestHead | None:
        return lookup(self, no_header.sub(b"", block))

    return mock.patch.object(HeaderCache, "lookup", lenient)


def takes_first_of_two_lengths() -> AbstractContextManager[Any]:
    lookup = HeaderCache.lookup
    second = re.compile(rb"(?i)(content-length:[^\r]*\r\n(?:.*\r\n)*?)content-length:[^\r]*\r\n")

    def lenient(self: HeaderCache, block: bytes) -> RequestHead | None:
        return lookup(self, second.sub(rb"\1", block))

    return mock.patch.object(HeaderCache, "lookup", lenient)


def takes_first_of_two_tokens() -> AbstractContextManager[Any]:
    lookup = HeaderCache.lookup
    second = re.compile(rb"(?i)(authorization:[^\r]*\r\n(?:.*\r\n)*?)authorization:[^\r]*\r\n")

    def lenient(self: HeaderCache, block: bytes) -> RequestHead | None:
        return lookup(self, second.sub(rb"\1", block))

    return mock.patch.object(HeaderCache, "lookup", lenient)


def keeps_a_revoked_token() -> AbstractContextManager[Any]:
    return mock.patch.object(HeaderCache, "forget_ended", return_value=None)


def ignores_body_limit() -> AbstractContextManager[Any]:
    lookup = HeaderCache.lookup

    def lenient(self: HeaderCache, block: bytes) -> RequestHead | None:
        with mock.patch.object(self, "_length_max", 1 << 30):
            return lookup(self, block)

    return mock.patch.object(HeaderCache, "lookup", lenient)


def loses_pipelined_bytes() -> AbstractContextManager[Any]:
    finish = FastPathConnection._finish

    def forgetful(self: FastPathConnection, *arguments: Any) -> None:
        if len(self._held) > 300:
            self._held = b""
        finish(self, *arguments)

    return mock.patch.object(FastPathConnection, "_finish", forgetful)


def ignores_read_limit() -> AbstractContextManager[Any]:
    begin = InboxHandlers.begin_read

    def unlimited(self: InboxHandlers, parameter: str, query: str, client: Client) -> Any:
        return begin(self, parameter, query.replace("limit=1", "limit=9"), client)

    return mock.patch.object(InboxHandlers, "begin_read", unlimited)


def accepts_batch_without_utf8() -> AbstractContextManager[Any]:
    def lenient(body: bytes, *rest: Any) -> Any:
        return validation.new_message(body.decode("utf-8", "replace").encode(), *rest)

    return mock.patch.object(batch, "new_message", lenient)


def rounds_fractional_timeout() -> AbstractContextManager[Any]:
    fault = validation._timeout_fault

    def lenient(timeout: Any, seconds_max: int) -> str | None:
        return fault(int(timeout) if timeout == 1.5 else timeout, seconds_max)

    return mock.patch.object(validation, "_timeout_fault", lenient)


def takes_a_delay_of_any_length() -> AbstractContextManager[Any]:
    return mock.patch.object(validation, "_delay_fault", return_value=None)


def strips_a_plain_text() -> AbstractContextManager[Any]:
    valid = validation.valid_message

    def strict(text: Any, *others: Any) -> Any:
        return valid(text.strip() if isinstance(text, str) else text, *others)

    return mock.patch("chat_service.api.plain_posts.valid_message", strict)


def measures_name_in_bytes() -> AbstractContextManager[Any]:
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


def releases_nothing() -> AbstractContextManager[Any]:
    async def idle(self: Subscription) -> None:
        self._unacked.clear()

    return mock.patch.object(Subscription, "_give_back", idle)


@contextmanager
def closes_with_wrong_code() -> Iterator[None]:
    fail = Protocol.fail

    def wrong(self: Protocol, code: int, reason: str = "") -> None:
        fail(self, CloseCode.PROTOCOL_ERROR if code == CloseCode.INVALID_DATA else code, reason)

    with mock.patch.object(Protocol, "fail", wrong):
        yield


def fails_on_an_empty_message() -> AbstractContextManager[Any]:
    take = websocket._Socket._take

    async def fails(self: websocket._Socket, message: bytes) -> None:
        assert message, "an empty message"
        await take(self, message)

    return mock.patch.object(websocket._Socket, "_take", fails)


BUGS = (
    Bug("skips malformed header lines", "paths", skips_malformed_header_lines),
    Bug("takes first of two lengths", "paths", takes_first_of_two_lengths),
    Bug("ignores body limit", "paths", ignores_body_limit),
    Bug("loses pipelined bytes", "paths", loses_pipelined_bytes),
    Bug("ignores read limit", "paths", ignores_read_limit),
    Bug("takes first of two tokens", "access", takes_first_of_two_tokens),
    Bug("keeps a revoked token", "access", keeps_a_revoked_token),
    Bug("accepts batch without UTF-8", "decoders", accepts_batch_without_utf8),
    Bug("rounds fractional timeout", "decoders", rounds_fractional_timeout),
    Bug("takes a delay of any length", "decoders", takes_a_delay_of_any_length),
    Bug("strips a plain text", "decoders", strips_a_plain_text),
    Bug("measures name in bytes", "decoders", measures_name_in_bytes),
    Bug("acknowledges one too many", "sockets", acknowledges_one_too_many),
    Bug("acknowledges nothing", "sockets", acknowledges_nothing),
    Bug("releases nothing", "sockets", releases_nothing),
    Bug("closes with wrong code", "sockets", closes_with_wrong_code),
    Bug("fails on an empty message", "sockets", fails_on_an_empty_message),
)
