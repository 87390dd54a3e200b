"""The engine with every fault that a store may have: schedules from Hypothesis and from seeds."""

from collections import Counter

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.faults.death_bugs import DEADLY
from tests.faults.races import (
    AHEAD,
    CONVERSATIONS,
    ELECTIONS,
    OVERTAKEN,
    AheadWorld,
    ElectionWorld,
    FaultlessWorld,
    OvertakenWorld,
)
from tests.faults.simulation import KINDS, USERS, Schedule, Step, run, run_seeds, schedule_of

STEPS = st.builds(
    Step,
    st.sampled_from([0.0, 0.001, 0.01, 0.1, 0.4]),
    st.sampled_from(sorted(KINDS)),
    st.sampled_from(USERS),
    st.integers(0, 1),
    st.integers(0, 9),
)
SCHEDULES = st.builds(
    Schedule,
    st.lists(STEPS, max_size=30).map(tuple),
    st.sampled_from([0.0, 0.1, 0.4]),
    st.integers(0, 1 << 32),
    st.integers(0, 3),
)


@given(schedule=SCHEDULES)
# The same schedules in each run, so that a failure comes from a change; more seeds explore.
@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
def test_an_inbox_keeps_its_guarantees_in_every_schedule(
    schedule: Schedule,
) -> None:
    assert run(schedule).violations == []


def test_seeds_reach_every_outcome_without_a_violation() -> None:
    total, failed = run_seeds(range(600))
    assert failed == []
    for outcome in ("ok", "refused", "unknown", "cut"):
        assert total[f"posts {outcome}"]
        assert total[f"reads {outcome}"]
    for fate in ("read", "expired", "revoked", "dead", "recovered", "undelivered"):
        assert total[fate]
    for count in ("leased", "redelivered", "repeats", "resume ok", "extend ok", "release ok"):
        assert total[count]
    for status in ("pending", "scheduled", "leased", "read", "expired", "revoked", "dead"):
        assert total[f"track {status}"]


def test_a_conversation_keeps_no_client_waiting() -> None:
    for seed in range(20):
        assert run(schedule_of(seed, CONVERSATIONS), FaultlessWorld).violations == []


def test_short_terms_hide_no_message() -> None:
    for seed in range(60):
        assert run(schedule_of(seed, ELECTIONS), ElectionWorld).violations == []


def test_a_late_claim_for_a_key_hides_no_message() -> None:
    for seed in range(40):
        assert run(schedule_of(seed, OVERTAKEN), OvertakenWorld).violations == []


def test_a_leader_whose_clock_is_ahead_delivers_nothing_early() -> None:
    for seed in range(60):
        assert run(schedule_of(seed, AHEAD), AheadWorld).violations == []


def test_dead_letters_survive_every_fault() -> None:
    total: Counter[str] = Counter()
    for seed in range(100):
        verdict = run(schedule_of(seed, DEADLY))
        assert verdict.violations == []
        total += verdict.counts
    for count in ("dead", "track dead"):
        assert total[count]


def test_a_seed_always_gives_the_same_run() -> None:
    for seed in range(20):
        assert run(schedule_of(seed)) == run(schedule_of(seed))
