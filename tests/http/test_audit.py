"""The audit log: what it says of access, and what it never says."""

import json
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from chat_service.service import Service
from tests.conftest import StartService
from tests.support.access import TOKENS, ask, bearer, everybody, read, send, write
from tests.support.client_limits import EVE, FIVE, PROXIED, WAYS, connected
from tests.support.raw import get, request
from tests.support.waiting import eventually

EVENTS = ("denied", "login", "reload", "revoked", "limited")


def audited(logs: list[Any]) -> list[dict[str, Any]]:
    """Return the lines of the audit log."""
    return [line for line in logs if line["event"] in EVENTS]


async def test_a_denial_says_who_was_denied_what(guarded: Service, path: bytes) -> None:
    with capture_logs() as logs:
        answer = await ask(guarded, read("alice", bearer("bob"), path))
        await ask(guarded, send("alice", bearer("eve"), path))
        await ask(guarded, read("alice", path))
        await ask(guarded, read("alice", bearer("nobody"), path))
    first, second, third, fourth = audited(logs)
    assert first["event"] == "denied"
    assert (first["subject"], first["right"], first["status"]) == ("bob", "read", 403)
    assert first["id"] == answer.headers["x-request-id"]
    assert (second["subject"], second["right"]) == ("eve", "send")
    # The same inbox has the same name in each line, and it is not its own.
    assert first["inbox"] == second["inbox"] == third["inbox"] != "alice"
    assert len({line["client"] for line in (first, second, third, fourth)}) == 1
    assert (third["status"], fourth["status"]) == (401, 401)
    assert "subject" not in third
    assert "subject" not in fourth


async def test_a_batch_is_audited_by_message(guarded: Service) -> None:
    body = json.dumps([{"username": name, "text": "x"} for name in ("bob", "eve", "amy")])
    with capture_logs() as logs:
        await ask(guarded, request(b"POST", b"/chat/batch", bearer("eve"), body=body.encode()))
    lines = audited(logs)
    assert [line["subject"] for line in lines] == ["eve", "eve"]
    assert lines[0]["inbox"] != lines[1]["inbox"]


async def test_a_login_and_a_reload_are_audited(guarded: Service, access_file: Path) -> None:
    with capture_logs() as logs:
        await ask(guarded, request(b"POST", b"/session", bearer("bob"), body=b""))
        write(access_file, everybody(eve="-"))

        async def is_reloaded() -> bool:
            return any(line["event"] == "reload" for line in logs)

        await eventually(is_reloaded)
    login, revoked, reload = audited(logs)
    assert (login["event"], login["subject"]) == ("login", "bob")
    assert (revoked["event"], revoked["subject"]) == ("revoked", "eve")
    assert reload["tokens"] == 5


@pytest.mark.settings(client_requests_per_s=1.0, client_burst=2)
async def test_a_limited_client_is_audited(guarded: Service) -> None:
    with capture_logs() as logs:
        for _ in range(5):
            await ask(guarded, read("bob", bearer("bob")))
    line = audited(logs)[0]
    assert (line["event"], line["subject"]) == ("limited", "bob")


async def test_no_line_of_the_audit_log_has_a_token(guarded: Service, path: bytes) -> None:
    with capture_logs() as logs:
        for name in TOKENS:
            await ask(guarded, read("alice", bearer(name), path))
            await ask(guarded, get(b"/session", bearer(name)))
            await ask(guarded, get(f"/chat/x?access_token={TOKENS[name]}".encode()))
            await ask(guarded, read("alice", b"Authorization: Basic " + TOKENS[name].encode()))
    said = repr(logs)
    assert "denied" in said
    assert not any(token in said for token in TOKENS.values())


async def test_the_audit_log_names_who_was_limited(
    start_service: StartService, access_file: Path
) -> None:
    service = await start_service(
        **PROXIED, **FIVE, access="tokens", access_file=str(access_file), log_clients="clear"
    )
    async with connected(service) as wire:
        with capture_logs() as entries:
            for line in (bearer("alice"), WAYS["the fast path"]):
                for _ in range(6):
                    answer = await wire.ask(get(b"/chat/alice", line, EVE))
                assert answer.status == 429
        limited = [each for each in entries if each["event"] == "limited"]
        assert [each.get("subject") for each in limited] == ["alice", None]
        assert limited[1]["client"] == "198.51.100.7"
        assert {each["limit"] for each in limited} == {"requests"}
