"""The state of this node: which conditions hold, how bad each is, and what to do about it.

The dashboard, the alerts in `deploy/prometheus/alerts.yml` and the runbook in docs/operations.md
follow the names and thresholds of this module; a test compares them. Everything here is pure.
Called by `chat_service.metrics.history`.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias

from chat_service.metrics.samples import Samples
from workers.metrics import LEASE_ENDS

Severity: TypeAlias = Literal["down", "failing", "degraded", "recovering", "ok"]
DatabaseState: TypeAlias = Literal["available", "unavailable"]
DatabaseKind: TypeAlias = Literal["replica set", "mongos"]
_WORST_FIRST: Sequence[Severity] = ("down", "failing", "degraded", "recovering", "ok")

#: Most conditions are judged by the last minute, rare events by all samples of the last quarter of
#: an hour. In seconds.
RECENT_S, KEPT_S = 60.0, 900.0
#: A condition is recovering once its events did not happen for this long, in seconds, while
#: requests succeeded. A fault that comes back is a fault again at once.
QUIET_S = 30.0
#: A leader that dies is replaced within ten seconds, so a pause of this many seconds is normal.
LEADERLESS_S = 15.0
#: A database that uses this share of what it may use is nearly full. A disk is if it has less than
#: so many times the space that is kept free.
USED_SHARE, FREE_FACTOR = 0.9, 2
#: So many requests must be slow, messages expire, or leases run out, before the condition holds.
SLOW_MIN, EXPIRED_MIN, RAN_OUT_MIN = 3, 10, 10
#: Leases run out again and again if some did in the last so many seconds, and some before. A worker
#: that is killed lets all of its leases run out, but only once.
AGAIN_S = 300.0
#: Pending messages must have grown to more than so many times their earlier number.
PENDING_FACTOR = 2


class Threshold(NamedTuple):
    """A numeric limit, its unit, and the runbook entry about what is beyond it."""

    value: float
    unit: str
    runbook: str


#: The thresholds that do not depend on the node. The alerts use the same numbers.
THRESHOLDS: Mapping[str, Threshold] = {
    "failed": Threshold(0.01, "share", "requests-fail"),
    "refused": Threshold(0.01, "share", "clients-get-503"),
    "limited": Threshold(0.05, "share", "clients-get-429"),
    "latency": Threshold(0.5, "s", "p99-is-up"),
    "database_time": Threshold(0.05, "s", "p99-is-up"),
    "queue_time": Threshold(0.2, "s", "node-is-slow"),
    "loop_lag": Threshold(0.1, "s", "node-is-slow"),
    "pending": Threshold(10_000, "messages", "pending-grows"),
    "expired_unread": Threshold(0.05, "share", "messages-expire-unread"),
    "leases_ran_out": Threshold(0.2, "share", "leases-run-out"),
    "dead": Threshold(0, "messages", "dead-letters-grow"),
    "clock_offset": Threshold(1.0, "s", "clocks-differ"),
    "certificate": Threshold(14 * 86_400, "s", "certificate-expires"),
}


class Condition(NamedTuple):
    """Something that is wrong. `name` never changes; `runbook` is the anchor of its entry."""

    name: str
    severity: Severity
    says: str
    next_step: str
    runbook: str


class Database(NamedTuple):
    """The database as this process sees it. None stands for what is unknown."""

    state: DatabaseState
    kind: DatabaseKind
    version: str | None
    members: int | None


class Disk(NamedTuple):
    """The disk of the database in bytes.

    Posts are refused with less than `free_min_bytes` free, or if the messages use more than
    `used_max_bytes`. None stands for no limit, and for what is unknown.
    """

    free_bytes: int | None
    total_bytes: int | None
    reusable_bytes: int
    used_bytes: int
    free_min_bytes: int | None
    used_max_bytes: int | None


class Facts(NamedTuple):
    """What is known about this node besides its samples. Times are in seconds since 1970.

    `leader` is empty while it is unknown, which it was for `leaderless_s` seconds.
    `recent_restarts` counts the processes that died within `KEPT_S` seconds, the last one at
    `last_restart`. `recent_mongod_restarts` and `last_mongod_restart` are about the embedded
    mongod.
    """

    database: Database
    disk: Disk | None
    leader: str
    leaderless_s: float = 0.0
    recent_restarts: int = 0
    last_restart: float = 0.0
    recent_mongod_restarts: int = 0
    last_mongod_restart: float = 0.0
    certificate_ends: float | None = None
    is_certificate_refused: bool = False


class State(NamedTuple):
    """The overall state: that of the worst condition. The conditions come worst first, but a cause
    comes before its consequences. `says` is what the first one says.
    """

    severity: Severity
    says: str
    conditions: Sequence[Condition]


def _settled(condition: Condition, samples: Samples, facts: Facts, now: float) -> Condition:
    """Return the condition as recovering if its events did not happen for a while."""
    if condition.name not in _EVENTS:
        return condition
    events = _EVENTS[condition.name]
    last = events.last(samples, facts)
    if now - last < QUIET_S or samples.growth(_ANSWERED[0], QUIET_S) <= 0:
        return condition
    quiet = f"{events.none} for {_span(now - last)}; the last one was at {_clock(last)}."
    ends = f"this ends by {_clock(last + events.within_s)}, unless it happens again."
    if events.within_s == RECENT_S:
        # Its numbers are those of a minute that is mostly good again.
        return condition._replace(
            severity="recovering", says=quiet, next_step=f"Nothing to do: {ends}"
        )
    return condition._replace(
        severity="recovering",
        says=f"{quiet} {condition.says}",
        next_step=f"It works again: {ends} {condition.next_step}",
    )


def judge(samples: Samples, facts: Facts, now: float) -> State:
    """Return the state of the node at `now`, in seconds since 1970."""
    found = [
        *_database(samples, facts),
        *_disk(samples, facts),
        *_requests(samples),
        *_times(samples),
        *_messages(samples),
        *_node(samples, facts),
        *_upkeep(samples, facts, now),
    ]
    found = [_settled(each, samples, facts, now) for each in found]
    found.sort(key=lambda each: _WORST_FIRST.index(each.severity))
    if not found:
        return State("ok", "Everything works.", found)
    ordered = _causes_first(found, samples, facts, now)
    return State(found[0].severity, ordered[0].says, ordered)


def _causes_first(
    found: Sequence[Condition], samples: Samples, facts: Facts, now: float
) -> Sequence[Condition]:
    """Return the conditions with each recent cause before the first of its consequences."""
    ordered = [*found]
    for cause in found:
        consequences = _CONSEQUENCES.get(cause.name, frozenset())
        if not consequences or now - _EVENTS[cause.name].last(samples, facts) >= RECENT_S:
            continue
        ordered.remove(cause)
        places = (place for place, each in enumerate(ordered) if each.name in consequences)
        ordered.insert(min(next(places, len(ordered)), found.index(cause)), cause)
    return ordered


def thresholds_of(facts: Facts) -> Mapping[str, Threshold]:
    """Return all thresholds by name, with those that depend on the node's settings and disk."""
    disk, found = facts.disk, dict(THRESHOLDS)
    if disk is not None and disk.free_min_bytes is not None:
        found["storage_free"] = Threshold(disk.free_min_bytes, "bytes", "disk-fills")
    if disk is not None and disk.used_max_bytes is not None:
        found["storage_used"] = Threshold(disk.used_max_bytes, "bytes", "disk-fills")
    return found


_REQUESTS = "chat_http_requests_total"
_ANSWERED = [f'{_REQUESTS}{{code="{code}"}}' for code in ("ok", "4xx", "499", "5xx")]
_FAILED = [f'{_REQUESTS}{{code="5xx"}}']
_LATENCY, _QUEUE_TIME = "chat_http_request_duration_seconds", "chat_queue_wait_seconds"
_STORE = "chat_store_operation_seconds"
#: The operations that each message needs, in words.
_OPERATIONS = {"insert": "an insert", "find": "a find", "claim": "a claim"}
_SLOW_DATABASE_STEP = (
    "Look for operations that take long, for a mongod that something stops, and for a slow disk: "
    "“A slow database” in the runbook's entry “p99 is up” has the commands."
)
_MESSAGES_ENDED = [
    f"chat_messages_{end}_total" for end in ("read", "expired_unread", "revoked", "dead")
]

_LEASES_ENDED = [f'chat_lease_messages_total{{end="{end}"}}' for end in LEASE_ENDS]
_RAN_OUT = 'chat_lease_messages_total{end="expired"}'


def _refused(*reasons: str) -> list[str]:
    return [f'chat_requests_refused_total{{reason="{reason}"}}' for reason in reasons]


class _Events(NamedTuple):
    """The single events that a condition is about.

    `none` says that none happened, `last` returns the time of the last one, and the condition holds
    for at most `within_s` seconds after it.
    """

    none: str
    within_s: float
    last: Callable[[Samples, Facts], float]


def _growth_of(*counters: str) -> Callable[[Samples, Facts], float]:
    return lambda samples, facts: samples.last_growth(counters)


def _above(histogram: str, threshold: str) -> Callable[[Samples, Facts], float]:
    limit = THRESHOLDS[threshold].value
    return lambda samples, facts: samples.last_above(histogram, limit)


_LIMITED = ["chat_http_requests_limited_total", *_refused("inbox-full")]
#: The conditions that are about single events, by name.
_EVENTS: Mapping[str, _Events] = {
    "clients-get-503": _Events(
        "No request was refused", RECENT_S, _growth_of(*_refused("overloaded", "expired"))
    ),
    "requests-fail": _Events("No request failed", RECENT_S, _growth_of(*_FAILED)),
    "clients-get-429": _Events("No request exceeded a limit", RECENT_S, _growth_of(*_LIMITED)),
    "outcomes-unknown": _Events(
        "No outcome was unknown", RECENT_S, _growth_of("chat_outcomes_unknown_total")
    ),
    "p99-is-up": _Events("No request was slow", RECENT_S, _above(_LATENCY, "latency")),
    "requests-queue": _Events(
        "No request waited long in a queue", RECENT_S, _above(_QUEUE_TIME, "queue_time")
    ),
    "process-restarts": _Events(
        "No process died", KEPT_S, lambda samples, facts: facts.last_restart
    ),
    "worker-restarts": _Events(
        "No shard worker died", KEPT_S, _growth_of("chat_worker_restarts_total")
    ),
    "mongod-restarts": _Events(
        "mongod did not end", KEPT_S, lambda samples, facts: facts.last_mongod_restart
    ),
}

#: The conditions that follow from another one whose last event is at most `RECENT_S` ago.
_CONSEQUENCES: Mapping[str, frozenset[str]] = {
    "mongod-restarts": frozenset(
        {
            "database-unavailable",
            "clients-get-503",
            "requests-fail",
            "outcomes-unknown",
            "p99-is-up",
            "requests-queue",
        }
    ),
    "worker-restarts": frozenset({"requests-fail", "outcomes-unknown"}),
}


def _database(samples: Samples, facts: Facts) -> Iterator[Condition]:
    if samples.highest("chat_database_away") > 0 or facts.database.state == "unavailable":
        yield Condition(
            "database-unavailable",
            "down",
            "The database does not answer, so requests are refused.",
            "Find out whether it has a primary, a full disk or a broken network. The service "
            "continues on its own once it answers: do not restart it.",
            "database-unavailable",
        )
    if samples.highest("chat_indexes_missing") > 0:
        yield Condition(
            "indexes-missing",
            "failing",
            "A database index is missing or wrong, so posts with a key are refused.",
            "The log line “indexes are not as they must be” names it and the reason.",
            "indexes-missing",
        )
    if unknown := samples.growth("chat_outcomes_unknown_total", RECENT_S):
        yield Condition(
            "outcomes-unknown",
            "degraded",
            f"{_count(unknown, 'request')} got no certain answer in the last minute: the "
            "database's was lost.",
            "During a failover this is normal. Otherwise check the network to the database.",
            "outcomes-unknown",
        )


def _disk(samples: Samples, facts: Facts) -> Iterator[Condition]:
    disk = facts.disk
    if samples.highest("chat_storage_full") > 0:
        yield Condition(
            "storage-full",
            "failing",
            "Posts are refused, because the database has no room for more messages.",
            "Reads continue. Free space on the disk of the database, or have messages read. The "
            "service then accepts posts again on its own.",
            "disk-fills",
        )
    elif disk is not None and _is_nearly_full(disk):
        yield Condition(
            "disk-fills",
            "degraded",
            f"The database has little room left: {_room_of(disk)}.",
            "Find out what fills the disk, before posts are refused.",
            "disk-fills",
        )


def _is_nearly_full(disk: Disk) -> bool:
    free, free_min, used_max = disk.free_bytes, disk.free_min_bytes, disk.used_max_bytes
    if (
        free is not None
        and free_min is not None
        and free + disk.reusable_bytes < FREE_FACTOR * free_min
    ):
        return True
    return used_max is not None and disk.used_bytes > USED_SHARE * used_max


def _room_of(disk: Disk) -> str:
    said = []
    if disk.free_bytes is not None and disk.free_min_bytes is not None:
        said.append(
            f"{_size(disk.free_bytes)} are free, and posts are refused below "
            f"{_size(disk.free_min_bytes)}"
        )
    if disk.used_max_bytes is not None:
        said.append(f"{_size(disk.used_bytes)} of {_size(disk.used_max_bytes)} are used")
    return "; ".join(said)


def _requests(samples: Samples) -> Iterator[Condition]:
    refused = _refused("overloaded", "expired")
    share = samples.share(refused, _ANSWERED, RECENT_S)
    if share > THRESHOLDS["refused"].value:
        is_late = samples.growth(refused[1], RECENT_S) > samples.growth(refused[0], RECENT_S)
        yield Condition(
            "clients-get-503",
            "failing",
            f"{_percent(share)} of the requests of the last minute were refused, because "
            + ("they waited too long." if is_late else "the queues are full."),
            "Compare the time of the database with the rate of requests: add nodes, or find the "
            "client that sends too much.",
            "clients-get-503",
        )
    share = samples.share(_FAILED, _ANSWERED, RECENT_S)
    if share > THRESHOLDS["failed"].value:
        failed = samples.growth(_FAILED[0], RECENT_S)
        yield Condition(
            "requests-fail",
            "failing",
            f"{_percent(share)} of the requests of the last minute failed: {failed:,.0f} were "
            "answered with 5xx.",
            "The refused requests show the reason. Without any, the answers are 500, and the log "
            "has their tracebacks.",
            "requests-fail",
        )
    share = samples.share(_LIMITED, _ANSWERED, RECENT_S)
    if share > THRESHOLDS["limited"].value:
        yield Condition(
            "clients-get-429",
            "degraded",
            f"{_percent(share)} of the requests of the last minute exceeded a limit for clients, "
            "or the quota of an inbox.",
            "Find out whether honest clients are among them.",
            "clients-get-429",
        )


def _times(samples: Samples) -> Iterator[Condition]:
    limit = THRESHOLDS["latency"].value
    wait = samples.percentile(0.99, _QUEUE_TIME, RECENT_S)
    lag = samples.lasting("chat_event_loop_lag_seconds", RECENT_S)
    operation, database = _slowest_operation(samples)
    is_database_slow = database > THRESHOLDS["database_time"].value
    slow_database = f"The database is slow: p99 of {operation} is {_time(database)}."
    requests = samples.growth(f"{_LATENCY}_count", RECENT_S)
    slow = requests - samples.growth(f'{_LATENCY}_bucket{{le="{limit}"}}', RECENT_S)
    if slow >= SLOW_MIN and slow > 0.01 * requests:
        # In the order of the runbook: the first that is high is the cause.
        if lag > THRESHOLDS["loop_lag"].value:
            cause = f"The processor is short: the event loop wakes up {_time(lag)} late."
            next_step = "Find out what else runs on this machine, or give the service more cores."
        elif is_database_slow:
            cause = slow_database
            next_step = _SLOW_DATABASE_STEP
        elif wait > THRESHOLDS["queue_time"].value:
            cause = f"The database is fast, and requests wait up to {_time(wait)} in a queue."
            next_step = "This node is saturated: add nodes, or processes if cores are idle."
        else:
            cause = "The processor, the database and the queues are within their thresholds."
            next_step = "See in the charts what else changed when it began."
        yield Condition(
            "p99-is-up",
            "degraded",
            f"{_count(slow, 'request')} of the last minute took longer than {_time(limit)}; p99 is "
            f"{_time(samples.percentile(0.99, _LATENCY, RECENT_S))}. {cause}",
            next_step,
            "p99-is-up",
        )
    if wait > THRESHOLDS["queue_time"].value:
        yield Condition(
            "requests-queue",
            "degraded",
            f"Requests wait up to {_time(wait)} in a queue."
            + (f" {slow_database}" if is_database_slow else ""),
            _SLOW_DATABASE_STEP
            if is_database_slow
            else "This node is saturated: add nodes, or processes if cores are idle.",
            "node-is-slow",
        )
    if lag > THRESHOLDS["loop_lag"].value:
        yield Condition(
            "event-loop-lags",
            "degraded",
            f"The event loop wakes up {_time(lag)} late: the processor is short.",
            "Find out what else runs on this machine, or give the service more cores.",
            "node-is-slow",
        )


def _slowest_operation(samples: Samples) -> tuple[str, float]:
    """Return the slowest of the operations that each message needs, and its p99; 0 without any."""
    found = {
        words: samples.percentile(0.99, _STORE, RECENT_S, f'operation="{operation}"')
        for operation, words in _OPERATIONS.items()
    }
    known = {words: p99 for words, p99 in found.items() if not math.isnan(p99)}
    return max(known.items(), key=lambda each: each[1], default=("", 0.0))


def _messages(samples: Samples) -> Iterator[Condition]:
    pending = samples.highest("chat_messages_pending")
    before = samples.earliest("chat_messages_pending")
    if pending > THRESHOLDS["pending"].value and pending > PENDING_FACTOR * before:
        yield Condition(
            "pending-grows",
            "degraded",
            f"{pending:,.0f} messages are pending, more than twice as many as a quarter of an hour "
            "ago.",
            "More is posted than read. Find the fullest inboxes and their readers.",
            "pending-grows",
        )
    expired = samples.growth("chat_messages_expired_unread_total", KEPT_S)
    share = samples.share(["chat_messages_expired_unread_total"], _MESSAGES_ENDED, KEPT_S)
    if expired > EXPIRED_MIN and share > THRESHOLDS["expired_unread"].value:
        yield Condition(
            "messages-expire-unread",
            "degraded",
            f"{_count(expired, 'message')} expired unread in the last quarter of an hour. This "
            "node counts those of all nodes.",
            "Readers are gone, too slow, or read other inboxes. Find the fullest inboxes.",
            "messages-expire-unread",
        )
    ran_out = samples.growth(_RAN_OUT, KEPT_S)
    last = samples.growth(_RAN_OUT, AGAIN_S)
    share = samples.share([_RAN_OUT], _LEASES_ENDED, KEPT_S)
    if ran_out > RAN_OUT_MIN and 0 < last < ran_out and share > THRESHOLDS["leases_ran_out"].value:
        yield Condition(
            "leases-run-out",
            "degraded",
            f"Leases ran out {ran_out:,.0f} times in the last quarter of an hour, counted for each "
            f"message: {_percent(share)} of those that ended. This node counts those of all nodes.",
            "A program leases messages and does not acknowledge them, or dies again and again. "
            "Find the inbox, and then its readers.",
            "leases-run-out",
        )
    dead = samples.growth("chat_messages_dead_total", KEPT_S)
    if dead > THRESHOLDS["dead"].value:
        yield Condition(
            "dead-letters-grow",
            "degraded",
            f"{_count(dead, 'dead letter')} came in the last quarter of an hour.",
            "A consumer fails on them. Find their inbox, fix the consumer, and give them back.",
            "dead-letters-grow",
        )


def _node(samples: Samples, facts: Facts) -> Iterator[Condition]:
    # Without the database there is no leader, and that is not the cause.
    if facts.database.state == "available" and facts.leaderless_s > LEADERLESS_S:
        yield Condition(
            "leader-missing",
            "degraded",
            "No node leads, so leases do not end and expired messages are not counted.",
            "The logs have the reason: the database refuses writes, or its user may not write to "
            "the collection fleet.",
            "leader-missing",
        )
    restarts = facts.recent_restarts
    if restarts:
        yield Condition(
            "process-restarts",
            "degraded",
            f"{_count(restarts, 'process', 'processes')} died in the last quarter of an hour and "
            f"{_were(restarts)} replaced.",
            "The log has the exit code or signal. The kernel's log says whether memory ran out.",
            "process-restarts",
        )
    if ends := facts.recent_mongod_restarts:
        yield Condition(
            "mongod-restarts",
            "degraded",
            f"The embedded mongod ended {_count(ends, 'time')} in the last quarter of an hour and "
            "was restarted.",
            "The log line “mongod ended and will be restarted” has the reason: after SIGKILL, look "
            "for “Out of memory” in dmesg.",
            "mongod-does-not-start",
        )
    if shards := samples.growth("chat_worker_restarts_total", KEPT_S):
        yield Condition(
            "worker-restarts",
            "degraded",
            f"{_count(shards, 'shard worker')} died in the last quarter of an hour and "
            f"{_were(shards)} restarted.",
            "This is a bug: the log has the traceback.",
            "process-restarts",
        )


def _upkeep(samples: Samples, facts: Facts, now: float) -> Iterator[Condition]:
    offset = samples.highest("chat_clock_offset_seconds")
    if abs(offset) > THRESHOLDS["clock_offset"].value:
        yield Condition(
            "clocks-differ",
            "degraded",
            f"The database's clock differs from this machine's by {offset:+.1f} s.",
            "Fix NTP on the machine whose clock is wrong. Lifetimes are not affected.",
            "clocks-differ",
        )
    if (
        samples.highest("chat_access_file_broken") > 0
        or samples.highest("chat_jwt_keys_broken") > 0
    ):
        yield Condition(
            "access-broken",
            "degraded",
            "The access file or the keys of tokens cannot be used. Earlier ones stay in effect.",
            "The log has the reason. Correct it before the next start, which would fail.",
            "clients-get-401-or-403",
        )
    ends = facts.certificate_ends
    is_ending = ends is not None and ends - now < THRESHOLDS["certificate"].value
    if facts.is_certificate_refused or is_ending:
        yield Condition(
            "certificate-expires",
            "degraded",
            "The certificate's new files cannot be used; the old ones stay in use."
            if facts.is_certificate_refused
            else f"The certificate expires in {max((ends or now) - now, 0) / 86_400:.0f} days.",
            "Renew it and replace both files. The service takes them without a restart.",
            "certificate-expires",
        )


def _percent(share: float) -> str:
    # As on the page: 100% means all.
    return f"{math.floor(share * 100 + 1e-9)}%" if share >= 0.1 else f"{share:.1%}"


def _clock(at: float) -> str:
    return time.strftime("%H:%M:%S UTC", time.gmtime(at))


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _time(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds >= 1 or math.isnan(seconds) else f"{seconds * 1000:.0f} ms"


def _size(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB" if size >= 1 << 30 else f"{size / (1 << 20):.0f} MiB"


def _count(number: float, noun: str, plural: str = "") -> str:
    return f"{number:,.0f} {noun if number == 1 else plural or noun + 's'}"


def _were(number: float) -> str:
    return "was" if number == 1 else "were"
