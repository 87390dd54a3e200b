"""The decoders of messages, batches, names and queries, compared with the slow reference.

Each case is input for one decoder. `tests.fuzz.reference` must allow the outcome: the same values,
or a problem of the same kind about the same fields. Any other exception is a finding. So is a
decoder that takes far more processor time than Python's json module.
"""

import asyncio
import json
import math
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from typing import NamedTuple

from prometheus_client import CollectorRegistry
from tornado.httputil import HTTPHeaders

from chat_service.api.plain_posts import message_to
from chat_service.api.problems import Problem
from chat_service.api.request_options import (
    WaitLimits,
    idempotency_key,
    post_options,
    preferences,
    read_options,
)
from chat_service.api.types import BodyChunk, Request
from chat_service.api.validation import MessageLimits, lease_body, new_message, username_in_path
from chat_service.handlers.batch import BatchHandlers
from tests.fuzz import bodies, reference
from tests.fuzz.fuzzer import Case, Finding, Fuzzer, shrink
from tests.fuzz.mutation import mutate
from tests.fuzz.reference import Accepted, Limits, Outcome, Refused
from tests.support.stores import MemoryStore
from workers.clock import DatabaseClock
from workers.metrics import WorkerMetrics
from workers.pool import PoolLimits, WorkerPool
from workers.queue import QueueLimits
from workers.shard import ShardLimits

LIMITS = Limits(username_chars=128, text_bytes=2048, default_timeout_s=60, timeout_s=2592000)
RULES, WAITS = MessageLimits(*LIMITS), WaitLimits(25.0, 3600.0)
MESSAGES_MAX = 5
#: Shorter input is always cheap. A decoder may take this many times as long as json.
_COSTLY_BYTES, _TIMES_JSON = 2000, 40
_QUERY_PARTS = (
    *(
        "limit=1",
        "limit=007",
        "limit=0",
        "limit=999999999",
        "limit=9999999999",
        "limit=",
        "limit",
        "wait=0",
    ),
    *(
        "wait=1.5",
        "wait=.5",
        "wait=1.",
        "wait=1e1",
        "wait=-1",
        "wait=25.0001",
        "wait=999999999",
        "limit=+1",
    ),
    *(
        "wait=" + "0" * 40,
        "wait=0." + "1" * 33,
        "wait=0." + "1" * 32,
        "limit=1 ",
        "wait=\u0661",
        "limit=\u0661",
    ),
    *(
        "x=1",
        "Limit=1",
        "limit =1",
        "",
        "=",
        "limit=1;wait=1",
        "wait=NaN",
        "wait=inf",
        "limit=0x1",
        "limit=1_0",
    ),
)


class Input(NamedTuple):
    """Input for one of the decoders."""

    kind: str
    data: bytes
    content_type: str = ""
    #: The query and the headers of a post to an inbox; None without the header.
    query: str = ""
    x_timeout: str | None = None
    x_delay: str | None = None


def make(case: Case) -> Input:
    """Return the input of a case."""
    rng = case.rng
    match rng.randrange(12):
        case 10 | 11:
            return _text_post(rng)
        case 0 | 1 | 2 | 3:
            return Input("message", bodies.message(rng, "bob"))
        case 4 | 5:
            type_ = rng.choice(
                ("application/json", "application/x-ndjson", "Application/X-NDJSON; a=b")
            )
            return Input("batch", bodies.batch(rng, ("bob", "eve"), MESSAGES_MAX), type_)
        case 6:
            return Input("name", _name(rng))
        case 7:
            parts = [rng.choice(_QUERY_PARTS) for _ in range(rng.choice((0, 1, 1, 2, 3, 120)))]
            return Input("query", bodies.damage(rng, "&".join(parts).encode()))
        case 8:
            return Input("lease", bodies.about_a_lease(rng))
        case _:
            made = mutate(
                rng, rng.choice((b'"a\\"b"', b"wait=1, receipt", b"k" * 22)), rng.randrange(5)
            )
            return Input("header", made * rng.choice((1, 1, 1, 300)))


def _text_post(rng: random.Random) -> Input:
    type_ = rng.choice(list(reference.TYPES))
    body = bodies.message(rng, rng.choice(("bob", "bob", "eve")))
    if rng.random() < 0.5:
        body = mutate(rng, b"Backup ok \xf0\x9f\x98\x80", rng.randrange(5)) * rng.choice(
            (1, 1, 200)
        )
    timeouts = ("1", "1.0", "60", "060", "0", "2592000", "2592001", "", "x", "1e1", "-1")
    timeout = rng.choice(timeouts)
    delays = ("0", "0.5", "30", "2592000", "2592000.5", "", "x", "1e1", "-1")
    delay = rng.choice(delays)
    query = rng.choice(
        (
            *("", "", "timout=1", "timeout=1&timeout=1", f"timeout={timeout}"),
            *(f"delay={delay}", f"timeout={timeout}&delay={delay}"),
        )
    )
    header = rng.choice((None, None, timeout, rng.choice(timeouts)))
    x_delay = rng.choice((None, None, None, delay, rng.choice(delays)))
    return Input("post", body, type_, query, header, x_delay)


def _name(rng: random.Random) -> bytes:
    letters = (
        "a",
        "Z",
        "%41",
        "%C3%A9",
        "%00",
        "%2F",
        ".",
        "%2e",
        "%",
        "%zz",
        "%C3",
        "%ED%A0%80",
        "~",
        "+",
    )
    long = rng.choice((1, 1, 1, 60, 130))
    made = "".join(rng.choice(letters) for _ in range(rng.randrange(6))) * long
    return made.encode()


class Decoders(Fuzzer):
    """All decoders, in this process, with a store in memory."""

    name = "decoders"
    at_once = 200
    share = 2

    async def __aenter__(self) -> "Decoders":
        self._stack = AsyncExitStack()
        limits = PoolLimits(
            1, QueueLimits(5000, 1 << 26, 5000), ShardLimits(500, 1 << 22, 1000, 5.0), 5.0, 1000
        )
        metrics = WorkerMetrics(CollectorRegistry())
        self._store = MemoryStore()
        self._pool = WorkerPool(self._store, DatabaseClock(), limits, metrics)
        self._stack.push_async_callback(self._pool.stop)
        await self._pool.start()
        self._batches = BatchHandlers(self._pool, RULES, MESSAGES_MAX, lambda *_: None)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def judge(self, cases: Sequence[Case]) -> list[Finding]:
        """Decode one input after the other."""
        findings = []
        for case in cases:
            given = make(case)
            self.tally[given.kind] += 1
            found = await self._check(given)
            if found:
                rule, seen = found
                findings.append(Finding(case, rule, await self._shown(given, rule, seen)))
        # The stored messages are not needed again.
        self._store.data.documents.clear()
        self._store.data.undo.clear()
        await asyncio.sleep(0)
        return findings

    async def _shown(self, given: Input, rule: str, seen: str) -> str:
        async def is_found(data: bytes) -> bool:
            found = await self._check(given._replace(data=data))
            return found is not None and found[0] == rule

        check: Callable[[bytes], Awaitable[bool]] = is_found
        short = given.data if not self.shortens else await shrink(given.data, check)
        found = await self._check(given._replace(data=short))
        return f"{given.kind}, cut to {short!r}\n{found[1] if found else seen}"

    async def _check(self, given: Input) -> tuple[str, str] | None:
        """Return the rule that this input breaks, and how; None if it breaks none."""
        try:
            if given.kind == "batch":
                return await self._check_batch(given)
            if given.kind == "post":
                return _check_post(given)
            return _CHECKS[given.kind](given.data) or _cost(given)
        except Exception as error:
            return "an exception other than Problem", f"{type(error).__name__}: {error}"

    async def _check_batch(self, given: Input) -> tuple[str, str] | None:
        wanted = reference.batch(given.data, given.content_type, LIMITS, MESSAGES_MAX)
        headers = {"Content-Type": given.content_type}
        request = Request("id", "POST", "", "", headers, given.data)
        before = set(self._store.data.documents)
        try:
            response = await self._batches.post(request)
        except Problem as problem:
            got = _refusal(problem)
            if got in wanted.wholes:
                return None
            return "a valid batch is refused", f"got {got}, expected {wanted}"
        if wanted.messages is None:
            return "an invalid batch is accepted", f"expected {set(wanted.wholes)}"
        assert isinstance(response.body, BodyChunk)
        results = json.loads(response.body.body)["results"]
        outcomes = [self._outcome(result) for result in results]
        for number, (outcome, right) in enumerate(zip(outcomes, wanted.messages, strict=False)):
            if outcome not in right:
                return "a message of a batch", f"number {number}: got {outcome}, expected {right}"
        if len(outcomes) != len(wanted.messages):
            return "one answer for each message", f"{len(outcomes)}, not {len(wanted.messages)}"
        stored = len(set(self._store.data.documents) - before)
        if stored != sum(isinstance(outcome, Accepted) for outcome in outcomes):
            return "exactly the accepted messages are stored", f"{stored} stored, {outcomes}"
        return None

    def _outcome(self, result: dict[str, object]) -> Outcome:
        if "id" not in result:
            problem = result["error"]
            assert isinstance(problem, dict)
            fields = frozenset(error["field"] for error in problem.get("errors", ()))
            return Refused(problem["type"].rpartition(":")[2], fields)
        post = self._store.data.documents[str(result["id"])].post
        from_ms = post.due_ms or post.created_ms
        lasts_s = round((post.expires_ms - from_ms) / 1000)
        return Accepted(post.username, post.text, lasts_s, from_ms - post.created_ms)


def _refusal(problem: Problem) -> Refused:
    return Refused(problem.kind, frozenset(error.field for error in problem.errors))


def _check_message(data: bytes) -> tuple[str, str] | None:
    right = reference.message(data, LIMITS)
    got: Outcome
    try:
        new = new_message(data, RULES)
    except Problem as problem:
        got = _refusal(problem)
    else:
        got = Accepted(new.username, new.text, new.timeout_s, math.ceil(new.delay_s * 1000))
        if new.size != len(new.text.encode()):
            return "the size of a text", f"{new.size} for {new.text!r}"
    return None if got in right else ("a message", f"got {got}, expected {right}")


def _check_post(given: Input) -> tuple[str, str] | None:
    asked: dict[str, list[str]] = {"timeout": [], "delay": []}
    for name, _, value in (part.partition("=") for part in given.query.split("&") if part):
        asked.setdefault(name, []).append(value)
    asked.pop("timout", None)
    for name, header in (("timeout", given.x_timeout), ("delay", given.x_delay)):
        if header is not None:
            asked[name].append(header)
    right = reference.text_post(given.data, given.content_type, asked, "bob", LIMITS)
    if given.query == "timout=1":
        right = {Refused("invalid-request", frozenset({"timout"}))}
    elif given.query == "timeout=1&timeout=1":
        right = {Refused("invalid-request", frozenset({"timeout"}))}
    headers = {"Content-Type": given.content_type}
    if given.x_timeout is not None:
        headers["X-Timeout"] = given.x_timeout
    if given.x_delay is not None:
        headers["X-Delay"] = given.x_delay
    got: Outcome
    try:
        options = post_options(given.query, headers)
        new = message_to("bob", given.data, headers, options, RULES)
    except Problem as problem:
        got = _refusal(problem)
    else:
        got = Accepted(new.username, new.text, new.timeout_s, math.ceil(new.delay_s * 1000))
    return None if got in right else ("a post to an inbox", f"got {got}, expected {right}")


def _check_name(data: bytes) -> tuple[str, str] | None:
    segment = data.decode("latin1")
    right = reference.username_in_path(segment, LIMITS)
    got: str | Refused
    try:
        got = username_in_path(segment, RULES)
    except Problem as problem:
        got = _refusal(problem)
    return None if got == right else ("a name in a path", f"got {got!r}, expected {right!r}")


def _check_query(data: bytes) -> tuple[str, str] | None:
    query = data.decode("latin1")
    right = reference.read_options(query)
    try:
        options = read_options(query, WAITS)
    except Problem as problem:
        if right is not None:
            return "a query is refused", f"got {_refusal(problem)}, expected {right}"
        return None
    if right is None:
        # The reference does not judge unknown or unusual parameters, only their bounds.
        if options.limit is not None and options.limit < 1:
            return "a limit below 1", str(options)
        return None if 0 <= options.wait_s <= WAITS.wait_max_s else ("a wait", str(options))
    limit, wait_s = right
    wanted = (limit, min(wait_s, WAITS.wait_max_s), wait_s > WAITS.wait_max_s)
    got = (options.limit, options.wait_s, options.is_clamped)
    return None if got == wanted else ("a query", f"got {got}, expected {wanted}")


def _check_lease(data: bytes) -> tuple[str, str] | None:
    try:
        asked = lease_body(data, RULES)
    except Problem as problem:
        got = _refusal(problem)
        known = {"invalid-json", "invalid-request"}
        fits = got.kind in known and got.fields <= {"lease", "ids", "ttl", "delay"}
        return None if fits else ("a problem about a lease", str(got))
    try:
        document = json.loads(data.removeprefix(reference.BOM).decode(), parse_int=float)
    except ValueError as error:
        return "a lease in invalid JSON", f"got {asked}, but {error}"
    right = tuple(document.get(field) for field in ("lease", "ids", "ttl", "delay"))
    is_right = (asked.lease, asked.ids, asked.ttl, asked.delay) == right
    return None if is_right else ("a lease", str(asked))


def _check_header(data: bytes) -> tuple[str, str] | None:
    value = data.decode("latin1")
    preferred = preferences(value)
    if preferred.wait is not None and not float(preferred.wait) >= 0:
        return "a wait in Prefer", str(preferred)
    try:
        key = idempotency_key(HTTPHeaders({"Idempotency-Key": value}))
    except (Problem, ValueError) as error:
        # Tornado's own class refuses invalid header values.
        is_right = isinstance(error, Problem) or not value.isprintable() or value != value.strip()
        return None if is_right else ("a key", repr(error))
    is_key = key is not None and 1 <= len(key) <= 255 and key.isascii() and key.isprintable()
    return None if is_key else ("a key", repr(key))


_CHECKS: dict[str, Callable[[bytes], tuple[str, str] | None]] = {
    "message": _check_message,
    "name": _check_name,
    "query": _check_query,
    "lease": _check_lease,
    "header": _check_header,
}


#: Only the service's part of each check.
_WORK: dict[str, Callable[[str, bytes], object]] = {
    "message": lambda _, data: new_message(data, RULES),
    "name": lambda text, _: username_in_path(text, RULES),
    "query": lambda text, _: read_options(text, WAITS),
    "lease": lambda _, data: lease_body(data, RULES),
    "header": lambda text, _: (preferences(text), idempotency_key({"Idempotency-Key": text})),
}


def _cost(given: Input) -> tuple[str, str] | None:
    """Return a finding if decoding takes far longer than an honest document of this length."""
    if len(given.data) < _COSTLY_BYTES:
        return None
    work, text = _WORK[given.kind], given.data.decode("latin1")
    honest = json.dumps({"text": "x" * len(given.data), "username": "bob"})
    # Take the minimum of a few runs, because other processes disturb the measurement.
    base = min(_time(lambda: json.loads(honest)) for _ in range(5))
    taken = min(_time(lambda: work(text, given.data)) for _ in range(5))
    # Allow a small constant, independent of the length.
    if taken < _TIMES_JSON * base + 0.0005:
        return None
    return "the cost", f"{taken:.6f} s, and json {base:.6f} s for as many bytes"


def _time(work: Callable[[], object]) -> float:
    began = time.process_time()
    with suppress(Problem, ValueError):
        work()
    return time.process_time() - began
