"""Compares sequential posts of the Python clients with plain http.client on one service.

usage: python -m tests.bench.python_client [URL] [--rounds N] [--posts N]

Without a URL, it starts a service of its own. Each round takes all clients in turn, so that slow
changes of the machine meet all of them, and every client has one connection that stays open.
"""

import argparse
import asyncio
import http.client
import json
import secrets
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from chat_inbox import ChatClient, SyncChatClient
from tests.support.server import Server

#: The client that the others are compared with.
PLAIN = "http.client"


@contextmanager
def senders(base: str) -> Iterator[dict[str, Callable[[int], None]]]:
    """Yield a function for each client, which posts that many messages one after the other."""
    parts = urlsplit(base)
    plain = http.client.HTTPConnection(parts.hostname or "", parts.port)

    def post_plainly(count: int) -> None:
        for number in range(count):
            body = json.dumps({"text": f"message {number}", "username": "bench"})
            # A key like that of the clients, so that the service does the same work.
            headers = {
                "Content-Type": "application/json",
                "Idempotency-Key": secrets.token_urlsafe(24),
            }
            plain.request("POST", "/chat", body, headers)
            answer = plain.getresponse()
            assert answer.status == 201
            json.loads(answer.read())

    with SyncChatClient(base) as threaded, asyncio.Runner() as runner:
        concurrent = ChatClient(base)

        def post_threaded(count: int) -> None:
            for number in range(count):
                threaded.post("bench", f"message {number}")

        async def post_concurrent(count: int) -> None:
            for number in range(count):
                await concurrent.post("bench", f"message {number}")

        yield {
            PLAIN: post_plainly,
            "SyncChatClient": post_threaded,
            "ChatClient": lambda count: runner.run(post_concurrent(count)),
        }
        runner.run(concurrent.close())
    plain.close()


def measure(base: str, rounds: int, posts: int) -> dict[str, list[float]]:
    """Return the posts per second of each client, by round."""
    rates: dict[str, list[float]] = {}
    with senders(base) as each:
        for send in each.values():
            send(20)
        for _ in range(rounds):
            for name, send in each.items():
                began = time.perf_counter()
                send(posts)
                rates.setdefault(name, []).append(posts / (time.perf_counter() - began))
    return rates


def report(rates: dict[str, list[float]]) -> str:
    """Return a table: the median rate, and the median of the ratios within a round."""
    lines = ["| client | posts/s | relative to http.client |", "| --- | --- | --- |"]
    for name, found in rates.items():
        ratio = statistics.median(
            own / plain for own, plain in zip(found, rates[PLAIN], strict=True)
        )
        lines.append(f"| {name} | {statistics.median(found):.0f} | {ratio:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("url", nargs="?", help="a running service")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--posts", type=int, default=100)
    options = parser.parse_args()
    if options.url:
        print(report(measure(options.url, options.rounds, options.posts)))
        return
    with tempfile.TemporaryDirectory() as folder, Server(Path(folder)) as server:
        print(report(measure(server.base, options.rounds, options.posts)))


if __name__ == "__main__":
    main()
