"""What both clients share of httpx: requests, timeouts, errors and transports.

The clients use the transports of httpx without its `Client`: that would read the proxies and the
passwords of the environment, keep cookies and follow redirects, and takes longer for each request.
"""

from __future__ import annotations

import os
import socket
import ssl
import threading
import weakref
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

import httpx

from chat_inbox.steps import NotAnswered, Request
from chat_inbox.version import __version__

#: Timeout for connecting, in seconds.
_CONNECT_S = 10.0
#: An idle connection is closed after this many seconds: sooner than services and proxies close it.
_IDLE_S = 15.0
#: A stream that is silent for this long, in seconds, is dead: the service sends every 15 s.
SILENCE_S = 45.0
#: The events of httpcore that tell of a new connection.
_CONNECTED = (
    ".connect_tcp.complete",
    ".connect_unix_socket.complete",
    ".start_tls.complete",
)
_AGENT = f"chat-inbox-client/{__version__}".encode()
_UNSENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)


class Address:
    """The address of a service. Builds the httpx requests to it."""

    def __init__(self, base_url: str) -> None:
        """Raise `ValueError` if it is no address of HTTP."""
        parts = urlsplit(base_url)
        if parts.scheme.lower() not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{_shown(base_url)!r} must begin with http:// or https://")
        host = parts.netloc.rpartition("@")[2]
        self.is_secure = parts.scheme.lower() == "https"
        self.base_url = f"{parts.scheme}://{host}{parts.path.rstrip('/')}"
        # The same few paths are used again and again, and parsing an address takes long.
        self._url = lru_cache(maxsize=256)(self._parse)

    def _parse(self, path: str) -> httpx.URL:
        return httpx.URL(self.base_url + path)

    def not_answered(self, error: httpx.TransportError) -> NotAnswered:
        """Return `not_answered` with this address, which most often is what is wrong."""
        failed = not_answered(error)
        return NotAnswered(f"no answer from {self.base_url}: {failed}", failed.is_sent)

    def build(self, request: Request, authorization: str | None, answer_s: float) -> httpx.Request:
        """Return the request that httpx sends. Each part of the answer may take `answer_s`."""
        headers = [(b"User-Agent", _AGENT), (b"Accept-Encoding", b"identity")]
        # As bytes, so that the service judges characters outside ASCII.
        headers += [(name.encode(), text.encode()) for name, text in request.headers.items()]
        if authorization is not None:
            headers.append((b"Authorization", authorization.encode()))
        if request.body:
            headers.append((b"Content-Type", b"application/json"))
        timeouts = {"connect": _CONNECT_S, "read": answer_s, "write": answer_s, "pool": None}
        return httpx.Request(
            request.method,
            self._url(request.path),
            headers=headers,
            content=request.body,
            extensions={"timeout": timeouts},
        )

    def transport_options(self, connections: int | None) -> tuple[ssl.SSLContext, httpx.Limits]:
        """Return the TLS settings and the limits of a transport."""
        limits = httpx.Limits(
            max_connections=connections,
            max_keepalive_connections=connections,
            keepalive_expiry=_IDLE_S,
        )
        if not self.is_secure:
            # Loading certificates takes long, and none is needed.
            return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), limits
        context = httpx.create_ssl_context()
        # The authorities of the machine, in addition to those of httpx.
        context.load_default_certs()
        return context, limits


class Sockets:
    """The connections of a transport for threads, to wake the threads that wait for answers.

    Closing a socket wakes no thread that reads from it, and tells the service nothing before that.
    """

    def __init__(self) -> None:
        self._streams: weakref.WeakSet[Any] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._is_shut_down = False

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Add each new connection. This is a value for the extension "trace" of a request."""
        if event.endswith(_CONNECTED):
            self.add(info["return_value"])

    def add(self, stream: Any) -> None:
        """Add a connection, which is None if the transport is not httpx's."""
        if stream is None:
            return
        with self._lock:
            self._streams.add(stream)
        if self._is_shut_down:
            shut_down(stream)

    def shut_down(self) -> None:
        """End all connections, also those to come."""
        self._is_shut_down = True
        with self._lock:
            streams = list(self._streams)
        for stream in streams:
            shut_down(stream)


def shut_down(stream: Any) -> None:
    """End the connection of a network stream of httpcore, which another thread may read from."""
    raw = stream.get_extra_info("socket")
    if raw is not None:
        with suppress(OSError, ValueError):
            raw.shutdown(socket.SHUT_RDWR)


def not_answered(error: httpx.TransportError) -> NotAnswered:
    """Return the reason for which a request got no answer.

    Raise `ValueError` if it is that the request cannot be sent at all.
    """
    if isinstance(error, (httpx.LocalProtocolError, httpx.UnsupportedProtocol)):
        raise ValueError(f"the request is not valid HTTP: {error}") from error
    return NotAnswered(_reason(error), not isinstance(error, _UNSENT))


def _reason(error: BaseException) -> str:
    """Return the text of the operating system's error if there is one: it says the most."""
    if isinstance(error, httpx.TimeoutException):
        return "could not connect in time" if isinstance(error, _UNSENT) else "no answer in time"
    reason = str(error) or type(error).__name__
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ConnectionError) and cause.errno is not None:
            # asyncio replaces the text.
            reason = os.strerror(cause.errno)
        elif isinstance(cause, OSError) and cause.strerror:
            reason = cause.strerror
        cause = cause.__cause__ or cause.__context__
    return reason


def _shown(base_url: str) -> str:
    """Return an address without its password."""
    return base_url.rpartition("@")[2]
