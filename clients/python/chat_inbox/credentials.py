"""The token of a client.

No text that is made of a token leaves this module, except the header that carries it: no error,
no `repr` and no log line has it.
"""

from __future__ import annotations

import base64
import ipaddress
import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar, Union
from urllib.parse import unquote, urlsplit

from chat_inbox.errors import TokenUnavailable

#: A token, or a function that returns one. It is called again when the service refuses a token.
TokenSource = Union[str, Callable[[], str]]
#: The same for an asyncio client, whose function may be asynchronous.
AsyncTokenSource = Union[str, Callable[[], Union[str, Awaitable[str]]]]

T = TypeVar("T")
#: The characters of a bearer token (RFC 6750, 2.1). A line break would add a header.
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")


class PlainHttpRefused(ValueError):
    """A token is not sent over plain HTTP to another machine."""


class Credentials(Generic[T]):
    """What authenticates the requests of a client, or nothing. It is never shown.

    `ask` is the function that returns a token, or None. A client that calls it passes its result to
    `take`, within `asking`, one call at a time.
    """

    def __init__(self, base_url: str, source: str | Callable[[], T] | None, plain: bool) -> None:
        """`plain` allows plain HTTP for a token.

        Raise `ValueError` if the token has characters that no token has, or must not be sent to
        this address.
        """
        self.ask: Callable[[], T] | None = None
        self._header: str | None = _basic(base_url)
        if source is None:
            return
        check_address(base_url, plain)
        if callable(source):
            self.ask = source
        else:
            self._header = f"Bearer {check_token(source)}"

    def header(self, refused: str | None = None) -> str | None:
        """Return the value of Authorization that a request carries.

        For None, send no header if there is no `ask`; otherwise call it. `refused` is a value that
        the service refused. Another request may have replaced it since; if not, it is forgotten.
        """
        if self.ask is not None and refused is not None and refused == self._header:
            self._header = None
        return self._header

    def take(self, token: str) -> str:
        """Remember a token that the function returned, and return the value of Authorization."""
        self._header = header = f"Bearer {check_token(token)}"
        return header


@contextmanager
def asking() -> Iterator[None]:
    """Raise `TokenUnavailable` for any error of the function that the block calls."""
    try:
        yield
    except Exception as error:
        raise TokenUnavailable(f"could not get a token: {type(error).__name__}") from error


def check_token(token: object) -> str:
    """Return a token. Raise `ValueError` if it is empty or has characters that no token has."""
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        # Raised without the token: errors end up in logs.
        raise ValueError("the token is empty or has characters that no token has")
    return token


def check_address(base_url: str, plain: bool) -> None:
    """Raise `ValueError` if a token must not be sent to this address.

    Raise `PlainHttpRefused` if that is for lack of TLS, which `plain` permits.
    """
    parts = urlsplit(base_url)
    if parts.username is not None or parts.password is not None:
        raise ValueError("an address with a username or a password cannot have a token, too")
    host = parts.hostname or ""
    if parts.scheme.lower() != "https" and not plain and not is_loopback(host):
        raise PlainHttpRefused(
            f"plain HTTP would show the token to the network on the way to {host}"
        )


def _basic(base_url: str) -> str | None:
    """Return the value of Authorization for the username and the password in an address."""
    parts = urlsplit(base_url)
    if parts.username is None and parts.password is None:
        return None
    pair = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    return f"Basic {base64.b64encode(pair.encode()).decode()}"


def is_loopback(host: str) -> bool:
    """Return whether a host name or an address surely means this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"
