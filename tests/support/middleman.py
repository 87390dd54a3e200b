"""A proxy between a client and a service that breaks connections and loses answers."""

import asyncio
import re
from contextlib import suppress
from types import TracebackType

from chat_service.service import Service


class Middleman:
    """Forwards between client and service, and breaks connections. Use as an async context."""

    def __init__(self, port: int) -> None:
        self._target = port
        #: Lose this many answers: the service has executed the request, and its client sees a
        #: broken connection.
        self.lose = 0
        #: Answers to give instead of the service's.
        self.answers: list[bytes] = []
        #: Answer a request whose head has such a text with this, instead of passing it on.
        self.refusals: dict[str, bytes] = {}
        #: The headers of the requests seen so far.
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
            refusal = next(
                (self.refusals[text] for text in self.refusals if text in head.decode()), b""
            )
            if refusal or self.answers:
                # Bytes left unread would reset the connection, and the answer would be lost.
                await client.readexactly(_body_bytes(head))
                back.write(_closing(refusal or self.answers.pop(0)))
                back.close()
                return
            server, forth = await asyncio.open_connection("127.0.0.1", self._target)
            self._writers.append(forth)
            # One request for each connection, so that each of them can be counted and broken.
            forth.write(head[:-2] + b"Connection: close\r\n\r\n")
            sending = asyncio.create_task(_pump(client, forth))
            if self.lose:
                self.lose -= 1
                answer = await server.read()
                back.write(answer[: len(answer) // 2])
                back.close()
            else:
                await _pump(server, back)
            await sending


def _closing(answer: bytes) -> bytes:
    """Return an answer that announces the end of its connection.

    Without that, a client may send its next request before it sees the end, and lose it.
    """
    head, end, body = answer.partition(b"\r\n\r\n")
    if end and b"\r\nConnection: close" not in head:
        head += b"\r\nConnection: close"
    return head + end + body


def _body_bytes(head: bytes) -> int:
    """Return the length of the body that follows this head."""
    match = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    return int(match[1]) if match else 0


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while chunk := await reader.read(65536):
            writer.write(chunk)
            await writer.drain()
    # Tell the other end that this one has closed.
    writer.close()


def base_of(service: Service) -> str:
    """Return the base URL of a service."""
    return f"http://127.0.0.1:{service.port}"


def answer(status: int, body: bytes = b"", *lines: bytes) -> bytes:
    """Return an answer to give instead of the service's, with more header lines."""
    more = b"".join(line + b"\r\n" for line in lines)
    head = b"HTTP/1.1 %d No\r\nRetry-After: 0\r\nConnection: close\r\n%bContent-Length: %d\r\n\r\n"
    return head % (status, more, len(body)) + body
