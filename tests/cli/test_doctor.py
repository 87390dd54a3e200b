"""`chat doctor` finds problems, advises, and changes nothing."""

import json
import os
import re
import signal
import socket
from pathlib import Path
from typing import Any

from pymongo import MongoClient

from tests.cli.conftest import Chat, Result
from tests.support.issuer import key_set
from tests.support.server import Server
from workers.mongod.foreign_files import LARGE_BYTES, large_foreign_files
from workers.store.layout import NEWEST
from workers.store.schema import indexes_of


def failed(result: Result) -> dict[str, str]:
    """Return the failed checks and their details."""
    found = {each["check"]: each["detail"] for each in result.records if each["state"] == "fail"}
    assert result.code == (1 if found else 0)
    return found


def states(result: Result) -> dict[str, str]:
    """Return the state of each check."""
    return {each["check"]: each["state"] for each in result.records}


def test_a_healthy_service_passes_every_check(chat: Chat, server: Server, mongo_uri: str) -> None:
    database = server.environ["CHAT_MONGO_DATABASE"]
    words = ("--port", str(server.port), "--mongo-uri", mongo_uri)
    result = chat("doctor", *words, CHAT_MONGO_DATABASE=database)
    assert failed(result) == {}
    found = states(result)
    for check in ("python", "packages", "settings", "port", "database", "majority", "indexes"):
        assert found[check] == "ok"
    for check in ("alive", "ready", "restarts", "loop lag", "its state"):
        assert check in found


def test_an_embedded_database_is_checked_only_if_it_is_running(tmp_path: Path, chat: Chat) -> None:
    data = tmp_path / "data"
    free = chat("doctor", "--port", "0", "--data-dir", str(data))
    assert states(free)["data"] == "ok"
    assert not data.exists()
    with Server(tmp_path, "--data-dir", str(data)) as server:
        used = chat("doctor", "--data-dir", str(data), CHAT_URL=server.base)
        assert f"in use by process {server.process.pid}" in used.out
        assert states(used)["majority"] == "ok"


def test_a_check_fails_if_a_start_would_fail(tmp_path: Path, chat: Chat) -> None:
    data = tmp_path / "data"
    with Server(tmp_path, "--data-dir", str(data)) as running:
        words = ("--data-dir", str(data), "--port", str(running.port))
        found = failed(chat("doctor", *words, CHAT_URL=""))
        in_use = f"in use by process {running.process.pid}, so a second service cannot start"
        assert in_use in found["data"]
        assert "a chat service answers there, so a second one cannot start" in found["port"]
        # With the address of the running service, this is not a problem.
        assert failed(chat("doctor", *words, CHAT_URL=running.base)) == {}


def test_a_disk_without_the_reserve_gives_a_warning(tmp_path: Path, chat: Chat) -> None:
    words = ("doctor", "--port", "0", "--data-dir", str(tmp_path / "data"))
    (warned,) = [
        each
        for each in chat(*words, CHAT_STORAGE_FREE_MIN_BYTES=str(1 << 60)).records
        if each["check"] == "disk"
    ]
    assert warned["state"] == "warn"
    assert "posts are refused below" in warned["detail"]
    assert states(chat(*words))["disk"] == "ok"


def test_only_large_files_of_others_are_named(tmp_path: Path, chat: Chat) -> None:
    data = tmp_path / "data"
    (data / "copies").mkdir(parents=True)
    mongods = ("collection-7-1.wt", "WiredTigerHS.wt", "mongod.log.1", "ballast", "lock")
    (data / "journal").mkdir()
    for name in (*mongods, "journal/WiredTigerLog.0000000001", "core.4711", "copies/old.wt"):
        with (data / name).open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, LARGE_BYTES)
    (data / "notes").write_text("small", encoding="ascii")
    words = ("doctor", "--port", "0", "--data-dir", str(data))
    (found,) = [each for each in chat(*words).records if each["check"] == "other files"]
    assert (found["state"], found["runbook"]) == ("warn", "docs/operations.md#disk-fills")
    named = set(re.findall(rf"{data}/(\S+) \(10 MiB\)", found["detail"]))
    assert named == {"core.4711", "copies/old.wt"}


def test_a_running_mongod_has_no_files_of_others(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("workers.mongod.foreign_files.LARGE_BYTES", 0)
    data = tmp_path / "data"
    with Server(tmp_path, "--data-dir", str(data)):
        assert large_foreign_files(data) == []
    assert large_foreign_files(data) == []


def test_a_data_directory_that_cannot_be_created_fails(tmp_path: Path, chat: Chat) -> None:
    (tmp_path / "file").touch()
    words = ("doctor", "--port", "0", "--data-dir", str(tmp_path / "file" / "data"))
    assert "--data-dir" in failed(chat(*words))["data"]


def test_a_mongod_that_crashes_fails_with_the_cause(tmp_path: Path, chat: Chat) -> None:
    program = tmp_path / "mongod"
    program.write_text("#!/bin/sh\necho 'no libcurl.so.4' >&2\nkill -ILL $$\n", encoding="utf-8")
    program.chmod(0o755)
    words = ("doctor", "--port", "0", "--data-dir", str(tmp_path / "data"))
    result = chat(*words, CHAT_MONGOD=str(program))
    found = failed(result)["mongod"]
    assert "was ended by SIGILL" in found
    assert "no libcurl.so.4" in found


def test_no_database_and_no_index_is_created(chat: Chat, mongo_uri: str, database: str) -> None:
    result = chat("doctor", "--port", "0", "--mongo-uri", mongo_uri, CHAT_MONGO_DATABASE=database)
    assert failed(result) == {}
    assert "the first start creates them" in result.out
    with MongoClient[dict[str, object]](mongo_uri) as client:
        assert database not in client.list_database_names()


def test_a_wrong_index_fails_with_the_command_that_drops_it(
    chat: Chat, mongo_uri: str, database: str
) -> None:
    with MongoClient[dict[str, object]](mongo_uri) as client:
        client[database].messages.create_index("purge_at", name="purge")
    result = chat("doctor", "--port", "0", "--mongo-uri", mongo_uri, CHAT_MONGO_DATABASE=database)
    assert 'db.messages.dropIndex("purge")' in failed(result)["indexes"]


def test_duplicate_keys_that_block_an_index_are_named(
    chat: Chat, mongo_uri: str, database: str
) -> None:
    with MongoClient[dict[str, Any]](mongo_uri) as client:
        messages = client[database].messages
        messages.create_index("x", name="another")
        for collection, indexes in indexes_of(NEWEST).items():
            for name, options in indexes.items():
                if name != NEWEST.key_index:
                    keys = list(options["key"].items())
                    others = {each: options[each] for each in options if each != "key"}
                    client[database][collection].create_index(keys, name=name, **others)
        messages.insert_many(
            [
                {"_id": each, "route": 1, "username": "bob", "key": {"hash": "same"}}
                for each in ("m1", "m2")
            ]
        )
    result = chat("doctor", "--port", "0", "--mongo-uri", mongo_uri, CHAT_MONGO_DATABASE=database)
    assert "m1, m2" in failed(result)["indexes"]
    assert "docs/database.md" in failed(result)["indexes"]


def test_an_unavailable_database_fails_in_one_line(chat: Chat) -> None:
    uri = "mongodb://127.0.0.1:1/"
    result = chat("doctor", "--port", "0", "--mongo-uri", uri, CHAT_MONGO_TIMEOUT_S="0.5")
    message = failed(result)["database"]
    assert "127.0.0.1:1" in message
    assert "--mongo-uri" in message
    assert "TopologyDescription" not in message


def test_a_taken_port_fails(chat: Chat) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = chat("doctor", "--port", str(taken.getsockname()[1]))
        assert "--port" in failed(result)["port"]


def test_all_invalid_settings_are_named(chat: Chat) -> None:
    result = chat("doctor", "--port", "many", CHAT_SHARDS="0", CHAT_QUEUE_MAX="-1")
    message = [each["detail"] for each in result.records if each["check"] == "settings"]
    assert result.code == 1
    assert len(message) == 3


def test_a_wrong_mongod_and_a_shared_directory_fail(chat: Chat, tmp_path: Path) -> None:
    (tmp_path / "letter").touch()
    result = chat("doctor", "--port", "0", "--data-dir", str(tmp_path), CHAT_MONGOD="/bin/false")
    found = failed(result)
    assert "check that it is a mongod" in found["mongod"]
    assert "has files that do not belong to a database" in found["data"]


def test_an_unreachable_service_fails(chat: Chat) -> None:
    result = chat("doctor", "--port", "0", "--url", "http://127.0.0.1:1")
    assert "check that it is running" in failed(result)["alive"]


def test_telemetry_without_its_packages_fails(chat: Chat, tmp_path: Path) -> None:
    blocked = tmp_path / "opentelemetry"
    blocked.mkdir()
    (blocked / "__init__.py").write_text("raise ImportError('blocked')", encoding="utf-8")
    words = ("doctor", "--port", "0", "--data-dir", str(tmp_path / "data"))
    path = f"{tmp_path}:{chat.environ['PYTHONPATH']}"
    result = chat(*words, CHAT_TELEMETRY="otlp", PYTHONPATH=path)
    assert "OpenTelemetry is not installed" in failed(result)["telemetry"]
    assert states(chat(*words, CHAT_TELEMETRY="otlp"))["telemetry"] == "ok"


def test_keys_that_cannot_be_used_fail(chat: Chat, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    words = ("doctor", "--port", "0", "--data-dir", str(tmp_path / "data"))
    environ: dict[str, Any] = {
        "CHAT_ACCESS": "jwt",
        "CHAT_JWT_ISSUER": "https://login.example",
        "CHAT_JWT_AUDIENCE": "chat",
        "CHAT_JWT_KEYS": str(keys),
    }
    assert "No such file" in failed(chat(*words, **environ))["token keys"]
    keys.write_text(json.dumps(key_set("ES256", "RS256")), encoding="utf-8")
    result = chat(*words, **environ)
    assert failed(result) == {}
    assert "2 usable: ES256 ES256, RS256 RS256" in result.out
    (tmp_path / "joserfc").mkdir()
    (tmp_path / "joserfc/__init__.py").write_text("raise ImportError('blocked')", encoding="utf-8")
    path = f"{tmp_path}:{chat.environ['PYTHONPATH']}"
    missing = failed(chat(*words, **environ, PYTHONPATH=path))["token keys"]
    assert "install chat-inbox[jwt]" in missing


def test_an_unknown_variable_gives_a_warning(chat: Chat) -> None:
    uri = "mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=10"
    words = ("doctor", "--port", "0", "--mongo-uri", uri)
    result = chat(*words, CHAT_SHARD="1", CHAT_PORT="tcp://10.0.0.1:8080")
    (warned,) = [each for each in result.records if each["check"] == "environment"]
    assert warned["state"] == "warn"
    assert warned["detail"].endswith("did you mean CHAT_SHARDS?")


# Access


def details(result: Result, check: str) -> list[tuple[str, str]]:
    """Return the state and the detail of each finding of a check."""
    return [(each["state"], each["detail"]) for each in result.records if each["check"] == check]


def test_an_open_service_on_a_network_gives_a_warning(chat: Chat, tmp_path: Path) -> None:
    words = ("doctor", "--port", "0", "--data-dir", str(tmp_path / "data"), "--host")
    ((state, detail),) = details(chat(*words, "0.0.0.0"), "access")
    assert state == "warn"
    assert "everyone who reaches 0.0.0.0 can read and send all messages" in detail
    for host in ("127.0.0.1", "localhost"):
        assert states(chat(*words, host))["access"] == "ok"


def test_an_access_file_is_judged_as_at_a_start(chat: Chat, tmp_path: Path) -> None:
    file = tmp_path / "access.toml"
    words = ("doctor", "--port", "0", "--data-dir", str(tmp_path / "data"))
    environ = {"CHAT_ACCESS": "tokens", "CHAT_ACCESS_FILE": str(file)}
    assert "No such file" in failed(chat(*words, stdin=b"", **environ))["access"]
    file.write_text("[[token]]\nname = 'x'\n", encoding="utf-8")
    assert "sha256" in failed(chat(*words, stdin=b"", **environ))["access"]
    for until in ("3d", "1000d"):
        file.unlink()
        chat("token", "new", "worker", "--ops", "--until", until, "--add", str(file))
        result = chat(*words, stdin=b"", **environ)
        assert details(result, "access") == [("ok", f"1 tokens in {file}")]
        ((state, detail),) = details(result, "tokens")
        assert (state == "warn", "worker" in detail) == (until == "3d", until == "3d")
    for mode, verb in ((0o644, "read"), (0o646, "change")):
        file.chmod(mode)
        ((state, detail),) = details(chat(*words, stdin=b"", **environ), "access")
        assert (state, f"can {verb} {file}; run: chmod o= {file}" in detail) == ("warn", True)


def test_limits_that_count_a_proxy_give_a_warning(chat: Chat, tmp_path: Path) -> None:
    words = ("doctor", "--port", "0", "--data-dir", str(tmp_path / "data"))
    assert details(chat(*words), "limits") == []
    limited = {"CHAT_CLIENT_REQUESTS_PER_S": "10"}
    ((state, detail),) = details(chat(*words, stdin=b"", **limited), "limits")
    assert (state, "set trusted_proxies" in detail) == ("warn", True)
    for environ in ({"CHAT_TRUSTED_PROXIES": "127.0.0.1"}, {"CHAT_HOST": "0.0.0.0"}):
        ((state, _),) = details(chat(*words, stdin=b"", **limited, **environ), "limits")
        assert state == "ok"


def test_a_finding_leads_to_the_runbook(mongo_uri: str, database: str) -> None:
    chat = Chat("")
    chat.environ |= {"CHAT_MONGO_URI": mongo_uri, "CHAT_MONGO_DATABASE": database}
    result = chat("doctor", "--port", "0", "--url", "http://127.0.0.1:1")
    entries = {each["check"]: each.get("runbook") for each in result.records}
    assert entries["alive"] == "docs/operations.md#node-does-not-answer"
    assert entries["database"] is None


def test_restarts_of_mongod_alone_lead_to_its_entry(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with Server(tmp_path, "--data-dir", str(data)) as server:
        os.kill(int((data / "mongod.lock").read_text("ascii")), signal.SIGKILL)
        chat = Chat(server.base)
        for _ in range(20):
            result = chat("doctor", "--data-dir", str(data))
            (found,) = (each for each in result.records if each["check"] == "restarts")
            if found["state"] == "warn":
                break
    assert (found["state"], "1 of mongod" in found["detail"]) == ("warn", True)
    assert found["runbook"] == "docs/operations.md#mongod-does-not-start"


def test_a_running_service_says_what_is_wrong_with_it(
    tmp_path: Path, mongo_uri: str, database: str
) -> None:
    with Server(
        *(tmp_path, "--mongo-uri", mongo_uri),
        CHAT_MONGO_DATABASE=database,
        CHAT_STORAGE_FREE_MIN_BYTES=str(1 << 60),
    ) as server:
        chat = Chat(server.base)
        for _ in range(20):  # the service judges itself by samples, one every three seconds
            result = chat("doctor", "--port", "0", "--data-dir", str(tmp_path / "data"))
            if "its state" in failed(result):
                break
    said = next(each for each in result.records if each["check"] == "its state")
    assert (said["state"], "Posts are refused" in said["detail"]) == ("fail", True)
    assert said["runbook"] == "docs/operations.md#disk-fills"
