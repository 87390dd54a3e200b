"""Requests of a lone client: one connection, each request sent when the last one is answered."""

import socket
import statistics
import time

from tests.bench.results import LoneRound

_POST = b'{"text": "' + b"x" * 32 + b'", "username": "lone", "timeout": 3600}'


def run(port: int, seconds: float) -> LoneRound:
    """Post a message, read it, and read the empty inbox, over and over. Return each one's p50.

    Raises AssertionError if an answer is not the expected one.
    """
    headers = f"Content-Type: application/json\r\nContent-Length: {len(_POST)}\r\n"
    post = _head("POST /chat", headers) + _POST
    read = _head("GET /chat/lone")
    times: dict[str, list[float]] = {"post": [], "read": [], "empty": []}
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _ask(connection, read)
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            for kind, request in (("post", post), ("read", read), ("empty", read)):
                began = time.perf_counter()
                body = _ask(connection, request)
                times[kind].append(time.perf_counter() - began)
                assert (body.count(b'"text"'), body.count(b'"id"')) == {
                    "post": (0, 1),
                    "read": (1, 1),
                    "empty": (0, 0),
                }[kind], f"the answer to {kind} was {body!r}"
    return LoneRound(**{f"{kind}_ms": statistics.median(its) * 1e3 for kind, its in times.items()})


def _head(what: str, headers: str = "") -> bytes:
    return f"{what} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n".encode()


def _ask(connection: socket.socket, request: bytes) -> bytes:
    """Send a request. Return the body of its answer, which has to have a Content-Length."""
    connection.sendall(request)
    answer = b""
    while True:
        answer += connection.recv(65536)
        head, is_whole, body = answer.partition(b"\r\n\r\n")
        if is_whole:
            length = head.lower().partition(b"content-length:")[2].split()[0]
            if len(body) == int(length):
                return body
