"""The conditions: each with samples or facts that make it true, and others that do not."""

import math
from array import array
from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest
from prometheus_client import CollectorRegistry

from chat_service.metrics.conditions import (
    THRESHOLDS,
    Database,
    Disk,
    Facts,
    State,
    judge,
    thresholds_of,
)
from chat_service.metrics.http import HttpMetrics
from chat_service.metrics.sampler import series_groups_of
from chat_service.metrics.samples import Recorded, Samples
from workers.metrics import WorkerMetrics

NOW = 1_795_600_000.0
AVAILABLE = Database("available", "replica set", "8.0.4", 3)
GIB = 1 << 30
REFUSED = 'chat_requests_refused_total{reason="%s"}'
ANSWERED = 'chat_http_requests_total{code="%s"}'
LATENCY = "chat_http_request_duration_seconds"
STORE = "chat_store_operation_seconds"
WAIT = "chat_queue_wait_seconds"
DISK = Disk(40 * GIB, 100 * GIB, 0, GIB, GIB // 2, None)


def process(
    before: Mapping[str, float],
    after: Mapping[str, float],
    ago_s: float = 30.0,
    started: float = NOW - 5000,
) -> Recorded:
    """Return a process with two values of each series, the last one of now."""
    series = sorted({*before, *after})
    rows = array("d")
    for at, values in ((NOW - ago_s, before), (NOW, after)):
        rows.extend([at, *(values.get(name, 0.0) for name in series)])
    return Recorded(1, started, series, rows)


def state(*processes: Recorded, **facts: Any) -> State:
    """Judge these processes, of a node without other problems unless the facts say so."""
    known = Facts(AVAILABLE, DISK, "vm/1")._replace(**facts)
    return judge(Samples(processes, NOW), known, NOW)


class Case(NamedTuple):
    """What makes a condition true, and what nearly does: growing series or facts."""

    name: str
    true: Mapping[str, float]
    false: Mapping[str, float]
    facts: Mapping[str, Any] = {}
    false_facts: Mapping[str, Any] = {}


def latency(fast: float, slow: float) -> dict[str, float]:
    """Return a histogram of requests below and above half a second."""
    return {
        f'{LATENCY}_bucket{{le="0.2"}}': fast,
        f'{LATENCY}_bucket{{le="0.5"}}': fast,
        f'{LATENCY}_bucket{{le="1.0"}}': fast + slow,
        f"{LATENCY}_count": fast + slow,
    }


def waits(fast: float, slow: float) -> dict[str, float]:
    """Return a histogram of batches that waited less and more than 0.2 s."""
    return {
        f'{WAIT}_bucket{{le="0.2"}}': fast,
        f'{WAIT}_bucket{{le="0.5"}}': fast + slow,
        f"{WAIT}_count": fast + slow,
    }


def ended(expired: float, read: float) -> dict[str, float]:
    return {"chat_messages_expired_unread_total": expired, "chat_messages_read_total": read}


CASES = [
    Case("database-unavailable", {"chat_database_away": 1}, {"chat_database_away": 0}),
    Case(
        "database-unavailable",
        {},
        {},
        {"database": AVAILABLE._replace(state="unavailable")},
        {"database": AVAILABLE},
    ),
    Case("indexes-missing", {"chat_indexes_missing": 1}, {"chat_indexes_missing": 0}),
    Case("outcomes-unknown", {"chat_outcomes_unknown_total": 1}, {}),
    Case("storage-full", {"chat_storage_full": 1}, {"chat_storage_full": 0}),
    Case(
        "disk-fills",
        {},
        {},
        {"disk": DISK._replace(free_bytes=GIB - 1)},
        {"disk": DISK._replace(free_bytes=GIB - 1, reusable_bytes=1)},
    ),
    Case(
        "disk-fills",
        {},
        {},
        {"disk": DISK._replace(used_max_bytes=1000, used_bytes=901)},
        {"disk": DISK._replace(used_max_bytes=1000, used_bytes=900)},
    ),
    Case(
        "clients-get-503",
        {REFUSED % "overloaded": 2, ANSWERED % "ok": 98},
        {REFUSED % "overloaded": 1, ANSWERED % "ok": 100},
    ),
    Case(
        "requests-fail",
        {ANSWERED % "5xx": 2, ANSWERED % "ok": 98},
        {ANSWERED % "5xx": 1, ANSWERED % "ok": 99},
    ),
    Case(
        "clients-get-429",
        {"chat_http_requests_limited_total": 6, ANSWERED % "4xx": 100},
        {"chat_http_requests_limited_total": 5, ANSWERED % "4xx": 100},
    ),
    Case(
        "clients-get-429",
        {REFUSED % "inbox-full": 6, ANSWERED % "4xx": 100},
        {REFUSED % "storage-full": 6, ANSWERED % "4xx": 100},
    ),
    Case("p99-is-up", latency(200, 3), latency(300, 3)),
    Case("p99-is-up", latency(0, 3), latency(0, 2)),
    Case("requests-queue", waits(98, 2), waits(99, 1)),
    Case(
        "event-loop-lags",
        {"chat_event_loop_lag_seconds": 0.11},
        {"chat_event_loop_lag_seconds": 0.1},
    ),
    Case("messages-expire-unread", ended(11, 200), ended(11, 209)),
    Case("messages-expire-unread", ended(11, 0), ended(10, 0)),
    Case("dead-letters-grow", {"chat_messages_dead_total": 1}, {}),
    Case("leader-missing", {}, {}, {"leaderless_s": 16.0}, {"leaderless_s": 15.0}),
    Case("process-restarts", {}, {}, {"recent_restarts": 1}),
    Case("worker-restarts", {"chat_worker_restarts_total": 1}, {}),
    Case("mongod-restarts", {}, {}, {"recent_mongod_restarts": 1}),
    Case("clocks-differ", {"chat_clock_offset_seconds": -1.1}, {"chat_clock_offset_seconds": 1.0}),
    Case("access-broken", {"chat_access_file_broken": 1}, {"chat_access_file_broken": 0}),
    Case("access-broken", {"chat_jwt_keys_broken": 1}, {"chat_jwt_keys_broken": 0}),
    Case(
        "certificate-expires",
        {},
        {},
        {"certificate_ends": NOW + 13 * 86_400},
        {"certificate_ends": NOW + 14 * 86_400},
    ),
    Case("certificate-expires", {}, {}, {"is_certificate_refused": True}),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_condition_is_true_beyond_its_limit_only(case: Case) -> None:
    # A gauge has the value for as long as it is judged, a counter grows by it.
    gauges = {name: value for name, value in case.true.items() if "total" not in name}
    gauges = {name: value for name, value in gauges.items() if "_seconds_" not in name}
    found = state(process(gauges, case.true), **case.facts)
    assert [each.name for each in found.conditions] == [case.name]
    (condition,) = found.conditions
    assert (found.severity, found.says) == (condition.severity, condition.says)
    assert condition.says.endswith(".")
    assert condition.next_step.endswith(".")
    gauges = {name: case.false[name] for name in gauges if name in case.false}
    assert state(process(gauges, case.false), **case.false_facts).severity == "ok"


def test_pending_grows_if_there_are_many_and_twice_as_many() -> None:
    name = "chat_messages_pending"
    grown = state(process({name: 5_000}, {name: 10_001}))
    assert [each.name for each in grown.conditions] == ["pending-grows"]
    assert state(process({name: 4_000}, {name: 10_000})).severity == "ok"
    assert state(process({name: 6_000}, {name: 11_000})).severity == "ok"
    assert state(process({name: math.nan}, {name: math.nan})).severity == "ok"


def lease_ends(expired: float, acknowledged: float) -> dict[str, float]:
    ends = {"expired": expired, "acknowledged": acknowledged}
    return {f'chat_lease_messages_total{{end="{end}"}}': count for end, count in ends.items()}


@pytest.mark.parametrize(
    ("before", "now", "is_wrong"),
    [
        # The growth until six minutes ago, and until now.
        ((10, 0), (11, 0), True),
        ((10, 40), (11, 43), True),
        # A worker that is killed lets the leases of all its messages run out once, also just now.
        ((900, 0), (900, 0), False),
        ((0, 0), (900, 0), False),
        # One that dies now and then.
        ((10, 400), (30, 800), False),
        ((10, 44), (11, 44), False),
        ((9, 0), (10, 0), False),
    ],
)
def test_leases_that_run_out_again_and_again_are_told(
    before: tuple[int, int], now: tuple[int, int], is_wrong: bool
) -> None:
    samples = [(900.0, lease_ends(0, 0)), (360.0, lease_ends(*before)), (0.0, lease_ends(*now))]
    found = state(rows(*samples))
    assert [each.name for each in found.conditions] == ["leases-run-out"] * is_wrong


@pytest.mark.parametrize(("count", "says"), [(1, "1 dead letter came"), (2, "2 dead letters came")])
def test_dead_letters_are_named_by_their_number(count: int, says: str) -> None:
    assert state(process({}, {"chat_messages_dead_total": count})).says.startswith(says)


def test_one_restart_and_several_are_named_by_their_number() -> None:
    shards = "chat_worker_restarts_total"
    one = state(process({}, {shards: 1}), recent_restarts=1).conditions
    two = state(process({}, {shards: 2}), recent_restarts=2).conditions
    span = " in the last quarter of an hour"
    assert [each.says for each in one] == [
        f"1 process died{span} and was replaced.",
        f"1 shard worker died{span} and was restarted.",
    ]
    assert [each.says for each in two] == [
        f"2 processes died{span} and were replaced.",
        f"2 shard workers died{span} and were restarted.",
    ]


def test_nothing_wrong_is_ok() -> None:
    assert state(process({}, {})) == State("ok", "Everything works.", [])
    assert state().severity == "ok"


def test_the_worst_condition_comes_first() -> None:
    found = state(
        process({}, {"chat_messages_dead_total": 1, "chat_database_away": 1, ANSWERED % "5xx": 9})
    )
    assert [each.severity for each in found.conditions] == ["down", "failing", "degraded"]
    assert found.severity == "down"


#: What a mongod that was killed again and again does to the requests of a minute.
KILLED = {ANSWERED % "5xx": 9.0, "chat_outcomes_unknown_total": 1.0, **latency(0, 9)}


@pytest.mark.parametrize("away", [0, 1])
def test_a_mongod_that_ended_comes_before_what_follows_from_it(away: int) -> None:
    gauges = {"chat_database_away": float(away)}
    found = state(
        process(gauges, {**KILLED, **gauges}),
        recent_mongod_restarts=3,
        last_mongod_restart=NOW - 10,
    )
    names = [each.name for each in found.conditions]
    assert names[0] == "mongod-restarts"
    assert {*names[1:]} >= {"requests-fail", "outcomes-unknown", "p99-is-up"}
    # The page shows what the first condition says, and its next step.
    assert found.says == found.conditions[0].says
    assert "mongod ended and will be restarted" in found.conditions[0].next_step
    assert found.severity == ("down" if away else "failing")


def test_an_end_of_mongod_long_ago_is_not_the_cause() -> None:
    ended = {"recent_mongod_restarts": 3, "last_mongod_restart": NOW - 61}
    found = state(process({}, KILLED), **ended)
    assert found.conditions[0].name == "requests-fail"


def test_an_end_of_mongod_is_not_the_cause_of_a_full_disk() -> None:
    full = {"chat_storage_full": 1.0, **KILLED}
    ended = {"recent_mongod_restarts": 1, "last_mongod_restart": NOW - 10}
    names = [each.name for each in state(process({}, full), **ended).conditions]
    assert names[:3] == ["storage-full", "mongod-restarts", "requests-fail"]


def test_a_dead_shard_worker_comes_before_failed_requests() -> None:
    found = state(process({}, {"chat_worker_restarts_total": 1, ANSWERED % "5xx": 9}))
    assert [each.name for each in found.conditions] == ["worker-restarts", "requests-fail"]
    assert found.severity == "failing"


def test_no_leader_is_no_cause_while_the_database_is_gone() -> None:
    gone = AVAILABLE._replace(state="unavailable")
    found = state(database=gone, leaderless_s=100.0)
    assert [each.name for each in found.conditions] == ["database-unavailable"]


def test_100_percent_means_all() -> None:
    nearly = state(process({}, {ANSWERED % "5xx": 999, ANSWERED % "ok": 1}))
    assert nearly.says.startswith("99% ")
    assert state(process({}, {ANSWERED % "5xx": 999})).says.startswith("100% ")


def inserts(fast: float, slow: float) -> dict[str, float]:
    """Return a histogram of inserts that took less than 0.05 s, and between 0.5 and 1 s."""
    bucket = STORE + '_bucket{operation="insert",le="%s"}'
    return {
        bucket % "0.05": fast,
        bucket % "0.5": fast,
        bucket % "1.0": fast + slow,
        STORE + '_count{operation="insert"}': fast + slow,
    }


@pytest.mark.parametrize(
    ("grown", "cause", "step"),
    [
        (
            {"chat_event_loop_lag_seconds": 0.11, **inserts(0, 9), **waits(0, 9)},
            "The processor is short: the event loop wakes up 110 ms late.",
            "Find out what else runs",
        ),
        (
            {**inserts(0, 100), **waits(0, 9)},
            "The database is slow: p99 of an insert is 995 ms.",
            "Look for operations that take long",
        ),
        (
            {**inserts(9, 0), **waits(0, 9)},
            "The database is fast, and requests wait up to 497 ms in a queue.",
            "This node is saturated",
        ),
        (
            {},
            "The processor, the database and the queues are within their thresholds.",
            "See in the charts",
        ),
    ],
    ids=["processor", "database", "queue", "none"],
)
def test_the_cause_of_slow_requests_is_said_with_its_number(
    grown: dict[str, float], cause: str, step: str
) -> None:
    gauges = {name: value for name, value in grown.items() if "lag" in name}
    found = state(process(gauges, {**grown, **latency(0, 9)}))
    slow = next(each for each in found.conditions if each.name == "p99-is-up")
    assert slow.says.endswith(cause)
    assert slow.next_step.startswith(step)


def test_queued_requests_that_wait_for_the_database_say_so() -> None:
    for grown, says in ((inserts(0, 9), "The database is slow"), (inserts(9, 0), "in a queue.")):
        found = state(process({}, {**grown, **waits(0, 9)}))
        assert [each.name for each in found.conditions] == ["requests-queue"]
        assert says in found.says


def test_old_failures_do_not_count() -> None:
    failed = {ANSWERED % "5xx": 50.0, ANSWERED % "ok": 50.0}
    assert state(process(failed, failed, ago_s=61)).severity == "ok"
    # Without a sample from before, it is unknown when a process that runs for long counted them.
    assert state(process(failed, failed, ago_s=3)).severity == "ok"


def test_failures_of_a_new_process_count_from_its_start() -> None:
    failed = {ANSWERED % "5xx": 50.0, ANSWERED % "ok": 50.0}
    assert state(process(failed, failed, ago_s=3, started=NOW - 10)).severity == "failing"


def rows(*samples: tuple[float, Mapping[str, float]]) -> Recorded:
    """Return a process with these samples, each with the seconds since it was taken."""
    series = sorted({name for _, values in samples for name in values})
    found = array("d")
    for ago_s, values in samples:
        found.extend([NOW - ago_s, *(values.get(name, 0.0) for name in series)])
    return Recorded(1, NOW - 5000, series, found)


class Events(NamedTuple):
    """What grows with the events of a condition, and the words for none of them."""

    grown: Mapping[str, float]
    none: str


#: A fault that ended 33 s ago; since then, requests succeeded.
EVENTS = {
    "clients-get-503": Events({REFUSED % "overloaded": 9}, "No request was refused"),
    "requests-fail": Events({ANSWERED % "5xx": 9}, "No request failed"),
    "clients-get-429": Events(
        {"chat_http_requests_limited_total": 9}, "No request exceeded a limit"
    ),
    "outcomes-unknown": Events({"chat_outcomes_unknown_total": 9}, "No outcome was unknown"),
    "p99-is-up": Events(latency(0, 9), "No request was slow"),
    "requests-queue": Events(waits(0, 9), "No request waited long in a queue"),
}


@pytest.mark.parametrize("name", EVENTS)
def test_a_repaired_fault_is_recovering_within_half_a_minute(name: str) -> None:
    grown, none = EVENTS[name]
    again = {series: value + value / 9 for series, value in grown.items()}
    good = ANSWERED % "ok"
    before: tuple[float, Mapping[str, float]] = (55, {good: 5})
    fault: tuple[float, Mapping[str, float]] = (33, {good: 10, **grown})
    found = state(rows(before, fault, (0, {good: 20, **grown})))
    assert (found.severity, [each.name for each in found.conditions]) == ("recovering", [name])
    assert found.says == f"{none} for 33 s; the last one was at 09:46:07 UTC."
    (condition,) = found.conditions
    assert condition.next_step.startswith("Nothing to do: this ends by 09:47:07 UTC")
    # Nobody knows whether requests succeed now, and one more is a fault again.
    for last in ({good: 10, **grown}, {good: 20, **again}):
        assert state(rows(before, fault, (0, last))).severity in ("failing", "degraded")


def test_a_restarted_process_that_lives_is_recovering() -> None:
    served = rows((20, {ANSWERED % "ok": 1}), (0, {ANSWERED % "ok": 2}))
    for ago_s, severity in ((29, "degraded"), (300, "recovering")):
        at = NOW - ago_s
        found = state(served, recent_restarts=1, last_restart=at)
        of_mongod = state(served, recent_mongod_restarts=5, last_mongod_restart=at)
        assert [found.severity, of_mongod.severity] == [severity, severity]
    assert found.says.startswith("No process died for 5 min; the last one was at ")
    assert "1 process died in the last quarter of an hour" in found.says
    # Its cause is still worth a look.
    assert "The log has the exit code" in found.conditions[0].next_step
    assert "The embedded mongod ended 5 times" in of_mongod.says


def test_processes_are_judged_together() -> None:
    good, bad = process({}, {ANSWERED % "ok": 999}), process({}, {ANSWERED % "5xx": 9})
    assert state(bad).severity == "failing"
    assert state(good, bad).severity == "ok"


def test_every_series_that_is_judged_is_sampled(metrics: WorkerMetrics) -> None:
    groups = series_groups_of(HttpMetrics(CollectorRegistry()), metrics, 1)
    sampled = [name for group in groups for name in group.names()]
    asked = set()

    class Spy(Samples):
        def growth(self, name: str, within_s: float) -> float:
            asked.add(name)
            return super().growth(name, within_s)

        def highest(self, name: str) -> float:
            asked.add(name)
            return super().highest(name)

        def lasting(self, name: str, within_s: float) -> float:
            asked.add(name)
            return super().lasting(name, within_s)

    nothing = Recorded(1, NOW, sampled, array("d", [NOW, *(0.0 for _ in sampled)]))
    judge(Spy([nothing], NOW), Facts(AVAILABLE, DISK, ""), NOW)
    assert len(asked) > 30
    assert asked <= {*sampled}


def test_thresholds_of_the_disk_are_those_of_the_settings() -> None:
    disk = DISK._replace(used_max_bytes=7 * GIB)
    found = thresholds_of(Facts(AVAILABLE, disk, ""))
    assert found["storage_free"].value == GIB // 2
    assert found["storage_used"].value == 7 * GIB
    assert thresholds_of(Facts(AVAILABLE, None, "")) == THRESHOLDS
