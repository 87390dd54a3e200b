"""How the emulated router splits and carries out inserts, updates and deletes."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

from bson.datetime_ms import DatetimeMS

from tests.mongos.backend import Backend
from tests.mongos.targeting import (
    Reach,
    owned_by,
    reach_of_insert,
    reach_of_write,
)
from workers.store.driver import Document

_Send: TypeAlias = Callable[[Backend, Document], Awaitable[Document]]

#: The field of each command that has its statements.
_STATEMENTS = {"insert": "documents", "update": "updates", "delete": "deletes"}


class Refused(Exception):
    """Raised for a command that the router answers with an error."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self._code, self._reason = code, reason

    def reply(self) -> Document:
        """Return the answer."""
        return {"ok": 0.0, "errmsg": self._reason, "code": self._code}


class Plan(NamedTuple):
    """A write command, and for each statement what it reaches, its filter and its hint."""

    name: str
    command: Document
    reaches: list[Reach]
    filters: list[Document]
    hints: list[Any]


class Writer:
    """Splits writes by database shard and merges the replies."""

    def __init__(self, shards: Sequence[Backend]) -> None:
        self._shards = shards

    def plan(self, name: str, command: Document) -> Plan:
        """Decide where each statement of a command goes."""
        collection: str = command[name]
        statements: list[Document] = command[_STATEMENTS[name]]
        if name == "insert":
            reaches = [reach_of_insert(collection, each) for each in statements]
            return Plan(name, command, reaches, [{}] * len(reaches), [""] * len(reaches))
        queries = [each["q"] for each in statements]
        reaches = [reach_of_write(collection, query) for query in queries]
        return Plan(name, command, reaches, queries, [each.get("hint", "") for each in statements])

    async def carry_out(self, plan: Plan, send: _Send, ahead_ms: int) -> Document:
        """Send the parts of a command to their database shards, and return one reply.

        The router's clock is so many ms ahead.
        """
        numbers = range(len(plan.reaches))
        now = DatetimeMS(int(time.time() * 1000) + ahead_ms)
        reply: Document = {"n": 0, "ok": 1.0}
        if plan.name == "update":
            reply["nModified"] = 0
        if plan.command.get("ordered", True):
            for number in numbers:
                for shard in sorted(plan.reaches[number].shards):
                    self._merge(reply, await self._send(plan, [number], shard, now, send), [number])
                if not reply["ok"] or "writeErrors" in reply:
                    break
            return reply
        parts = [
            [n for n in numbers if i in plan.reaches[n].shards] for i in range(len(self._shards))
        ]
        used = [shard for shard, part in enumerate(parts) if part]
        answers = await asyncio.gather(
            *(self._send(plan, parts[shard], shard, now, send) for shard in used)
        )
        for shard, answer in zip(used, answers, strict=True):
            self._merge(reply, answer, parts[shard])
        return reply

    async def _send(
        self, plan: Plan, numbers: list[int], shard: int, now: DatetimeMS, send: _Send
    ) -> Document:
        field = _STATEMENTS[plan.name]
        statements: list[Document] = [plan.command[field][number] for number in numbers]
        if plan.name != "insert":
            statements = [
                self._as_received(plan, number, statement, shard, now)
                for number, statement in zip(numbers, statements, strict=True)
            ]
        part = {**plan.command, field: statements}
        if "txnNumber" in part:
            part["stmtIds"] = numbers
        return await send(self._shards[shard], part)

    def _as_received(
        self, plan: Plan, number: int, statement: Document, shard: int, now: DatetimeMS
    ) -> Document:
        """Return a statement with the time of its receipt.

        A targeted one skips orphans; any other one has no version, and so changes them.
        """
        query = with_time(statement["q"], now)
        owned = owned_by(plan.command[plan.name], shard)
        if owned and plan.reaches[number].is_targeted and not statement.get("upsert"):
            query = {"$and": [query, owned]}
        received = {**statement, "q": query}
        if isinstance(statement.get("u"), list):
            received["u"] = with_time(statement["u"], now)
        return received

    @staticmethod
    def _merge(reply: Document, part: Document, numbers: Sequence[int]) -> None:
        """Add the reply of one database shard; `numbers` are the statements that it had."""
        if not part["ok"]:
            reply |= {name: part[name] for name in ("ok", "errmsg", "code", "codeName")}
            return
        for field in ("n", "nModified"):
            if field in part:
                reply[field] += part[field]
        for field in ("writeErrors", "upserted"):
            for entry in part.get(field, ()):
                entry["index"] = numbers[entry["index"]]
                reply.setdefault(field, []).append(entry)
        if "writeConcernError" in part:
            reply["writeConcernError"] = part["writeConcernError"]


def with_time(value: Any, now: DatetimeMS) -> Any:
    """Return an expression with `now` in place of `$$NOW`."""
    if isinstance(value, dict):
        return {
            name: each if name == "$literal" else with_time(each, now)
            for name, each in value.items()
        }
    if isinstance(value, list):
        return [with_time(each, now) for each in value]
    return now if value == "$$NOW" else value
