"""Checks of a service from outside: its port, its health and its metrics."""

import json
from collections.abc import AsyncIterator
from typing import Any

from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest, HTTPResponse
from tornado.httputil import HTTPInputError

from chat_service.cli.credentials import HOW_TO_GIVE_ONE
from chat_service.cli.session import without_credentials
from chat_service.server.listener import NAMES, PortTaken, bind
from workers.store.finding import Finding

_TIMEOUT_S = 2.0
_ADVICE = "check the running service with --url"
#: A larger event loop lag or clock offset, in seconds, is a warning.
_LAG_S, _OFFSET_S = 0.1, 1.0
#: A time, in seconds since 1970, that never comes.
_NEVER = 9_999_999_999
#: The fields of /readyz that are true if the service is ready.
_PARTS = ("database", "indexes", "workers", "accepting")


async def check_port(
    host: str,
    number: int,
    names: tuple[str, str] = NAMES,
    *,
    scheme: str = "http",
    may_serve: bool = False,
) -> Finding:
    """Check that a service can listen on an address. `names` are the options for host and port.

    With `may_serve`, a chat service may already listen there, with this scheme.
    """
    if number == 0:
        return Finding("port", "ok", "a free port is chosen")
    address = f"{host}:{number}"
    try:
        for each in bind(host, number, names):
            each.close()
    except PortTaken as error:
        if await find_service(host, number, scheme) is None:
            return Finding("port", "fail", str(error))
        state = f"{address}: a chat service answers there"
        if may_serve:
            return Finding("port", "ok", state)
        detail = (
            f"{state}, so a second one cannot start; {_ADVICE}, or choose another port with "
            f"{names[1]}"
        )
        return Finding("port", "fail", detail)
    return Finding("port", "ok", f"{address} is free")


async def find_service(host: str, number: int, scheme: str) -> str | None:
    """Return the URL of the chat service that listens on an address, or None if none answers."""
    near = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    url = f"{scheme}://{f'[{near}]' if ':' in near else near}:{number}"
    # A service's own certificate seldom has this name, and nothing secret is sent.
    return None if await _readiness(url, is_verified=False) is None else url


async def check_service(url: str, token: str | None) -> AsyncIterator[Finding]:
    """Check that a running service is alive and ready, and check its metrics.

    Its metrics may need a token that has the right `ops`.
    """
    url = url.rstrip("/")
    shown = without_credentials(url)
    try:
        live = await _get(f"{url}/livez")
    except _NotAnswered as error:
        detail = f"{shown}: {error}; check that it is running and that this is its address"
        yield Finding("alive", "fail", detail)
        return
    if live.code != 200:
        detail = f"{shown}/livez answered {live.code}; check that this is the service's address"
        yield Finding("alive", "fail", detail)
        return
    yield Finding("alive", "ok", shown)
    readiness = await _readiness(url)
    if readiness is None:
        yield Finding("ready", "fail", f"{shown}/readyz does not answer as a chat service does")
        return
    lacking = [part for part in _PARTS if not readiness.get(part)]
    if lacking:
        yield Finding("ready", "fail", f"not: {', '.join(lacking)}; see its log")
    else:
        yield Finding("ready", "ok", ", ".join(_PARTS))
    try:
        answer = await _get(f"{url}/metrics", token)
        if answer.code in (401, 403):
            lacks = "the token lacks the right" if answer.code == 403 else "they need a token with"
            detail = f"{shown}/metrics answered {answer.code}: {lacks} `ops`"
            yield Finding("metrics", "warn", f"{detail}; {HOW_TO_GIVE_ONE}")
            return
        if answer.code != 200:
            detail = (
                f"{shown}/metrics answered {answer.code}; the settings `ops` and `ops_port` "
                "determine where metrics are served"
            )
            yield Finding("metrics", "warn", detail)
            return
        metrics = _values(answer.body.decode())
    except (_NotAnswered, ValueError) as error:
        yield Finding("metrics", "warn", f"{shown}/metrics: {error}")
        return
    for finding in [*_check_metrics(metrics), *await _check_state(url, token)]:
        yield finding


def _check_metrics(metrics: dict[str, float]) -> list[Finding]:
    unavailable = metrics.get("chat_database_away", 0)
    full = metrics.get("chat_storage_full", 0)
    restarts = metrics.get("chat_process_restarts_total", 0)
    workers = metrics.get("chat_worker_restarts_total", 0)
    mongod = metrics.get("chat_mongod_restarts_total", 0)
    lag = metrics.get("chat_event_loop_lag_seconds", 0)
    offset = metrics.get("chat_clock_offset_seconds", 0)
    return [
        Finding("its database", "fail", "unavailable; requests are refused until it is back")
        if unavailable
        else Finding("its database", "ok", "answers"),
        Finding(
            "its storage",
            "fail",
            "full; posts are refused with 507 until the database's disk has space, "
            "or the database uses less than storage_max_bytes",
        )
        if full
        else Finding("its storage", "ok", "has space"),
        Finding(
            "restarts",
            "warn" if restarts or workers or mongod else "ok",
            f"{restarts:.0f} of processes, {workers:.0f} of workers, {mongod:.0f} of mongod"
            + ("; see its log for the causes" if restarts or workers or mongod else ""),
            "" if restarts or workers else "mongod-does-not-start",
        ),
        Finding(
            "loop lag",
            "warn" if lag > _LAG_S else "ok",
            f"{lag * 1000:.0f} ms" + ("; the processor is overloaded" if lag > _LAG_S else ""),
        ),
        Finding(
            "its clock",
            "warn" if abs(offset) > _OFFSET_S else "ok",
            f"the database's clock differs by {offset * 1000:+.0f} ms"
            + ("; fix time synchronization (NTP)" if abs(offset) > _OFFSET_S else ""),
        ),
    ]


async def _check_state(url: str, token: str | None) -> list[Finding]:
    """Return what the dashboard says about the last minutes. An older service says nothing."""
    try:
        # No sample is newer than that, so the answer is short.
        answer = await _get(f"{url}/ops/history?since={_NEVER}", token)
        conditions = json.loads(answer.body)["state"]["conditions"]
    except (_NotAnswered, ValueError, KeyError, TypeError):
        return []
    return [
        Finding(
            "its state",
            "warn" if each["severity"] in ("degraded", "recovering") else "fail",
            f"{each['says']} {each['next_step']}",
            each["runbook"],
        )
        for each in conditions
    ] or [Finding("its state", "ok", "nothing that the service judges is wrong")]


async def _readiness(url: str, is_verified: bool = True) -> dict[str, Any] | None:
    """Return the document of /readyz, or None if it is not that of a chat service."""
    try:
        document = json.loads((await _get(f"{url}/readyz", is_verified=is_verified)).body)
    except (_NotAnswered, ValueError):
        return None
    return document if isinstance(document, dict) and "accepting" in document else None


class _NotAnswered(Exception):
    """There is no complete answer."""


async def _get(url: str, token: str | None = None, *, is_verified: bool = True) -> HTTPResponse:
    """Return the answer of any status. Raise `_NotAnswered` if there is none."""
    request = HTTPRequest(
        url,
        headers={"Authorization": f"Bearer {token}"} if token else {},
        connect_timeout=_TIMEOUT_S,
        request_timeout=_TIMEOUT_S,
        validate_cert=is_verified,
        # Tornado would send the token to any origin.
        follow_redirects=False,
    )
    try:
        return await AsyncHTTPClient().fetch(request, raise_error=False)
    except (OSError, HTTPClientError, HTTPInputError, ValueError) as error:
        raise _NotAnswered(str(error) or type(error).__name__) from error


def _values(exposition: str) -> dict[str, float]:
    """Return each metric's value with the largest magnitude over all labels."""
    found: dict[str, float] = {}
    for line in exposition.splitlines():
        if line and not line.startswith("#"):
            name = line.split("{")[0].split(" ")[0]
            value = float(line.rpartition(" ")[2])
            found[name] = max(found.get(name, value), value, key=abs)
    return found
