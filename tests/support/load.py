"""A keep-alive connection that is cheap enough to put much load on a service."""

import asyncio
import json
from typing import Any
from urllib.parse import quote


class Connection(asyncio.Protocol):
    """One connection with one request at a time."""

    def __init__(self) -> None:
        self._buffer = b""
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        #: Whether it can carry no further request.
        self.closed = False
        self._transport: asyncio.Transport

    @classmethod
    async def open(cls, port: int, host: str = "127.0.0.1") -> "Connection":
        """Connect to a service, by default on this host."""
        loop = asyncio.get_running_loop()
        return (await loop.create_connection(cls, host, port))[1]

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()

    async def post(self, username: str, text: str, lifetime_s: int = 3600) -> str:
        """Post a message, which must be accepted. Return its id."""
        fields = {"text": text, "username": username, "timeout": lifetime_s}
        body = json.dumps(fields).encode()
        head = f"POST /chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        status, answer = await self.ask(head.encode() + body)
        assert status == 201, (status, answer)
        message_id = json.loads(answer)["id"]
        assert isinstance(message_id, str)
        return message_id

    async def read(self, username: str) -> list[dict[str, Any]]:
        """Read an inbox. The read must be answered."""
        path = quote(username, safe="")
        status, answer = await self.ask(
            f"GET /chat/{path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        )
        assert status == 200, (status, answer)
        messages: list[dict[str, Any]] = json.loads(answer)
        return messages

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Send a request unchanged. Return the status and body of its answer."""
        if self.closed:
            raise ConnectionResetError("closed by the service")
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, separator, rest = self._buffer.partition(b"\r\n\r\n")
        if not separator:
            return
        body = _body(head.lower(), rest)
        if body is not None and self._answer is not None:
            self._buffer = b""
            self.closed = self.closed or b"\r\nconnection: close" in head.lower()
            self._answer.set_result((int(head[9:12]), body))

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc or ConnectionResetError("closed by the service"))


def _body(head: bytes, rest: bytes) -> bytes | None:
    """Return the body, of fixed length or chunked, once it is complete."""
    if b"transfer-encoding: chunked" in head:
        return _joined_chunks(rest) if rest.endswith(b"0\r\n\r\n") else None
    length = int(head.partition(b"content-length: ")[2].split(b"\r\n")[0])
    return rest if len(rest) == length else None


def _joined_chunks(rest: bytes) -> bytes | None:
    parts: list[bytes] = []
    while True:
        size_line, separator, rest = rest.partition(b"\r\n")
        size = int(size_line, 16) if separator else -1
        if size < 0 or len(rest) < size + 2:
            return None
        if size == 0:
            return b"".join(parts)
        parts.append(rest[:size])
        rest = rest[size + 2 :]
