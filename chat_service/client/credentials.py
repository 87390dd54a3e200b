"""The token of a client. Used by `chat_service.client.http` and `chat_service.client.stream`.

No text that is made of a token leaves this module, except the header that carries it: no error,
no `repr` and no log line has it.
"""

import asyncio
import ipaddress
import re
from collections.abc import Awaitable, Callable
from typing import TypeAlias
from urllib.parse import urlsplit

from chat_service.client.errors import TokenUnavailable

#: A token, or a function that returns one. It is called again when the service refuses a token.
TokenSource: TypeAlias = str | Callable[[], Awaitable[str]]

#: The characters of a bearer token (RFC 6750, 2.1). A line break would add a header.
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")


class PlainHttpRefused(ValueError):
    """A token is not sent over plain HTTP to another machine."""


def check_token(token: str) -> str:
    """Return a token. Raise `ValueError` if it is empty or has characters that no token has."""
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        # Raised without the token: errors end up in logs.
        raise ValueError("the token is empty or has characters that no token has")
    return token


class Credentials:
    """The token that a client sends, or none. It is never shown."""

    def __init__(self, source: TokenSource | None) -> None:
        """Raise `ValueError` if a given token has characters that no token has."""
        self._source = source
        self._token = check_token(source) if isinstance(source, str) else None
        self._asking = asyncio.Lock()

    async def headers(self) -> dict[str, str]:
        """Return the headers that authenticate a request: none if there is no token.

        Raise `TokenUnavailable` if the function that returns the token fails, or returns none.
        """
        if self._source is None:
            return {}
        async with self._asking:
            if self._token is None:
                assert callable(self._source)
                try:
                    self._token = check_token(await self._source())
                except Exception as error:
                    reason = f"could not get a token: {type(error).__name__}"
                    raise TokenUnavailable(reason) from error
            return {"Authorization": f"Bearer {self._token}"}

    async def renew(self, refused: dict[str, str]) -> dict[str, str] | None:
        """Return other headers than these, which were refused, or None if there are no others.

        Raise `TokenUnavailable` as `headers` does.
        """
        if not callable(self._source):
            return None
        # Another request may have renewed the token in the meantime.
        if refused.get("Authorization") == f"Bearer {self._token}":
            self._token = None
        headers = await self.headers()
        return None if headers == refused else headers


def check_address(base_url: str, allow_plain_http: bool) -> None:
    """Raise `ValueError` if a token must not be sent to this address.

    Raise `PlainHttpRefused` if that is for lack of TLS.
    """
    parts = urlsplit(base_url)
    if parts.username is not None or parts.password is not None:
        # Tornado would send these instead of the token.
        raise ValueError("an address with a username or a password cannot have a token, too")
    host = parts.hostname or ""
    if parts.scheme.lower() != "https" and not allow_plain_http and not is_loopback(host):
        raise PlainHttpRefused(
            f"plain HTTP would show the token to the network on the way to {host}"
        )


def is_loopback(host: str) -> bool:
    """Return whether a host name or an address surely means this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"
