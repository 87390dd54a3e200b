"""What `chat doctor` finds in the configuration and the state of a replica set."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pymongo import AsyncMongoClient

from tests.faults.mongod_cluster import ReplicaSet
from tests.support.waiting import eventually
from workers.store.diagnostics import examine
from workers.store.driver import Driver
from workers.store.finding import Finding
from workers.store.replica_set import FAILOVER, judge

RECOMMENDED = {name: wanted for name, (wanted, _) in FAILOVER.items()}
DEFAULTS = {name: default for name, (_, default) in FAILOVER.items()}


async def findings(uri: str, driver: Driver) -> dict[str, Finding]:
    """Return the findings about a database, by part."""
    found = [each async for each in examine(uri, driver, "chat", 4.0)]
    return {each.what: each for each in found}


def configured(*members: Mapping[str, Any], **others: Any) -> dict[str, Finding]:
    """Return the findings about members with these differences from the defaults, by part.

    Their hosts are a, b, c and so on.
    """
    default = {"votes": 1, "priority": 1, "arbiterOnly": False, "secondaryDelaySecs": 0}
    full = [
        {**default, "_id": number, "host": "abcdefg"[number], **member}
        for number, member in enumerate(members)
    ]
    return {each.what: each for each in judge({"settings": {}, "members": full, **others})}


DATA: Mapping[str, Any] = {}
ARBITER = {"arbiterOnly": True, "priority": 0}
NEVER_PRIMARY = {"priority": 0}
DELAYED = {"priority": 0, "secondaryDelaySecs": 3600}
WITHOUT_VOTE = {"priority": 0, "votes": 0}


@pytest.mark.parametrize(
    "members",
    [(DATA,) * 3, (DATA,) * 5, (DATA, DATA, NEVER_PRIMARY), (DATA,) * 3 + (WITHOUT_VOTE,)],
    ids=["three", "five", "two may be primary", "one without a vote"],
)
def test_members_that_survive_any_loss_are_fine(members: tuple[Mapping[str, Any], ...]) -> None:
    assert configured(*members)["members"].state == "ok"


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ((DATA, DATA), ["without a or b nothing can be written", "2 votes survive no more"]),
        ((DATA, DATA, ARBITER), ["without a or b nothing can be written", "c is an arbiter"]),
        ((DATA,) * 4, ["4 votes survive no more losses than 3: use an odd number"]),
        ((DATA, NEVER_PRIMARY, NEVER_PRIMARY), ["without a nothing can be written"]),
        ((DATA, DATA, DELAYED), ["without a or b nothing can be written"]),
        ((DATA, DATA, WITHOUT_VOTE), ["without a or b nothing can be written"]),
        ((DATA,) * 4 + (ARBITER,), ["e is an arbiter"]),
    ],
    ids=["two", "an arbiter", "four", "one primary", "delayed", "no vote", "four and an arbiter"],
)
def test_members_that_block_writes_are_named(
    members: tuple[Mapping[str, Any], ...], said: list[str]
) -> None:
    found = configured(*members)["members"]
    assert found.state == "warn"
    for words in said:
        assert words in found.detail
    assert ("nothing can be written" in found.detail) == ("nothing can be written" in said[0])


@pytest.mark.parametrize("name", FAILOVER)
def test_each_slow_setting_is_named(name: str) -> None:
    fine, default = {**RECOMMENDED}, DEFAULTS[name]
    assert configured(DATA, DATA, DATA, settings=fine)["failover"].state == "ok"
    found = configured(DATA, DATA, DATA, settings={**fine, name: default})["failover"]
    assert found.state == "warn"
    assert f"because of {name} {default} (use {RECOMMENDED[name]});" in found.detail


def test_a_majority_without_journals_is_a_warning() -> None:
    key = "writeConcernMajorityJournalDefault"
    for value, state in ((True, "ok"), (False, "warn")):
        assert configured(DATA, DATA, DATA, **{key: value})["journal"].state == state


def test_a_single_member_needs_no_settings() -> None:
    assert configured(DATA) == {}


async def test_a_real_set_is_judged_until_its_majority_is_lost(
    tmp_path: Path, driver: Driver
) -> None:
    # The first election takes as long as the timeout of elections.
    async with ReplicaSet(tmp_path, settings={"electionTimeoutMillis": 1000}) as members:
        found = await findings(members.uri, driver)
        assert (found["members"].state, found["majority"].state) == ("ok", "ok")
        assert found["failover"].state == "warn"
        assert "electionTimeoutMillis" not in found["failover"].detail
        assert "catchUpTimeoutMillis -1 (use 1000)" in found["failover"].detail
        async with AsyncMongoClient[dict[str, Any]](members.uri) as client:
            configuration = (await client.admin.command("replSetGetConfig"))["config"]
            configuration["version"] += 1
            configuration["settings"].update(RECOMMENDED)
            await client.admin.command("replSetReconfig", configuration)
        assert (await findings(members.uri, driver))["failover"].state == "ok"
        lost = await members.secondaries()
        for port in lost:
            members.kill(port)

        async def names_both() -> bool:
            failed = [
                each.detail
                for each in (await findings(members.uri, driver)).values()
                if each.state == "fail"
            ]
            return len(failed) == 1 and all(f"127.0.0.1:{port}" in failed[0] for port in lost)

        # The primary notices within seconds, and then steps down.
        await eventually(names_both)


async def test_a_majority_that_does_not_answer_fails(tmp_path: Path, driver: Driver) -> None:
    async with ReplicaSet(tmp_path, settings={"electionTimeoutMillis": 5000}) as members:
        for port in await members.secondaries():
            members.pause(port)
        found = [each async for each in examine(members.uri, driver, "chat", 0.5)]
    (failed,) = [each for each in found if each.state == "fail"]
    assert failed.what == "majority"
    assert failed is found[-1]
    assert "does not confirm a write within 0.5 s" in failed.detail
