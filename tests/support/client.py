"""A client of the service over real HTTP, with methods for its users' actions."""

import json
from typing import Any, NamedTuple
from urllib.parse import quote

from tornado.httpclient import AsyncHTTPClient, HTTPResponse
from tornado.simple_httpclient import SimpleAsyncHTTPClient

from tests.support.contract import Contract, contract

#: Tornado's status if there was no complete answer.
NO_ANSWER = 599


class Received(NamedTuple):
    """One message as received."""

    text: str
    id: str


class ChatClient:
    """Posts to and reads from one service, on up to `limit` connections."""

    def __init__(self, base: str, limit: int = 64) -> None:
        self.base = base
        #: The OpenAPI document by which every answer is checked. None for a port that serves only
        #: part of it.
        self.contract: Contract | None = contract()
        self._http: AsyncHTTPClient = SimpleAsyncHTTPClient(
            force_instance=True, max_clients=limit, max_body_size=1 << 30
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    async def request(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> HTTPResponse:
        """Send any request. Underscores in header names stand for hyphens. Never raise for a
        status.

        The OpenAPI document must allow the answer.
        """
        response = await self._http.fetch(
            self.base + path,
            method=method,
            body=body,
            headers={name.replace("_", "-"): value for name, value in headers.items()},
            allow_nonstandard_methods=True,
            raise_error=False,
            request_timeout=60,
            connect_timeout=10,
        )
        if response.code != NO_ANSWER and self.contract is not None:
            self.contract.check(method, path, response.code, response.headers, response.body)
        return response

    async def post(self, username: str, text: str, lifetime_s: int | None = None) -> str:
        """Post a message, which must be accepted. Return its id."""
        fields: dict[str, Any] = {"text": text, "username": username}
        if lifetime_s is not None:
            fields["timeout"] = lifetime_s
        response = await self.request("POST", "/chat", json.dumps(fields).encode())
        assert response.code == 201, (response.code, response.body)
        message_id = json.loads(response.body)["id"]
        assert isinstance(message_id, str)
        return message_id

    async def read(self, username: str, query: str = "") -> list[Received]:
        """Read an inbox. The read must be answered."""
        response = await self.request("GET", f"/chat/{quote(username, safe='')}{query}")
        assert response.code == 200, (response.code, response.body)
        return [Received(**message) for message in json.loads(response.body)]

    async def texts(self, username: str, query: str = "") -> list[str]:
        """Read an inbox, and return only the texts."""
        return [message.text for message in await self.read(username, query)]

    async def metric(self, name: str) -> float:
        """Return the value of a metric: of one with these labels, or the sum over its labels."""
        response = await self.request("GET", "/metrics")
        lines = response.body.decode().splitlines()
        samples = [line.rpartition(" ") for line in lines if not line.startswith("#")]
        if "{" in name:
            return next(float(value) for sample, _, value in samples if sample == name)
        return sum(float(value) for sample, _, value in samples if sample.split("{")[0] == name)
