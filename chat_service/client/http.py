"""Sends requests, with retries. Used by the rest of the client.

Each request has its own connection, which is closed if the request is abandoned. That tells the
service that the client no longer waits for the answer.
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

from chat_service.client.credentials import Credentials, TokenSource, check_address
from chat_service.client.errors import (
    ProblemError,
    RateLimited,
    final_error,
    problem_of,
    reading_answer,
)

#: Timeouts for an answer, in addition to the wait that the request asks for, and for connecting, in
#: seconds.
_ANSWER_S, CONNECT_S = 15.0, 10.0
#: The longest pause after the first try and after later ones, in seconds. It doubles each time.
_PAUSE_S, _PAUSE_MAX_S, _DOUBLINGS = 0.1, 5.0, 6
#: The longest Retry-After that is respected, in seconds.
_RETRY_AFTER_MAX_S = 30.0
_HEADERS: Mapping[str, str] = {}


class Request(NamedTuple):
    """A request. `path` is escaped and relative to the base URL.

    `wait_s` is how long the request asks the service to wait before it answers. A retry is safe for
    `within_s` seconds. `key` is added to the error if all tries fail.
    """

    method: str
    path: str
    body: bytes | None = None
    headers: Mapping[str, str] = _HEADERS
    wait_s: float = 0.0
    within_s: float = math.inf
    key: str | None = None


class Answer(NamedTuple):
    """An answer of any status."""

    status: int
    headers: HTTPHeaders
    body: bytes

    def document(self) -> Any:
        """Return the body, decoded as JSON. Raise `ChatError` if it is not JSON."""
        with reading_answer():
            return json.loads(self.body)

    def problem(self) -> ProblemError:
        """Return the problem of an answer that is an error."""
        challenge = self.headers.get("WWW-Authenticate", "")
        problem = problem_of(self.status, self.body, challenge)
        if isinstance(problem, RateLimited):
            problem.retry_after_s = self._retry_after_s
        return problem

    @property
    def retry_after_s(self) -> float:
        """Return the value of Retry-After in seconds, bounded; 0 if there is none."""
        return min(self._retry_after_s, _RETRY_AFTER_MAX_S)

    @property
    def _retry_after_s(self) -> float:
        value = self.headers.get("Retry-After", "")
        is_number = value.isascii() and value.isdigit() and len(value) < 9
        return float(value) if is_number else 0.0


class NotAnswered(Exception):
    """No complete answer arrived. `is_sent` tells whether the service may have got the request."""

    def __init__(self, reason: str, is_sent: bool) -> None:
        super().__init__(reason)
        self.is_sent = is_sent


class Http:
    """Sends requests to one service, with a limit on open connections, and retries them."""

    def __init__(
        self,
        base_url: str,
        tries: int,
        connections: int,
        token: TokenSource | None = None,
        *,
        allow_plain_http: bool = False,
    ) -> None:
        """See `ChatClient`."""
        if not base_url.lower().startswith(("http://", "https://")):
            raise ValueError(f"{base_url!r} must begin with http:// or https://")
        if token is not None:
            check_address(base_url, allow_plain_http)
        self.base_url = base_url.rstrip("/")
        self.tries = tries
        self.credentials = Credentials(token)
        self._free = asyncio.Semaphore(connections)

    async def send(self, request: Request, tries: int | None = None) -> Answer:
        """Send a request until it is answered with a status of 2xx, and return the answer.

        Raise `ProblemError` for an answer that a retry cannot change. When all tries have failed,
        raise `OutcomeUnknown` if one of them may have been carried out. Otherwise raise
        `RateLimited` if that was the last answer, and else `ServiceUnavailable`.
        """
        loop = asyncio.get_running_loop()
        give_up_at, is_outcome_unknown = math.inf, False
        reason, retry_after_s = "", 0.0
        last_answer: ProblemError | None = None
        for number in range(tries or self.tries):
            if number:
                await asyncio.sleep(pause_s(number, retry_after_s))
            try:
                async with self._free:
                    began = loop.time()
                    # Too late: the service would treat a retry as a new request.
                    if began > give_up_at:
                        break
                    answer = await self._send_once(request)
            except NotAnswered as error:
                reason, retry_after_s, may_be_done = str(error), 0.0, error.is_sent
                last_answer = None
            else:
                if 200 <= answer.status < 300:
                    return answer
                problem = answer.problem()
                is_final = not problem.is_transient or _is_long(problem)
                if is_final and is_outcome_unknown and not problem.settles_outcome:
                    raise final_error(str(problem), True, request.key)
                if is_final:
                    raise problem
                reason, retry_after_s = str(problem), answer.retry_after_s
                last_answer = problem
                may_be_done = problem.is_outcome_unknown
            if may_be_done:
                is_outcome_unknown = True
                give_up_at = min(give_up_at, began + request.within_s)
        # A request that changes nothing has no unknown outcome.
        changes = request.method in ("POST", "DELETE")
        raise final_error(reason, is_outcome_unknown and changes, request.key, last_answer)

    async def _send_once(self, request: Request) -> Answer:
        """Send a request, and once more if another token may be accepted."""
        authorization = await self.credentials.headers()
        answer = await self._send_with(request, authorization)
        if answer.status == 401 and (other := await self.credentials.renew(authorization)):
            answer = await self._send_with(request, other)
        return answer

    async def _send_with(self, request: Request, authorization: Mapping[str, str]) -> Answer:
        headers = {**request.headers, **authorization}
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
    """Send one request and return its answer. Raise `NotAnswered` if there is none.

    Cancelling this closes the connection.
    """
    # After a redirect, Tornado would turn a POST into a GET, and send the token to any origin.
    request.follow_redirects = False
    request.decompress_response = False
    # A stream is one endless body. Other bodies are bounded by Tornado's buffer size.
    http = SimpleAsyncHTTPClient(force_instance=True, max_body_size=1 << 62)
    assert isinstance(http, SimpleAsyncHTTPClient)
    http.tcp_client = dialer = _Dialer(http.resolver)
    fetched = http.fetch(request, raise_error=False)
    try:
        # Awaiting the future itself would cancel it, and Tornado would log an error.
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
    """Opens and closes the connection of one request. Tornado cannot abandon a request itself."""

    _stream: IOStream | None = None
    _is_over = False

    @property
    def has_connected(self) -> bool:
        """Return whether the connection was established."""
        return self._stream is not None

    async def connect(self, *args: Any, **kwargs: Any) -> IOStream:
        """See `TCPClient.connect`."""
        self._stream = await super().connect(*args, **kwargs)
        if self._is_over:
            self._stream.close()
        return self._stream

    def hang_up(self) -> None:
        """Close the connection now, or as soon as it is established."""
        self._is_over = True
        if self._stream is not None:
            self._stream.close()


def _is_long(problem: ProblemError) -> bool:
    return isinstance(problem, RateLimited) and problem.retry_after_s > _RETRY_AFTER_MAX_S


def pause_s(number: int, retry_after_s: float = 0.0) -> float:
    """Return the pause before retry `number`, counted from 1, in seconds.

    It is random, so that many clients do not retry at the same time.
    """
    longest = min(_PAUSE_S * 2 ** min(number - 1, _DOUBLINGS), _PAUSE_MAX_S)
    return retry_after_s + random.uniform(0, longest)
