"""Judges the configuration of a replica set for `chat doctor`: failover, members, and journal."""

from collections.abc import Iterator, Mapping, Sequence

import pymongo
from pymongo.errors import OperationFailure

from workers.store.driver import Client, Document
from workers.store.driver_errors import UNAUTHORIZED
from workers.store.finding import Finding

#: The settings with which the service is soon back after the primary is lost, and MongoDB's
#: defaults. See docs/database.md, "A short failover".
FAILOVER: Mapping[str, tuple[int, int]] = {
    "electionTimeoutMillis": (4000, 10_000),
    "catchUpTimeoutMillis": (1000, -1),
    "heartbeatTimeoutSecs": (3, 10),
    "heartbeatIntervalMillis": (1000, 2000),
}
#: A value may be so many times as large, for zones that are farther apart, before it is a warning.
_TOLERANCE = 1.5


async def check_members(client: Client, server: Document, within_s: float) -> list[Finding]:
    """Return the findings about a replica set with several members; none about a single member.

    `server` is its primary's reply to `hello`. A user without the privilege `replSetGetConfig` gets
    one that says so. Raises the driver's errors.
    """
    if sum(len(server.get(each, ())) for each in ("hosts", "passives", "arbiters")) < 2:
        return []
    try:
        with pymongo.timeout(within_s):
            answer = await client.admin.command("replSetGetConfig")
    except OperationFailure as error:
        if error.code != UNAUTHORIZED:
            raise
        detail = (
            "not checked: this user may not see the configuration; grant replSetGetConfig to check "
            "it, too (docs/database.md)"
        )
        return [Finding("members", "ok", detail)]
    return list(judge(answer["config"]))


def judge(configuration: Document) -> Iterator[Finding]:
    """Yield the findings about a configuration, as `replSetGetConfig` returns it."""
    members: Sequence[Document] = configuration["members"]
    if len(members) > 1:
        yield _members(members)
        yield _failover(configuration.get("settings", {}))
        yield _journal(configuration)


async def list_silent(client: Client, within_s: float) -> str:
    """Return the members that the primary does not reach, for a message; empty if unknown."""
    try:
        with pymongo.timeout(within_s):
            status = await client.admin.command("replSetGetStatus")
    except OperationFailure:
        return ""
    silent = [
        f"{each['name']} ({each['stateStr']})" for each in status["members"] if not each["health"]
    ]
    return ", ".join(silent)


def _members(members: Sequence[Document]) -> Finding:
    """Judge whether the set goes on without any one of its members."""
    problems = []
    needed = [each["host"] for each in members if not _goes_on_without(each, members)]
    if needed:
        problems.append(
            f"without {' or '.join(needed)} nothing can be written: use three members that have "
            "data, a vote and a priority"
        )
    voters = [each for each in members if each["votes"]]
    if len(voters) % 2 == 0:
        problems.append(
            f"{len(voters)} votes survive no more losses than {len(voters) - 1}: use an odd number"
        )
    if arbiters := [each["host"] for each in members if each["arbiterOnly"]]:
        problems.append(
            f"{', '.join(arbiters)} is an arbiter: it has a vote, but cannot confirm a write; "
            "use a member with data"
        )
    if problems:
        return Finding("members", "warn", "; ".join(problems))
    return Finding("members", "ok", f"{len(members)}; writes go on without any one of them")


def _goes_on_without(lost: Document, members: Sequence[Document]) -> bool:
    """Return whether there is still a primary, and a majority that confirms its writes."""
    voters = [each for each in members if each["votes"]]
    with_data = [each for each in voters if not each["arbiterOnly"]]
    to_elect = len(voters) // 2 + 1
    # This is how MongoDB counts a majority of writes.
    to_write = min(to_elect, len(with_data))
    left = [each for each in members if each is not lost]
    voting = [each for each in left if each["votes"]]
    # A delayed member confirms a write only after its delay.
    confirming = [
        each for each in voting if not each["arbiterOnly"] and not each.get("secondaryDelaySecs")
    ]
    return (
        len(voting) >= to_elect
        and len(confirming) >= to_write
        and any(each["priority"] > 0 and not each["arbiterOnly"] for each in voting)
    )


def _failover(settings: Document) -> Finding:
    """Judge how long the service waits for another primary."""
    slow = []
    for name, (wanted, default) in FAILOVER.items():
        value = settings.get(name, default)
        if value < 0 or value > wanted * _TOLERANCE:
            slow.append(f"{name} {value:g} (use {wanted})")
    if not slow:
        return Finding("failover", "ok", "within seconds: its settings are as recommended")
    return Finding(
        "failover",
        "warn",
        "a primary that is cut off can stop the service for half a minute, because of "
        f"{', '.join(slow)}; docs/database.md has the command that changes them",
    )


def _journal(configuration: Document) -> Finding:
    """Judge whether what a majority has is in its journals."""
    if configuration.get("writeConcernMajorityJournalDefault", True):
        return Finding("journal", "ok", "a majority has what is in its journals")
    return Finding(
        "journal",
        "warn",
        "writeConcernMajorityJournalDefault is false: after a crash of a majority at once, a "
        "message can be read twice, and members in memory lose theirs; set it to true",
    )
