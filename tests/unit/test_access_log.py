"""Lines of the access log: how they name inboxes and clients, and which ones are left out."""

import tracemalloc
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from chat_service.access.audit import AuditLog
from chat_service.api.log_lines import LogNames, Naming, agent_of
from chat_service.api.types import AnsweredRequest
from chat_service.server.access_log import AccessLog

PROBES = ("/livez", "/readyz", "/metrics")


def lines_of(per_second: int, names: LogNames, *routes: str) -> list[Any]:
    """Return the lines that requests for these routes log."""
    access_log = AccessLog(per_second, names)
    with capture_logs() as lines:
        for route in routes:
            is_probe = route in PROBES
            answered = AnsweredRequest(
                *("id", "GET", route, "bob", "::1", 200, 0.001, is_probe), agent="curl/8"
            )
            access_log.write([answered])
    return lines


@pytest.mark.parametrize(
    ("usernames", "clients", "named"),
    [
        ("off", "off", {}),
        ("clear", "off", {"inbox": "bob"}),
        ("off", "clear", {"client": "::1", "agent": "curl/8"}),
    ],
)
def test_a_line_names_what_the_settings_say(
    usernames: Naming, clients: Naming, named: dict[str, str]
) -> None:
    (line,) = lines_of(10, LogNames(usernames, clients, ""), "/chat/:username")
    assert {name: line[name] for name in ("inbox", "client", "agent") if name in line} == named


@pytest.mark.parametrize(
    ("name", "shown"), [("\x1b[2J", "\\x1b[2J"), ("a\u202eb", "a\\u202eb"), ("zoë", "zoë")]
)
def test_a_name_in_a_line_commands_no_terminal(name: str, shown: str) -> None:
    assert LogNames("clear", "off", "").fields(name, "") == {"inbox": shown}


def test_a_hash_depends_on_the_key_and_nothing_else() -> None:
    hashes = {
        key: {lines_of(10, LogNames("off", "hashed", key), "/chat")[0]["client"] for _ in range(2)}
        for key in ("one", "two", "")
    }
    assert [len(hashes[key]) for key in ("one", "two", "")] == [1, 1, 2]
    assert len(set().union(*hashes.values())) == 4


def test_probes_are_no_news_and_use_up_no_lines() -> None:
    lines = lines_of(5, LogNames("off", "off", ""), *PROBES * 4, *["/chat"] * 6)
    levels = [(line["log_level"], line["route"]) for line in lines if line["event"] == "request"]
    assert levels[:5] == [("debug", route) for route in (*PROBES, *PROBES)[:5]]
    # The next second may begin meanwhile, but not for each line.
    assert 5 <= levels.count(("info", "/chat")) <= 6


def test_requests_of_one_turn_use_up_the_same_lines() -> None:
    access_log = AccessLog(5, LogNames("off", "off", ""))
    routes = [*("/chat", "/livez") * 4]
    answered = [
        AnsweredRequest("id", "GET", route, "", "", 200, 0.001, route in PROBES) for route in routes
    ]
    with capture_logs() as lines:
        access_log.write(answered)
        access_log.write(answered)
    levels = [(line["log_level"], line["route"]) for line in lines if line["event"] == "request"]
    # The next second may begin meanwhile.
    assert 5 <= levels.count(("info", "/chat")) <= 8
    assert 5 <= levels.count(("debug", "/livez")) <= 8


def test_a_flood_of_denials_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([1] * 100 + [2])
    clock = SimpleNamespace(monotonic=lambda: next(seconds))
    monkeypatch.setattr("chat_service.api.log_lines.time", clock)
    audit = AuditLog(LogNames("off", "off", ""))
    with capture_logs() as lines:
        for number in range(101):
            audit.limited(f"sub:{number}", "requests")
    assert [line["event"] for line in lines] == [
        *["limited"] * 20,
        "limited requests not logged",
        "limited",
    ]
    assert lines[20]["count"] == 80


def test_a_flood_of_programs_is_not_kept() -> None:
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number in range(20_000):
            assert agent_of({"User-Agent": f"flood-{number}/1 (more)"}) == f"flood-{number}/1"
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Of each, a few hundred bytes would be two megabytes and more.
    assert after - before < 500_000
