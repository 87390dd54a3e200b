"""A middleman between a client and a service, who has connections break and answers be lost."""

import asyncio
from contextlib import suppress
from types import TracebackType

from chat_service.service import Service


class Middleman:
    """Stands between client and service and has connections break. Use as an async context."""

    def __init__(self, port: int) -> None:
        self._target = port
        #: So many answers are lost: the service has carried the request out, its client sees a cut.
        self.lose = 0
        #: Answers that are given in the service's place.
        self.answers: list[bytes] = []
        #: HeaderCache of the requests that were seen.
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


def base_of(service: Service) -> str:
    """Where a service is."""
    return f"http://127.0.0.1:{service.port}"


def answer(status: int, body: bytes = b"") -> bytes:
    """An answer in the service's place."""
    head = b"HTTP/1.1 %d No\r\nRetry-After: 0\r\nContent-Length: %d\r\n\r\n"
    return head % (status, len(body)) + body
