"""The memory of a client that waits: what Python allocates for it, on any machine.

`scripts/bench --only waits` has the resident memory.
"""

import gc
import re
import time
import tracemalloc
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from config import Settings
from tests.support.counted import CountedService
from tests.support.raw import HOST, get, message, post

KIB = 1 << 10
CLIENTS = 400
#: These begin to wait before anything is measured, because the first one needs more.
FIRST = 20
UPGRADE = (
    b"Upgrade: websocket",
    b"Connection: Upgrade",
    b"Sec-WebSocket-Version: 13",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)
#: What a browser sends, and nobody needs while the client waits.
BROWSER = tuple(b"Sec-Header-%d: %b" % (number, b"x" * 90) for number in range(12))
KINDS = {
    "a long poll": (b"?wait=25", ()),
    "an event stream": (b"/stream", BROWSER),
    "a WebSocket": (b"/stream", (*UPGRADE, *BROWSER)),
}
#: The most KiB for each, beyond those of an idle connection: 10% above what was counted, on the
#: Python version with the highest count. Lower them with the counts.
LIMITS = {"a long poll": 2.0, "an event stream": 14.0, "a WebSocket": 13.9}
TEXT_BYTES = 60 * KIB


@contextmanager
def counted(settings: Settings, folder: Path) -> Iterator[CountedService]:
    """Run a service with idle connections."""
    with CountedService(settings, folder) as service:
        service.connect(FIRST + CLIENTS)
        service.ask([get(b"/chat/idle-%d" % each) for each in range(FIRST + CLIENTS)])
        yield service


def begin_to_wait(service: CountedService, kind: str, numbers: range) -> None:
    """Let clients wait on connections of these numbers, and return when the service has them."""
    path, headers = KINDS[kind]
    for number in numbers:
        service.sockets[number].sendall(get(b"/chat/waits-%d%b" % (number, path), *headers))
    name, _, value = HOST.decode().partition(": ")
    metrics = urllib.request.Request(
        f"http://127.0.0.1:{service.port}/metrics", headers={name: value}
    )

    def waiting() -> float:
        with urllib.request.urlopen(metrics) as answer:
            found = re.search(r"^chat_waiters (\S+)", answer.read().decode(), re.MULTILINE)
        return float(found[1]) if found else 0

    soon(lambda: waiting() >= numbers.stop)


def soon(check: Callable[[], bool], within_s: float = 60) -> None:
    """Wait until this is so."""
    deadline = time.monotonic() + within_s
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@contextmanager
def allocations() -> Iterator[Callable[[], int]]:
    """Yield a function that returns how many bytes were allocated since then."""
    gc.collect()
    tracemalloc.start()
    try:

        def allocated() -> int:
            gc.collect()
            return tracemalloc.get_traced_memory()[0]

        yield allocated
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", KINDS)
def test_a_waiting_client_needs_little_memory(
    settings: Settings, tmp_path: Path, kind: str
) -> None:
    with counted(settings, tmp_path) as service:
        begin_to_wait(service, kind, range(FIRST))
        with allocations() as allocated:
            begin_to_wait(service, kind, range(FIRST, FIRST + CLIENTS))
            assert allocated() / CLIENTS / KIB < LIMITS[kind]


@pytest.mark.parametrize("kind", ["an event stream", "a WebSocket"])
def test_a_stream_keeps_no_text_that_it_has_delivered(
    settings: Settings, tmp_path: Path, kind: str
) -> None:
    with counted(settings, tmp_path) as service:
        streams = range(FIRST)
        begin_to_wait(service, kind, streams)
        posts = [post(message(f"waits-{each}", "x" * TEXT_BYTES)) for each in streams]
        with allocations() as allocated:
            for number, sock in enumerate(service.sockets[:FIRST]):
                sock.settimeout(30)
                service.sockets[-1].sendall(posts[number])
                service.sockets[-1].recv(KIB)
                received = b""
                while b'x"' not in received[-KIB:]:
                    received += sock.recv(TEXT_BYTES)
            del received
            soon(lambda: allocated() / FIRST < TEXT_BYTES / 2)
