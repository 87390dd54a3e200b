"""One request and its answer, and the patience to ask again. Used by the rest of the client.

Each request has a connection of its own, which is closed when the request is given up: the
service then knows that nobody waits for the answer any more.
"""

import asyncio
import json
import math
import random
from collections.abc import Mapping
from typing import Any, NamedTuple

from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.httputil import HTTPHeaders, HTTPInputError
from tornado.iostream import IOStream
from tornado.simple_httpclient import SimpleAsyncHTTPClient
from tornado.tcpclient import TCPClient

from chat_service.client.errors import ProblemError, giving_up, problem_of, understanding

#: An answer is waited for so long, beyond what the request itself asks to wait, in seconds.
_ANSWER_S, CONNECT_S = 15.0, 10.0
#: The pause between two tries is at most so long: doubled each time up to the last. In seconds.
_PAUSE_S, _PAUSE_MAX_S, _DOUBLINGS = 0.1, 5.0, 6
#: The service may ask for a pause of so many seconds; nobody waits for longer.
_RETRY_AFTER_MAX_S = 30.0
_HEADERS: Mapping[str, str] = {}


class Request(NamedTuple):
    """What is asked. `path` is below the base URL, escaped.

    `wait_s` is how long the service was asked to wait before it answers. A repeat is safe for
    `within_s` seconds. `key` goes with the error when the tries are used up.
    """

    method: str
    path: str
    body: bytes | None = None
    headers: Mapping[str, str] = _HEADERS
    wait_s: float = 0.0
    within_s: float = math.inf
    key: str | None = None


class Answer(NamedTuple):
    """What the service said, whatever its status."""

    status: int
    headers: HTTPHeaders
    body: bytes

    def document(self) -> Any:
        """The JSON of its body."""
        with understanding():
            return json.loads(self.body)

    @property
    def retry_after_s(self) -> float:
        """How long the service wants to be left alone, in seconds."""
        value = self.headers.get("Retry-After", "")
        is_number = value.isascii() and value.isdigit() and len(value) < 9
        return min(float(value), _RETRY_AFTER_MAX_S) if is_number else 0.0


class NotAnswered(Exception):
    """No whole answer came. `is_sent` where the service may have had the request."""

    def __init__(self, reason: str, is_sent: bool) -> None:
        super().__init__(reason)
        self.is_sent = is_sent


class Http:
    """Asks one service, over some connections at the same time, each thing a few times."""

    def __init__(self, base_url: str, tries: int, connections: int) -> None:
        if not base_url.lower().startswith(("http://", "https://")):
            raise ValueError(f"{base_url!r} begins with neither http:// nor https://")
        self.base_url = base_url.rstrip("/")
        self.tries = tries
        self._free = asyncio.Semaphore(connections)

    async def ask(self, request: Request, tries: int | None = None) -> Answer:
        """Ask until there is an answer; one with a status of 2xx.

        Raises `ProblemError` for any other that will not pass; when the tries are used up,
        `OutcomeUnknown` where one of them may have been carried out, or `ServiceUnavailable`.
        """
        loop = asyncio.get_running_loop()
        give_up_at, is_unclear = math.inf, False
        reason, retry_after_s = "", 0.0
        said: ProblemError | None = None
        for number in range(tries or self.tries):
            if number:
                await asyncio.sleep(pause_s(number, retry_after_s))
            try:
                async with self._free:
                    began = loop.time()
                    # Too late for a repeat: it would be another request.
                    if began > give_up_at:
                        break
                    answer = await self._once(request)
            except NotAnswered as error:
                reason, retry_after_s, may_be_done = str(error), 0.0, error.is_sent
                said = None
            else:
                if 200 <= answer.status < 300:
                    return answer
                problem = problem_of(answer.status, answer.body)
                if is_unclear and problem.status == 507:
                    # This try was refused, but an earlier one may have been carried out.
                    raise giving_up(str(problem), True, request.key)
                if not problem.is_passing:
                    raise problem
                reason, retry_after_s = str(problem), answer.retry_after_s
                said = problem
                may_be_done = problem.is_unclear
            if may_be_done:
                is_unclear = True
                give_up_at = min(give_up_at, began + request.within_s)
        # What only looks has no outcome.
        changes = request.method in ("POST", "DELETE")
        raise giving_up(reason, is_unclear and changes, request.key, said)

    async def _once(self, request: Request) -> Answer:
        headers = dict(request.headers)
        if request.body:
            headers["Content-Type"] = "application/json"
        return await fetch(
            HTTPRequest(
                self.base_url + request.path,
                request.method,
                headers,
                request.body,
                connect_timeout=CONNECT_S,
                request_timeout=request.wait_s + _ANSWER_S,
            )
        )


async def fetch(request: HTTPRequest) -> Answer:
    """Carry out one request. Cancelling it closes its connection. Raises `NotAnswered`."""
    # A redirected POST would become a GET.
    request.follow_redirects = False
    request.decompress_response = False
    # A stream is one answer, and has no end; what is not streamed has Tornado's other limit.
    http = SimpleAsyncHTTPClient(force_instance=True, max_body_size=1 << 62)
    assert isinstance(http, SimpleAsyncHTTPClient)
    http.tcp_client = dialer = _Dialer(http.resolver)
    fetched = http.fetch(request, raise_error=False)
    try:
        # Not awaited itself: Tornado complains of a future that was cancelled.
        await asyncio.wait((fetched,))
        response = fetched.result()
        return Answer(response.code, response.headers, response.body)
    except (OSError, HTTPClientError, HTTPInputError, ValueError) as error:
        raise NotAnswered(str(error) or type(error).__name__, dialer.has_connected) from error
    finally:
        fetched.add_done_callback(lambda done: done.exception())
        dialer.hang_up()
        http.close()


class _Dialer(TCPClient):
    """Makes the one connection of a request, and closes it: Tornado has no way to give one up."""

    _stream: IOStream | None = None
    _is_over = False

    @property
    def has_connected(self) -> bool:
        """Whether there was a connection."""
        return self._stream is not None

    async def connect(self, *args: Any, **kwargs: Any) -> IOStream:
        """See `TCPClient.connect`."""
        self._stream = await super().connect(*args, **kwargs)
        if self._is_over:
            self._stream.close()
        return self._stream

    def hang_up(self) -> None:
        """Close the connection, or have it closed as soon as it is there."""
        self._is_over = True
        if self._stream is not None:
            self._stream.close()


def pause_s(number: int, retry_after_s: float = 0.0) -> float:
    """Seconds until try `number`, from 1 on; random, so that many clients do not come at once."""
    longest = min(_PAUSE_S * 2 ** min(number - 1, _DOUBLINGS), _PAUSE_MAX_S)
    return retry_after_s + random.uniform(0, longest)
