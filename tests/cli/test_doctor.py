"""The doctor: finds what is wrong, says what to do, and changes nothing."""

import socket
from pathlib import Path
from typing import Any

from pymongo import MongoClient

from tests.cli.conftest import Chat, Ended
from tests.support.server import Server
from workers.store.schema import INDEXES, KEY_INDEX


def failed(ended: Ended) -> dict[str, str]:
    """What it calls failed, and what it says of that."""
    found = {each["check"]: each["detail"] for each in ended.records if each["state"] == "fail"}
    assert ended.code == (1 if found else 0)
    return found


def states(ended: Ended) -> dict[str, str]:
    """How each check went."""
    return {each["check"]: each["state"] for each in ended.records}


def test_a_healthy_service_passes_every_check(chat: Chat, server: Server, mongo_uri: str) -> None:
    database = server.environ["CHAT_MONGO_DATABASE"]
    words = ("--port", str(server.port), "--mongo-uri", mongo_uri)
    ended = chat("doctor", *words, CHAT_MONGO_DATABASE=database)
    assert failed(ended) == {}
    found = states(ended)
    for check in ("python", "packages", "settings", "port", "database", "majority", "indexes"):
        assert found[check] == "ok"
    for check in ("alive", "ready", "restarts", "loop lag"):
        assert check in found


def test_a_private_database_in_use_is_looked_at_and_a_free_one_left_alone(
    tmp_path: Path, chat: Chat
) -> None:
    data = tmp_path / "data"
    free = chat("doctor", "--port", "0", "--data-dir", str(data))
    assert states(free)["data"] == "ok"
    assert not data.exists()
    with Server(tmp_path, "--data-dir", str(data)) as server:
        used = chat("doctor", "--data-dir", str(data), CHAT_URL=server.base)
        assert f"in use by process {server.process.pid}" in used.out
        assert states(used)["majority"] == "ok"


def test_it_fails_where_a_start_would(tmp_path: Path, chat: Chat) -> None:
    data = tmp_path / "data"
    with Server(tmp_path, "--data-dir", str(data)) as running:
        words = ("--data-dir", str(data), "--port", str(running.port))
        found = failed(chat("doctor", *words, CHAT_URL=""))
        assert f"in use by process {running.process.pid}, so another cannot start" in found["data"]
        assert "a service of ours answers there, so a second one cannot start" in found["port"]
        # Who looks at the one that runs finds nothing wrong.
        assert failed(chat("doctor", *words, CHAT_URL=running.base)) == {}


def test_a_disk_without_the_reserve_is_a_warning(tmp_path: Path, chat: Chat) -> None:
    words = ("doctor", "--port", "0", "--data-dir", str(tmp_path / "data"))
    (warned,) = [
        each
        for each in chat(*words, CHAT_STORAGE_FREE_MIN_BYTES=str(1 << 60)).records
        if each["check"] == "disk"
    ]
    assert warned["state"] == "warn"
    assert "posts are refused below" in warned["detail"]
    assert states(chat(*words))["disk"] == "ok"


def test_a_data_directory_that_cannot_be_made_fails(tmp_path: Path, chat: Chat) -> None:
    (tmp_path / "file").touch()
    words = ("doctor", "--port", "0", "--data-dir", str(tmp_path / "file" / "data"))
    assert "--data-dir" in failed(chat(*words))["data"]


def test_why_a_mongod_says_nothing_is_told(tmp_path: Path, chat: Chat) -> None:
    program = tmp_path / "mongod"
    program.write_text("#!/bin/sh\necho 'no libcurl.so.4' >&2\nkill -ILL $$\n", encoding="utf-8")
    program.chmod(0o755)
    words = ("doctor", "--port", "0", "--data-dir", str(tmp_path / "data"))
    ended = chat(*words, CHAT_MONGOD=str(program))
    found = failed(ended)["mongod"]
    assert "was ended by SIGILL" in found
    assert "no libcurl.so.4" in found


def test_it_makes_no_database_and_no_index(chat: Chat, mongo_uri: str, database: str) -> None:
    ended = chat("doctor", "--port", "0", "--mongo-uri", mongo_uri, CHAT_MONGO_DATABASE=database)
    assert failed(ended) == {}
    assert "the first start creates them" in ended.out
    with MongoClient[dict[str, object]](mongo_uri) as client:
        assert database not in client.list_database_names()


def test_a_wrong_index_is_named_with_what_drops_it(
    chat: Chat, mongo_uri: str, database: str
) -> None:
    with MongoClient[dict[str, object]](mongo_uri) as client:
        client[database].messages.create_index("purge_at", name="purge")
    ended = chat("doctor", "--port", "0", "--mongo-uri", mongo_uri, CHAT_MONGO_DATABASE=database)
    assert 'db.messages.dropIndex("purge")' in failed(ended)["indexes"]


def test_duplicate_keys_are_named_before_a_start_fails(
    chat: Chat, mongo_uri: str, database: str
) -> None:
    with MongoClient[dict[str, Any]](mongo_uri) as client:
        messages = client[database].messages
        messages.create_index("x", name="another")
        for collection, indexes in INDEXES.items():
            for name, options in indexes.items():
                if name != KEY_INDEX:
                    keys = list(options["key"].items())
                    others = {each: options[each] for each in options if each != "key"}
                    client[database][collection].create_index(keys, name=name, **others)
        messages.insert_many([{"_id": each, "key": {"hash": "same"}} for each in ("m1", "m2")])
    ended = chat("doctor", "--port", "0", "--mongo-uri", mongo_uri, CHAT_MONGO_DATABASE=database)
    assert "m1, m2" in failed(ended)["indexes"]
    assert "docs/operations.md" in failed(ended)["indexes"]


def test_a_database_that_is_away_fails_in_one_line(chat: Chat) -> None:
    uri = "mongodb://127.0.0.1:1/"
    ended = chat("doctor", "--port", "0", "--mongo-uri", uri, CHAT_MONGO_TIMEOUT_S="0.5")
    said = failed(ended)["database"]
    assert "127.0.0.1:1" in said
    assert "--mongo-uri" in said
    assert "TopologyDescription" not in said


def test_a_taken_port_fails(chat: Chat) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ended = chat("doctor", "--port", str(taken.getsockname()[1]))
        assert "--port" in failed(ended)["port"]


def test_bad_settings_are_all_named(chat: Chat) -> None:
    ended = chat("doctor", "--port", "many", CHAT_SHARDS="0", CHAT_QUEUE_MAX="-1")
    said = [each["detail"] for each in ended.records if each["check"] == "settings"]
    assert ended.code == 1
    assert len(said) == 3


def test_a_mongod_that_is_none_and_a_directory_that_is_shared_fail(
    chat: Chat, tmp_path: Path
) -> None:
    (tmp_path / "letter").touch()
    ended = chat("doctor", "--port", "0", "--data-dir", str(tmp_path), CHAT_MONGOD="/bin/false")
    found = failed(ended)
    assert "is it a mongod" in found["mongod"]
    assert "has files that do not belong to a database" in found["data"]


def test_a_service_that_is_not_there_fails_from_outside(chat: Chat) -> None:
    ended = chat("doctor", "--port", "0", "--url", "http://127.0.0.1:1")
    assert "is it running" in failed(ended)["alive"]


def test_telemetry_without_its_packages_is_found_before_the_start(
    chat: Chat, tmp_path: Path
) -> None:
    blocked = tmp_path / "opentelemetry"
    blocked.mkdir()
    (blocked / "__init__.py").write_text("raise ImportError('blocked')", encoding="utf-8")
    words = ("doctor", "--port", "0", "--data-dir", str(tmp_path / "data"))
    path = f"{tmp_path}:{chat.environ['PYTHONPATH']}"
    ended = chat(*words, CHAT_TELEMETRY="otlp", PYTHONPATH=path)
    assert "OpenTelemetry is not installed" in failed(ended)["telemetry"]
    assert states(chat(*words, CHAT_TELEMETRY="otlp"))["telemetry"] == "ok"


def test_a_variable_that_is_no_setting_is_a_warning(chat: Chat) -> None:
    uri = "mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=10"
    words = ("doctor", "--port", "0", "--mongo-uri", uri)
    ended = chat(*words, CHAT_SHARD="1", CHAT_PORT="tcp://10.0.0.1:8080")
    (warned,) = [each for each in ended.records if each["check"] == "environment"]
    assert warned["state"] == "warn"
    assert warned["detail"].endswith("did you mean CHAT_SHARDS?")
