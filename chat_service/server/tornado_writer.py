"""Writes the response to one request on Tornado's connection.

`chat_service.server.exchange` collects the request and decides on the response.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from http.client import responses
from typing import cast

import structlog
from tornado.http1connection import HTTP1Connection
from tornado.httputil import HTTPHeaders, ResponseStartLine

from chat_service.api.types import BodyChunk, Response
from chat_service.server.request_tracker import RequestTracker
from workers.errors import ServiceError

log = structlog.get_logger(__name__)


class TornadoWriter:
    """The response to one request. Messages in it that are not delivered are counted."""

    def __init__(self, connection: HTTP1Connection, tracker: RequestTracker) -> None:
        self._connection = connection
        self._stream = connection.stream
        self._tracker = tracker
        #: What the response depends on, besides itself. Set when the request's head has arrived.
        self.id = ""
        self.method = ""
        #: Whether the client speaks HTTP/1.0.
        self.is_old = False

    async def write(self, response: Response) -> bool:
        """Write a whole response. Return False if the client did not take it."""
        headers = self._all_headers(response)
        start_line = _start_line(response.status)
        if not isinstance(response.body, BodyChunk):
            self._connection.write_headers(start_line, headers)
            # A stream may be open for hours.
            del headers, start_line
            return await self._write_parts(response.body)
        body: bytes | None = response.body.body
        if self.method == "HEAD":
            body = None
        elif response.status not in (204, 304):
            headers["Content-Length"] = str(len(response.body.body))
        written = self._connection.write_headers(start_line, headers, body)
        if not await self._is_delivered(written, response.body.messages):
            return False
        self._connection.finish()
        return True

    def write_early(self, response: Response, will_close: bool) -> None:
        """Write a response of one part before the request's body has arrived.

        With `will_close`, the connection closes once it is written.
        """
        headers = self._all_headers(response)
        if will_close:
            headers["Connection"] = "close"
        body = cast(BodyChunk, response.body).body
        headers["Content-Length"] = str(len(body))
        chunk = None if self.method == "HEAD" else body
        self._connection.write_headers(_start_line(response.status), headers, chunk)
        if will_close:
            # Tornado closes a connection whose request was not read, but writes the response first.
            self._connection.finish()

    def write_unread(self, response: Response) -> None:
        """Write a response of one part to a request that Tornado does not read.

        Tornado closes the connection afterwards.
        """
        headers = self._all_headers(response)
        headers["Connection"] = "close"
        body = cast(BodyChunk, response.body).body
        headers["Content-Length"] = str(len(body))
        lines = [f"{name}: {value}" for name, value in headers.get_all()]
        status = f"HTTP/1.1 {response.status} {responses[response.status]}"
        head = "\r\n".join((status, *lines, "", "")).encode("latin1")
        self._stream.write(head if self.method == "HEAD" else head + body)

    async def _write_parts(self, parts: AsyncIterator[BodyChunk]) -> bool:
        """Write a body in chunks. Ask for each part once the one before it has been sent."""
        async with aclosing(cast(AsyncGenerator[BodyChunk, None], parts)):
            try:
                async for part in parts:
                    written = self._connection.write(part.body)
                    if not await self._is_delivered(written, part.messages):
                        return False
            except ServiceError as error:
                # The status has been sent. Only a body without its end can tell of the failure.
                log.warning("a long read was broken off", id=self.id, reason=str(error))
                self._connection.close()
                return False
        self._connection.finish()
        if self.is_old:
            # HTTP/1.0 has no chunks: only the end of the connection ends a body without a length.
            self._connection.close()
        return True

    async def _is_delivered(self, written: "asyncio.Future[None]", messages: int) -> bool:
        """Wait until the kernel has what was written. Return whether it has.

        Disconnects a client that takes nothing for too long. Counts the `messages` in it as
        undelivered if it fails or is cancelled.
        """
        delivered = False
        try:
            if not written.done():
                async with asyncio.timeout(self._tracker.write_timeout_s):
                    await written
            # Tornado's future also completes if the stream is closed during the write.
            delivered = not self._stream.closed()
        except TimeoutError:
            self._connection.close()
        finally:
            if not delivered:
                self._tracker.on_undelivered(messages)
        return delivered

    def _all_headers(self, response: Response) -> HTTPHeaders:
        headers = HTTPHeaders(response.headers)
        headers["X-Request-ID"] = self.id
        headers["X-Content-Type-Options"] = "nosniff"
        headers["Date"] = self._tracker.date.text()
        return headers


def _start_line(status: int) -> ResponseStartLine:
    return ResponseStartLine("HTTP/1.1", status, responses[status])
