"""`chat migrate` shows what it would do, migrates a running service's database, and continues."""

import re
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.collection import Collection

from tests.cli.conftest import Chat
from tests.cli.terminal import Terminal
from tests.support import schema_1
from workers.store.migration import STEPS


@pytest.fixture
def messages(mongo_uri: str, database: str) -> Iterator[Collection[dict[str, Any]]]:
    """A database of an older version."""
    with MongoClient[dict[str, Any]](mongo_uri) as client:
        found = client[database]["messages"]
        schema_1.create_indexes(found)
        ids = schema_1.ids(age_s=60)
        found.insert_many([schema_1.document(next(ids), f"user-{n}", "x") for n in range(500)])
        yield found


@pytest.fixture
def migrating(mongo_uri: str, database: str) -> Chat:
    """The command line, with that database in its environment."""
    chat = Chat("")
    chat.environ |= {
        "CHAT_MONGO_URI": mongo_uri,
        "CHAT_MONGO_DATABASE": database,
        # Nodes notice the change soon, so the command does not wait for long.
        "CHAT_MONGO_TIMEOUT_S": "1",
    }
    return chat


def version_of(messages: Collection[dict[str, Any]]) -> int:
    """Return the version that the database carries; 1 if it has none."""
    found = messages.database["fleet"].find_one({"_id": "schema"})
    return found["version"] if found else 1


def test_without_apply_it_only_shows_what_is_to_do(
    migrating: Chat, messages: Collection[dict[str, Any]]
) -> None:
    result = migrating("migrate")
    assert result.code == 0
    (plan,) = result.records
    assert (plan["version"], plan["to"], plan["without_route"]) == (1, 2, 500)
    assert version_of(messages) == 1
    text = migrating("migrate", "--text").out
    assert "no route  500" in text
    assert "inbox_by_route" in text


def test_each_step_is_reported_on_a_line(
    migrating: Chat, messages: Collection[dict[str, Any]]
) -> None:
    result = migrating("migrate", "--apply")
    assert result.code == 0
    steps = [each["step"] for each in result.records if "step" in each]
    assert list(dict.fromkeys(steps)) == list(STEPS[2])
    assert result.records[-1] == {"version": 2, "is_done": True}
    assert version_of(messages) == 2
    assert "nothing is left to do" in migrating("migrate", "--apply", "--text").out


@pytest.mark.parametrize("columns", [40, 80])
def test_no_bar_is_wider_than_the_terminal(
    migrating: Chat, messages: Collection[dict[str, Any]], columns: int
) -> None:
    with Terminal(migrating, "migrate", "--apply", COLUMNS=str(columns)) as terminal:
        # The longest bar also has the time that is left.
        terminal.until(b"  00:00:")
        seen = re.sub(r"\x1b\[[?0-9]*[a-zA-Z]", "", terminal.seen.decode())
        terminal.ctrl_c()
        assert terminal.exit_code() == 130
    assert "6/7 switch" in seen
    assert max(map(len, re.split(r"[\r\n]+", seen))) <= columns


def test_ctrl_c_stops_it_and_it_continues(
    migrating: Chat, messages: Collection[dict[str, Any]]
) -> None:
    with Terminal(migrating, "migrate", "--apply") as terminal:
        terminal.until(b"6/7 switching all nodes")
        terminal.ctrl_c()
        assert terminal.exit_code() == 130
        assert b"run the same command again" in terminal.seen
    with Terminal(migrating, "migrate", "--apply") as terminal:
        assert terminal.exit_code() == 0
        assert b"1/7" not in terminal.seen
        assert b"100%" in terminal.seen
    assert "inbox" not in messages.index_information()


def test_sigterm_stops_it(migrating: Chat, messages: Collection[dict[str, Any]]) -> None:
    with subprocess.Popen(
        migrating.command("migrate", "--apply"), env=migrating.environ, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if b'"switch"' in line:
                break
        process.terminate()
        assert process.wait(20) == 143
    left = messages.database["fleet"].find_one({"_id": "schema"})
    assert left is not None
    assert left["migration"]["step"] == "switch"


def test_an_obstacle_is_shown_and_exits_with_1(
    migrating: Chat, messages: Collection[dict[str, Any]], mongo_uri: str
) -> None:
    with MongoClient[dict[str, Any]](
        mongo_uri, appname="chat/4711", heartbeatFrequencyMS=500
    ) as node:
        node.admin.command("ping")
        refused = migrating("migrate", "--text")
    assert refused.code == 1
    assert "process 4711" in refused.out
    assert "Traceback" not in refused.err


def test_without_a_database_it_says_so(migrating: Chat) -> None:
    uri = "mongodb://127.0.0.1:1/?replicaSet=x"
    result = migrating("migrate", CHAT_MONGO_URI=uri)
    assert result.code == 4
    assert "127.0.0.1:1" in result.err


def test_a_newer_schema_is_left_alone(
    migrating: Chat, messages: Collection[dict[str, Any]]
) -> None:
    messages.database["fleet"].insert_one({"_id": "schema", "version": 9})
    result = migrating("migrate", "--apply")
    assert result.code == 4
    assert "schema version 9" in result.err
