"""The same bytes to two services: one on the fast path, one whose connections Tornado serves.

Both share a mongod but not a database. A connection of the second service begins with a request
that the fast path hands off to Tornado, which serves the connection from then on. Compared are
every byte of the answers (`tests.fuzz.differences` lists what may differ), whether the connection
was closed, what is stored afterwards, what was counted, and what was logged.

Many cases run together. A case that differs is repeated alone, with more patience, before it
counts.
"""

import asyncio
import difflib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, NamedTuple

from pymongo import AsyncMongoClient

from chat_service.service import Service
from config import Settings
from tests.fuzz import requests
from tests.fuzz.differences import masked
from tests.fuzz.fuzzer import Case, Finding, Fuzzer, shrink
from tests.fuzz.inside import held_open, requests_counted
from tests.fuzz.requests import Pipeline, pipeline
from tests.fuzz.wire import Wire
from tests.support.raw import errors_logged

#: A service that gets this request hands the connection off to Tornado.
_TO_TORNADO = b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"
#: If a service sends nothing on any connection for this long, it is done: at first, and in the
#: repeat.
_QUIET_S, _ALONE_QUIET_S = 0.5, 1.5
#: Seconds within which the effects of a client are settled.
_SETTLE_S = 5.0


class Outcome(NamedTuple):
    """The answer of one service to some bytes."""

    answers: bytes
    is_closed: bool


class Effects(NamedTuple):
    """The effects of all cases of a round on one service."""

    stored: Counter[tuple[object, ...]]
    counted: Mapping[str, float]


async def outcome_on(wire: Wire, quiet_s: float) -> Outcome:
    """Wait for the end of the answers on a connection, and return them."""
    is_closed = await wire.until_closed(quiet_s)
    return Outcome(masked(bytes(wire.received)), is_closed)


class Side:
    """One service and its database."""

    def __init__(self, name: str, mongo_uri: str, prefix: bytes, **changes: Any) -> None:
        """`changes` are more settings of the service."""
        self.name = name
        self._prefix = prefix
        database = f"fuzz_{name}"
        self._client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(mongo_uri)
        self._messages = self._client[database].messages
        self.service = Service(
            Settings(
                port=0,
                mongo_uri=mongo_uri,
                mongo_database=database,
                log_requests_per_s=0,
                max_body_bytes=requests.BODY_MAX,
                max_batch_bytes=requests.BATCH_MAX,
                max_text_bytes=requests.TEXT_MAX,
                max_batch_messages=requests.MESSAGES_MAX,
                max_wait_s=requests.WAIT_MAX_S,
                slice_max=3,
                # The name that all requests are sent to.
                allowed_hosts=("a",),
                **changes,
            )
        )

    async def __aenter__(self) -> "Side":
        await self.service.start()
        await self.forget()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.service.stop()
        await self._client.close()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Wire]:
        """Open one connection to this side's request path."""
        wire = await Wire.connect(self.service.port)
        try:
            if self._prefix:
                await wire.send([self._prefix])
                if not await wire.until(b"\r\n\r\n", 10) or not await wire.until(b"}", 10):
                    raise AssertionError("a service did not answer /livez")
                wire.received.clear()
            yield wire
        finally:
            wire.close()

    async def effects(self) -> Effects:
        """Return what is stored and what was counted."""
        stored: Counter[tuple[object, ...]] = Counter()
        async for each in self._messages.find({}):
            lifetime = each["expires_at"] - each["created_at"]
            state = "unread" if "unread" in each else "claimed" if "claim" in each else "leased"
            key = (each["username"], each.get("text"), state, round(lifetime.total_seconds()))
            stored[key] += 1
        # The end of a connection may still be in flight.
        return Effects(stored, {**requests_counted(self.service), **held_open(self.service)})

    async def forget(self) -> None:
        """Delete all stored messages."""
        await self._messages.delete_many({})


class Paths(Fuzzer):
    """Compares the fast path with Tornado."""

    name = "paths"
    at_once = 80
    share = 5

    async def __aenter__(self) -> "Paths":
        self._stack = AsyncExitStack()
        async with AsyncExitStack() as stack:
            changes = self._changes(stack)
            self._fast = await stack.enter_async_context(
                Side("fast", self.mongo_uri, b"", **changes)
            )
            self._slow = await stack.enter_async_context(
                Side("tornado", self.mongo_uri, _TO_TORNADO, **changes)
            )
            self._stack = stack.pop_all()
        return self

    def _changes(self, stack: AsyncExitStack) -> dict[str, Any]:
        """Return more settings of both services. What they need until the end enters `stack`."""
        return {}

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def judge(self, cases: Sequence[Case]) -> list[Finding]:
        """Run these cases together, and those that differ alone."""
        lines = {case: self._pipeline(case) for case in cases}
        if len(cases) == 1:
            return [*await self._confirm(cases[0], lines[cases[0]])]
        self.tally["cases"] += len(cases)
        differences, suspects = await self._round(lines, _QUIET_S)
        if differences:
            # On a busy machine an answer may take longer than a round with many cases waits for it.
            differences, suspects = await self._round(lines, _ALONE_QUIET_S)
            self.tally["repeated rounds"] += 1
        findings: list[Finding] = []
        for case in (suspects or cases) if differences else ():
            findings += await self._confirm(case, lines[case])
            if len(findings) >= self.enough:
                break
        if differences and not findings:
            self.tally["rounds that differed, but no case alone"] += 1
        return findings

    def _pipeline(self, case: Case) -> Pipeline:
        return pipeline(case)

    async def _round(
        self, lines: Mapping[Case, Pipeline], quiet_s: float
    ) -> tuple[list[tuple[str, str]], list[Case]]:
        """Send these cases to both services. Return the differences, and the cases with differing
        answers.
        """
        sides = (self._fast, self._slow)
        for side in sides:
            await side.forget()
        before = [(await side.effects()).counted for side in sides]
        with errors_logged() as errors:
            outcomes = await self._exchange(list(lines.values()), quiet_s)
            differences, suspects = [], []
            for case, (fast, slow) in zip(lines, outcomes, strict=True):
                self.tally["answers"] += fast.answers.count(b"HTTP/1.1 ")
                self.tally["posts stored"] += fast.answers.count(b"HTTP/1.1 201")
                self.tally["left open"] += not fast.is_closed
                if fast != slow:
                    differences.append(("the answers differ", _difference(fast, slow)))
                    suspects.append(case)
            left = await self._left_behind(before)
        differences += left
        differences += [("an error was logged", str(error)) for error in errors]
        # If no answers differ, the difference may be an effect of any of the cases.
        return differences, suspects

    async def _exchange(
        self, lines: Sequence[Pipeline], quiet_s: float
    ) -> Sequence[tuple[Outcome, Outcome]]:
        """Send these cases to both services. Return both outcomes of each."""

        async def send(side: Side, line: Pipeline) -> Outcome:
            async with side.connection() as wire:
                await wire.send(line.segments)
                return await outcome_on(wire, quiet_s)

        return await asyncio.gather(
            *(asyncio.gather(send(self._fast, line), send(self._slow, line)) for line in lines)
        )

    async def _left_behind(self, before: Sequence[Mapping[str, float]]) -> list[tuple[str, str]]:
        """Return how the effects on the two services differ once they are settled."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _SETTLE_S
        while True:
            fast, slow = await self._fast.effects(), await self._slow.effects()
            fast_counted, slow_counted = _since(before[0], fast), _since(before[1], slow)
            if (fast.stored, fast_counted) == (slow.stored, slow_counted):
                return []
            if loop.time() > deadline:
                break
            await asyncio.sleep(0.1)
        found = []
        if fast.stored != slow.stored:
            seen = f"fast path only: {fast.stored - slow.stored}\n"
            seen += f"Tornado only: {slow.stored - fast.stored}"
            found.append(("the stored messages differ", seen))
        if fast_counted != slow_counted:
            seen = f"fast path: {fast_counted}\nTornado: {slow_counted}"
            found.append(("the counted requests differ", seen))
        return found

    async def _confirm(self, case: Case, line: Pipeline) -> list[Finding]:
        """Run a case alone. If it still differs, return it as short as possible."""
        differences, _ = await self._round({case: line}, _ALONE_QUIET_S)
        if not differences:
            return []
        rule, seen = differences[0]
        short = await self._shorten(case, line, rule)
        shown = f"sent, cut to {short.data!r}\nin {len(short.segments)} segments\n{seen}"
        return [Finding(case, rule, shown)]

    async def _shorten(self, case: Case, line: Pipeline, rule: str) -> Pipeline:
        async def is_found(segments: Sequence[bytes]) -> bool:
            # Run it twice, to exclude coincidences.
            for _ in range(2):
                differences, _ = await self._round({case: Pipeline(segments)}, _QUIET_S)
                if rule not in {each for each, _ in differences}:
                    return False
            return True

        if not self.shortens or (len(line.segments) > 1 and not await is_found([line.data])):
            return line
        check: Callable[[bytes], Awaitable[bool]] = lambda data: is_found([data])  # noqa: E731
        return Pipeline([await shrink(line.data, check)])


def _since(before: Mapping[str, float], effects: Effects) -> dict[str, float]:
    """Return the counts since then."""
    return {
        labels: value - before.get(labels, 0)
        for labels, value in effects.counted.items()
        if value != before.get(labels, 0)
    }


def _difference(fast: Outcome, slow: Outcome) -> str:
    ours, theirs = (
        [*(repr(line) for line in side.answers.split(b"\r\n")), f"closed: {side.is_closed}"]
        for side in (fast, slow)
    )
    return "\n".join(difflib.unified_diff(ours, theirs, "fast path", "Tornado", "", "", 2, ""))
