"""Token buckets: no other client or process changes the rate of a client."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Final

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from chat_service.access.buckets import Buckets, Rate, share_memory
from config.settings import PROJECT_ROOT

#: Rates whose times are exact as floating-point numbers, so that a model can be exact.
REQUESTS, BYTES = Rate(4, 8), Rate(1024, 4096)
UNLIMITED: Final = Rate(0, 0)


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def shared() -> Iterator[int]:
    """Memory for a table of several processes."""
    descriptor = share_memory()
    yield descriptor
    os.close(descriptor)


class Model:
    """The buckets of one client, counted in tokens."""

    def __init__(self) -> None:
        self.requests, self.bytes = REQUESTS.burst, BYTES.burst

    def refill(self, seconds: float) -> None:
        """Add what has accrued."""
        self.requests = min(self.requests + seconds * REQUESTS.per_s, REQUESTS.burst)
        self.bytes = min(self.bytes + seconds * BYTES.per_s, BYTES.burst)

    def take(self, cost: int, size: int, overdraft: float) -> bool:
        """Take tokens, or return False."""
        if self.requests + overdraft * REQUESTS.burst < min(cost, REQUESTS.burst):
            return False
        if size and self.bytes + overdraft * BYTES.burst < min(size, BYTES.burst):
            return False
        self.requests -= cost
        self.bytes -= size
        return True


#: As many clients as a set of the table has places.
CLIENTS: Final = [f"ip:192.0.2.{number}" for number in range(8)]
clients = st.sampled_from(CLIENTS)
costs = st.sampled_from([1, 1, 1, 5, 20])
sizes = st.sampled_from([0, 0, 1, 512, 4096, 10_000])
processes = st.sampled_from([0, 1, 2])
overdrafts = st.sampled_from([0.0, 0.0, 1.0])


class Machine(RuleBasedStateMachine):
    """Three processes on one table, against a model of each client."""

    def __init__(self) -> None:
        super().__init__()
        self.descriptor = share_memory()
        self.clock = Clock()
        self.processes = [self._start() for _ in range(3)]
        self.models = {client: Model() for client in CLIENTS}

    def _start(self) -> Buckets:
        return Buckets(REQUESTS, BYTES, self.descriptor, self.clock, sets=1)

    def teardown(self) -> None:
        os.close(self.descriptor)

    @rule(process=processes, client=clients, cost=costs, size=sizes, overdraft=overdrafts)
    def take(self, process: int, client: str, cost: int, size: int, overdraft: float) -> None:
        """A process serves a client."""
        model = self.models[client]
        refusal = self.processes[process].take(client, cost, size, overdraft)
        assert (refusal is None) == model.take(cost, size, overdraft)
        if refusal is not None:
            held = model.bytes if refusal.is_bytes else model.requests
            # Whole tokens: half a request is refused like none.
            assert refusal.left == int(max(held, 0))
            rate = BYTES if refusal.is_bytes else REQUESTS
            wanted = min(size if refusal.is_bytes else cost, rate.burst)
            assert refusal.wait_s == (wanted - held - overdraft * rate.burst) / rate.per_s

    @rule(process=processes, client=clients)
    def check(self, process: int, client: str) -> None:
        """A process asks whether a client may send anything at all."""
        refusal = self.processes[process].check(client)
        held = self.models[client].requests
        assert (refusal is None) == (held >= 1)
        if refusal is not None:
            assert (refusal.left, refusal.wait_s) == (0, (1 - held) / REQUESTS.per_s)

    @rule(process=processes, client=clients, cost=costs)
    def charge(self, process: int, client: str, cost: int) -> None:
        """A process learns that a request costs more."""
        self.processes[process].charge(client, cost)
        model = self.models[client]
        model.requests = min(model.requests, max(model.requests, 0) - cost)

    @rule(eighths=st.integers(1, 80))
    def wait(self, eighths: int) -> None:
        """Time passes."""
        self.clock.now += eighths / 8
        for model in self.models.values():
            model.refill(eighths / 8)

    @rule(process=processes)
    def restart(self, process: int) -> None:
        """A process is replaced."""
        self.processes[process] = self._start()

    @precondition(lambda self: self.models)
    @invariant()
    def nobody_is_forgotten(self) -> None:
        """As many clients as there are places need not make room for each other."""
        assert all(each.forgotten == 0 for each in self.processes)


TestBucketsAgainstAModel = Machine.TestCase
TestBucketsAgainstAModel.settings = settings(deadline=None, stateful_step_count=40)


def test_a_greedy_client_gets_its_rate_and_no_more() -> None:
    clock = Clock()
    buckets = Buckets(Rate(50, 100), UNLIMITED, clock=clock)
    served = 0
    for _ in range(30_000):
        served += buckets.take("sub:eve", 1) is None
        clock.now += 0.01
    # 300 seconds.
    assert 0.9 * 15_000 <= served - 100 <= 1.1 * 15_000


def test_bytes_have_a_rate_of_their_own() -> None:
    clock = Clock()
    buckets = Buckets(UNLIMITED, Rate(1000, 10_000), clock=clock)
    taken = 0
    for _ in range(3000):
        taken += 777 * (buckets.take("sub:eve", 1, 777) is None)
        # A request without a body costs no bytes, however few are left.
        assert buckets.take("sub:eve", 1) is None
        clock.now += 0.1
    assert 0.9 * 300_000 <= taken - 10_000 <= 1.1 * 300_000


def test_refused_requests_do_not_make_the_wait_longer() -> None:
    clock = Clock()
    buckets = Buckets(REQUESTS, BYTES, clock=clock)
    while (first := buckets.take("sub:eve", 1)) is None:
        pass
    for _ in range(1000):
        assert buckets.take("sub:eve", 1, 4096) is not None
    clock.now += first.wait_s
    assert buckets.take("sub:eve", 1, 4096) is None


def test_a_request_above_the_burst_passes_and_is_paid_off() -> None:
    clock = Clock()
    buckets = Buckets(REQUESTS, BYTES, clock=clock)
    assert buckets.take("sub:eve", 500) is None
    refusal = buckets.take("sub:eve", 1)
    assert refusal is not None
    assert refusal.wait_s == (500 - 8 + 1) / 4


def test_charges_without_end_do_not_ban_for_ever() -> None:
    buckets = Buckets(REQUESTS, BYTES, clock=Clock())
    for _ in range(1000):
        buckets.charge("ip:192.0.2.1", 20)
    refusal = buckets.take("ip:192.0.2.1", 1)
    assert refusal is not None
    assert refusal.wait_s == (20 + 1) / 4


def test_without_limits_everything_is_let_through() -> None:
    buckets = Buckets(UNLIMITED, UNLIMITED, clock=Clock())
    assert all(buckets.take("sub:eve", 1000, 1 << 30) is None for _ in range(1000))


def test_a_full_table_forgets_clients_that_owe_least() -> None:
    clock = Clock()
    buckets = Buckets(REQUESTS, BYTES, clock=clock, sets=1)
    for number in range(7):
        buckets.charge(f"banned-{number}", 20)
    for number in range(1000):
        assert buckets.take(f"new-{number}", 1) is None
    assert all(buckets.take(f"banned-{number}", 1) is not None for number in range(7))
    assert buckets.forgotten == 999


def test_full_buckets_leave_the_table_first() -> None:
    clock = Clock()
    buckets = Buckets(REQUESTS, BYTES, clock=clock, sets=1)
    for number in range(1000):
        assert buckets.take(f"new-{number}", 1) is None
        # As long as two requests take to be refilled.
        clock.now += 0.5
    assert buckets.forgotten == 0


def test_each_table_places_clients_by_a_key_of_its_own() -> None:
    # Names that share places in one table do not share them in another: the key differs.
    def survivors() -> set[str]:
        buckets = Buckets(REQUESTS, BYTES, clock=Clock(), sets=4)
        for number in range(200):
            buckets.charge(str(number), 20)
        return {str(number) for number in range(200) if buckets.take(str(number), 1)}

    assert survivors() != survivors()


def test_processes_that_hash_for_themselves_find_the_same_place(shared: int) -> None:
    clock = Clock()
    first, second = (Buckets(REQUESTS, BYTES, shared, clock) for _ in range(2))
    first.charge("sub:eve", 20)
    assert second.take("sub:eve", 1) is not None
    assert second.take("sub:bob", 1) is None


#: Takes one token after the other for a time, and prints how many it got, and when.
GREEDY: Final = """
import sys, time
from chat_service.access.buckets import Buckets, Rate
buckets = Buckets(Rate(2000, 2000), Rate(0, 0), int(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
began = now = time.monotonic()
served = 0
while now < began + 2:
    served += buckets.take("sub:eve", 1) is None
    # The work of a request.
    time.sleep(0.0002)
    now = time.monotonic()
print(served, began, now)
"""


def share_of_the_rate(shared: int) -> float:
    """Let four processes serve one client as fast as they can. Return its share of its rate."""
    running = [
        subprocess.Popen(
            [sys.executable, "-c", GREEDY, str(shared)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(shared,),
            cwd=PROJECT_ROOT,
            text=True,
            encoding="utf-8",
        )
        for _ in range(4)
    ]
    for process in running:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    outputs = []
    for process in running:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in running:
        outputs.append(process.communicate()[0].split())
        assert process.returncode == 0
    served = sum(int(words[0]) for words in outputs)
    began, ended = min(float(words[1]) for words in outputs), max(float(w[2]) for w in outputs)
    return (served - 2000) / (2000 * (ended - began))


def test_four_processes_together_keep_the_rate_of_a_client(shared: int) -> None:
    # Processes that meet a new client in the same moment may each give it a full bucket.
    assert Buckets(Rate(2000, 2000), Rate(0, 0), shared).take("sub:eve", 1) is None
    shares: list[float] = []
    # A busy machine may stop a process in the middle of a charge, and so lose those of others.
    while len(shares) < 3 and not (shares and 0.75 <= shares[-1] <= 1.25):
        shares.append(share_of_the_rate(shared))
        # The bucket is full again for the next try.
        time.sleep(1)
    assert 0.75 <= shares[-1] <= 1.25, shares
