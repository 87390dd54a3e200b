"""`chat inspect` tells the state of an inbox, with the service and without it, and never a text."""

import json
import signal
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.collection import Collection

from chat_service.cli.exit_codes import ExitCode
from tests.cli.conftest import Chat, Result
from tests.support import schema_1
from tests.support.server import Server
from workers.commands import COUNT_MAX


@pytest.fixture
def messages(mongo_uri: str, database: str) -> Iterator[Collection[dict[str, Any]]]:
    with MongoClient[dict[str, Any]](mongo_uri) as client:
        yield client[database]["messages"]


@pytest.fixture
def node(mongo_uri: str, database: str, tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path, "--mongo-uri", mongo_uri, CHAT_MONGO_DATABASE=database) as running:
        yield running


@pytest.fixture
def inspecting(node: Server, mongo_uri: str, database: str) -> Chat:
    """The command line, beside a running service."""
    chat = Chat(node.base)
    chat.environ |= {"CHAT_MONGO_URI": mongo_uri, "CHAT_MONGO_DATABASE": database}
    return chat


def found(result: Result) -> dict[str, Any]:
    assert result.code == 0, result.err
    (record,) = result.records
    return dict(record)


def test_it_counts_what_an_inbox_has_and_shows_no_text(inspecting: Chat, node: Server) -> None:
    inspecting("send", "bob", "--timeout", "1h", "a secret")
    inspecting("lease", "bob", "--ttl", "10m")
    inspecting("send", "bob", "--timeout", "5h", "a secret")
    (lease,) = inspecting("lease", "bob").records
    inspecting("release", "bob", lease["lease"], "--in", "3h")
    inspecting("send", "bob", "--timeout", "10m", "a secret")
    inspecting("send", "bob", "--timeout", "1h", "a secret")
    inspecting("send", "bob", "--in", "2h", "a secret")
    inspecting("send", "eve", "a secret")
    inspecting("read", "eve")
    inspecting("send", "eve", "--receipt", "a secret")
    inspecting("read", "eve")
    result = inspecting("inspect", "bob")
    assert "a secret" not in result.out + result.err
    bob = found(result)
    assert (bob["unread"], bob["leased"], bob["scheduled"], bob["read"]) == (2, 1, 2, 0)
    now = datetime.fromisoformat(bob["at"])
    assert timedelta(0) < datetime.fromisoformat(bob["next_expiry"]) - now <= timedelta(minutes=10)
    assert datetime.fromisoformat(bob["first_lease_ends"]) - now <= timedelta(minutes=10)
    assert datetime.fromisoformat(bob["next_due"]) - now > timedelta(hours=1)
    assert datetime.fromisoformat(bob["oldest"]) <= now
    assert (bob["dead_letter_inbox"], bob["dead_letters"]) == ("dead/bob", 0)
    assert (bob["overdue"], bob["is_full"], bob["is_whole"]) == (0, False, True)
    eve = found(inspecting("inspect", "eve"))
    # Also one that is kept for its sender.
    assert (eve["unread"], eve["read"], sum(eve["read_by"].values())) == (0, 2, 2)
    text = inspecting("inspect", "bob", "--text").out
    assert "unread     2; the oldest came" in text
    assert "a secret" not in text
    # The hash is that in the log of the service, unless the settings have a key.
    lines = map(json.loads, node.errors().splitlines())
    assert bob["log_name"] in {line.get("inbox") for line in lines}
    keyed = inspecting("inspect", "bob", CHAT_LOG_USERNAME_KEY="ours")
    assert found(keyed)["log_name"] not in (bob["log_name"], None)


def test_it_says_when_an_inbox_is_over_its_quota(inspecting: Chat) -> None:
    inspecting("send", "bob", "12345")
    inspecting("send", "bob", "12345")
    for name, maximum, is_full in (
        ("MESSAGES", 3, False),
        ("MESSAGES", 2, True),
        ("BYTES", 11, False),
        ("BYTES", 10, True),
    ):
        inspecting.environ[f"CHAT_INBOX_{name}_MAX"] = str(maximum)
        assert found(inspecting("inspect", "bob"))["is_full"] is is_full, (name, maximum)
        del inspecting.environ[f"CHAT_INBOX_{name}_MAX"]
    text = inspecting("inspect", "bob", "--text", CHAT_INBOX_MESSAGES_MAX="2").out
    assert "2 of 2 messages; posts to it get 429 (inbox-full)" in text


def test_it_says_that_a_message_is_overdue(
    inspecting: Chat, node: Server, messages: Collection[dict[str, Any]]
) -> None:
    inspecting("send", "bob", "--in", "2h", "x")
    # Nobody leads from now on.
    node.process.send_signal(signal.SIGTERM)
    node.process.wait(60)
    long_ago = datetime.now(UTC) - timedelta(minutes=5)
    messages.update_one({"username": "bob"}, {"$set": {"lease.until": long_ago}})
    assert found(inspecting("inspect", "bob"))["overdue"] == 1


def test_its_cost_is_bounded_also_with_schema_1(mongo_uri: str, database: str) -> None:
    chat = Chat("")
    chat.environ |= {"CHAT_MONGO_URI": mongo_uri, "CHAT_MONGO_DATABASE": database}
    with MongoClient[dict[str, Any]](mongo_uri) as client:
        old = client[database]["messages"]
        schema_1.create_indexes(old)
        ids = schema_1.ids(age_s=60)
        old.insert_many([schema_1.document(next(ids), "bob", "x") for _ in range(3 * COUNT_MAX)])
        before = client.admin.command("serverStatus")["metrics"]["queryExecutor"]
        bob = found(chat("inspect", "bob"))
        after = client.admin.command("serverStatus")["metrics"]["queryExecutor"]
        quotas = (str(COUNT_MAX), str(4 * COUNT_MAX))
        full, unknown = [
            found(chat("inspect", "bob", CHAT_INBOX_MESSAGES_MAX=quota))["is_full"]
            for quota in quotas
        ]
    assert (bob["schema"], bob["unread"], bob["is_more"]) == (1, COUNT_MAX, True)
    # It was not counted up to the second quota.
    assert (full, unknown) == (True, None)
    # No node has shared a key yet.
    assert bob["log_name"] is None
    # Keys of the index, and hardly a document.
    assert after["scanned"] - before["scanned"] < 2 * COUNT_MAX
    assert after["scannedObjects"] - before["scannedObjects"] < 1000


def test_it_works_while_the_service_is_down(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    with Server(tmp_path, "--data-dir", str(data_dir)) as server:
        Chat(server.base)("send", "bob", "--timeout", "1h", "x")
        chat = Chat(server.base)
        running = found(chat("inspect", "bob", "--data-dir", str(data_dir)))
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(60)
    stopped = chat("inspect", "bob", "--data-dir", str(data_dir))
    assert (found(stopped)["unread"], found(stopped)["log_name"]) == (1, running["log_name"])
    assert stopped.err == ""
    # It left the directory to the next server.
    with Server(tmp_path, "--data-dir", str(data_dir)) as server:
        assert Chat(server.base)("count", "bob").records == [{"unread": 1}]


def test_it_refuses_a_directory_that_the_service_does_not_use(tmp_path: Path) -> None:
    used, old, other = (tmp_path / name for name in ("used", "old", "other"))
    chat = Chat("")
    with Server(tmp_path, "--data-dir", str(old)):
        pass
    with (
        Server(tmp_path, "--data-dir", str(used)) as server,
        Server(tmp_path, "--data-dir", str(other)),
    ):
        at = ("--port", str(server.port))
        assert found(chat("inspect", "bob", *at, "--data-dir", str(used)))["unread"] == 0
        for directory in (old, other, tmp_path / "none"):
            words = (*at, "--data-dir", str(directory))
            refused = chat("inspect", "bob", *words)
            assert (refused.code, refused.out) == (ExitCode.DATABASE, "")
            assert f"{server.base} does not use {directory}: name the service's" in refused.err
            checked = chat("doctor", *words, "--url", server.base).records
            (data,) = [each for each in checked if each["check"] == "data"]
            assert (data["state"], data["detail"] in refused.err) == ("fail", True)
        # What it advises works.
        assert "if you mean another service, name its --port" in refused.err
        words = ("--port", "0", "--data-dir", str(old))
        assert found(chat("inspect", "bob", *words))["unread"] == 0


def test_it_says_what_is_wrong_if_there_is_nothing_to_inspect(
    tmp_path: Path, mongo_uri: str, database: str
) -> None:
    chat = Chat("")
    nothing = chat("inspect", "bob", "--data-dir", str(tmp_path / "none"))
    assert (nothing.code, "there is no database in" in nothing.err) == (ExitCode.DATABASE, True)
    silent = chat("inspect", "bob", "--mongo-uri", "mongodb://127.0.0.1:1/")
    assert (silent.code, "did not answer" in silent.err) == (ExitCode.DATABASE, True)
    unused = chat("inspect", "bob", "--mongo-uri", mongo_uri, CHAT_MONGO_DATABASE=database)
    assert (unused.code, "no service has used" in unused.err) == (ExitCode.NOTHING, True)
    with MongoClient[dict[str, Any]](mongo_uri) as client:
        client[database]["fleet"].insert_one({"_id": "schema", "version": 2})
        client[database]["messages"].insert_one({"username": "bob", "unread": True})
    lost = chat("inspect", "bob", "--mongo-uri", mongo_uri, CHAT_MONGO_DATABASE=database)
    assert (lost.code, "an index is missing" in lost.err) == (ExitCode.DATABASE, True)
    assert json.dumps(lost.out) == '""'
