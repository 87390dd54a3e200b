"""What `chat doctor` sees of a service from outside: its port, its health, its metrics."""

import json
from collections.abc import AsyncIterator
from typing import Any

from tornado.httpclient import HTTPRequest

from chat_service.cli.session import bare
from chat_service.client.http import Answer, NotAnswered, fetch
from chat_service.server.listener import NAMES, PortTaken, bind
from workers.store.diagnostics import Finding

_WITHIN_S = 2.0
_LOOK = "look at the one that runs with --url"
#: Above these, in seconds, something is wrong.
_LAG_S, _OFFSET_S = 0.1, 1.0
#: What a service that is ready says of itself.
_PARTS = ("database", "indexes", "workers", "accepting")


async def port(
    host: str, number: int, names: tuple[str, str] = NAMES, *, may_serve: bool = False
) -> Finding:
    """Whether a service could listen there. `names` are the settings'.

    With `may_serve` it is all right as well that a service of ours listens there already.
    """
    if number == 0:
        return Finding("port", "ok", "any that is free")
    address = f"{host}:{number}"
    try:
        for each in bind(host, number, names):
            each.close()
    except PortTaken as error:
        near = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        readiness = await _readiness(f"http://{f'[{near}]' if ':' in near else near}:{number}")
        if readiness is None:
            return Finding("port", "fail", str(error))
        said = f"{address}: a service of ours answers there"
        if may_serve:
            return Finding("port", "ok", said)
        detail = f"{said}, so a second one cannot start; {_LOOK}, or choose another with {names[1]}"
        return Finding("port", "fail", detail)
    return Finding("port", "ok", f"{address} is free")


async def service(url: str) -> AsyncIterator[Finding]:
    """A running service: alive, ready, and what it counts."""
    url = url.rstrip("/")
    shown = bare(url)
    try:
        live = await _get(f"{url}/livez")
    except NotAnswered as error:
        detail = f"{shown}: {error}; is it running, and is this the address?"
        yield Finding("alive", "fail", detail)
        return
    if live.status != 200:
        yield Finding("alive", "fail", f"{shown}/livez answers {live.status}: is this the service?")
        return
    yield Finding("alive", "ok", shown)
    readiness = await _readiness(url)
    if readiness is None:
        yield Finding("ready", "fail", f"{shown}/readyz does not answer as a service of ours does")
        return
    lacking = [part for part in _PARTS if not readiness.get(part)]
    if lacking:
        yield Finding("ready", "fail", f"not: {', '.join(lacking)}; its log says more")
    else:
        yield Finding("ready", "ok", ", ".join(_PARTS))
    try:
        answer = await _get(f"{url}/metrics")
        if answer.status != 200:
            detail = (
                f"{shown}/metrics answers {answer.status}: the settings `ops` and `ops_port` say "
                "where they are"
            )
            yield Finding("metrics", "warn", detail)
            return
        metrics = _values(answer.body.decode())
    except (NotAnswered, ValueError) as error:
        yield Finding("metrics", "warn", f"{shown}/metrics: {error}")
        return
    for finding in _judged(metrics):
        yield finding


def _judged(metrics: dict[str, float]) -> list[Finding]:
    away = metrics.get("chat_database_away", 0)
    full = metrics.get("chat_storage_full", 0)
    restarts = metrics.get("chat_process_restarts_total", 0)
    workers = metrics.get("chat_worker_restarts_total", 0)
    lag = metrics.get("chat_event_loop_lag_seconds", 0)
    offset = metrics.get("chat_clock_offset_seconds", 0)
    return [
        Finding("its database", "fail", "does not answer: requests are refused until it does")
        if away
        else Finding("its database", "ok", "answers"),
        Finding("its disk", "fail", "nearly full: posts are refused with 507 until there is room")
        if full
        else Finding("its disk", "ok", "has room"),
        Finding(
            "restarts",
            "warn" if restarts or workers else "ok",
            f"{restarts:.0f} of processes, {workers:.0f} of workers"
            + ("; its log says why" if restarts or workers else ""),
        ),
        Finding(
            "loop lag",
            "warn" if lag > _LAG_S else "ok",
            f"{lag * 1000:.0f} ms" + ("; the processor is short" if lag > _LAG_S else ""),
        ),
        Finding(
            "its clock",
            "warn" if abs(offset) > _OFFSET_S else "ok",
            f"the database's is {offset * 1000:+.0f} ms off"
            + ("; mend NTP" if abs(offset) > _OFFSET_S else ""),
        ),
    ]


async def _readiness(url: str) -> dict[str, Any] | None:
    """What /readyz says, where it is our service that says it."""
    try:
        document = json.loads((await _get(f"{url}/readyz")).body)
    except (NotAnswered, ValueError):
        return None
    return document if isinstance(document, dict) and "accepting" in document else None


async def _get(url: str) -> Answer:
    return await fetch(HTTPRequest(url, connect_timeout=_WITHIN_S, request_timeout=_WITHIN_S))


def _values(exposition: str) -> dict[str, float]:
    """Each metric's largest value, over its labels."""
    found: dict[str, float] = {}
    for line in exposition.splitlines():
        if line and not line.startswith("#"):
            name = line.split("{")[0].split(" ")[0]
            value = float(line.rpartition(" ")[2])
            found[name] = max(found.get(name, value), value, key=abs)
    return found
