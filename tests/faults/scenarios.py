"""Every fault that the service is put through: what is broken, how often, and what must hold.

Run by `tests.faults.chaos` in full and by `tests.faults.test_scenarios` in short. A scenario's
function gets a `Testbed` under load, breaks something so many times, and puts it up again.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from tests.faults import attacks, clocks, operators, outages, overload_scenarios
from tests.faults.attacks import attack
from tests.faults.stepping import FAKETIME, wrong_clock
from tests.faults.testbed import Database, Testbed, can_mount

#: Goals for the first success after a break, in seconds.
PROCESS_S, EMBEDDED_S, PRIMARY_S = 1.5, 8.0, 12.0


@dataclass(frozen=True)
class Scenario:
    """One fault, `times` times in a full run and `short` times in a short one."""

    name: str
    title: str
    act: Callable[[Testbed, int], Awaitable[None]]
    times: int
    short: int
    database: Database = "embedded"
    processes: int = 2
    settings: dict[str, str] = field(default_factory=dict)
    #: What each server is started by; one server for each.
    wrappers: tuple[tuple[str, ...], ...] = ((),)
    clients: int = 32
    pause_s: float = 0.01
    lifetimes_s: tuple[int, ...] = (3600,)
    #: Seconds: the goal for the first success, how late a message may be, the longest request.
    recovery_goal_s: float | None = None
    late_s: float = 0.1
    longest_s: float = 8.0
    #: Seconds in which what an unknown read took is unread again, the database being back by then.
    release_s: float = 8.0
    #: Whether it needs a small disk of its own; a post that finds it full is refused with 507.
    needs_disk: bool = False
    #: Whether anybody reads what the server writes to stderr.
    is_log_read: bool = True
    #: Whether the clock of its mongod steps: then no client does what has a time of its own.
    steps_mongod: bool = False

    def missing(self) -> str:
        """What it needs and is not there, in words; empty where all is."""
        if self.needs_disk and not can_mount():
            return "the right to mount a small disk of its own"
        if self.steps_mongod and not FAKETIME.exists():
            return "Debian's package faketime"
        return ""


SCENARIOS = (
    Scenario("soak", "nothing is broken", outages.nothing, 600, 3),
    Scenario(
        "process",
        "SIGKILL of one process of two",
        outages.one_process,
        60,
        2,
        recovery_goal_s=PROCESS_S,
    ),
    Scenario(
        "processes",
        "SIGKILL of both processes",
        outages.all_processes,
        40,
        2,
        recovery_goal_s=PROCESS_S,
    ),
    Scenario(
        *("server", "SIGKILL of the server, started again", outages.whole_server, 60, 2),
        database="external",
        processes=1,
        recovery_goal_s=PROCESS_S,
    ),
    Scenario(
        *(
            "server-mongod",
            "SIGKILL of the server and its mongod",
            outages.server_and_mongod,
            50,
            1,
        ),
        recovery_goal_s=EMBEDDED_S,
    ),
    Scenario(
        "mongod",
        "SIGKILL of its own mongod",
        outages.embedded_mongod,
        100,
        2,
        recovery_goal_s=EMBEDDED_S,
        release_s=16,
    ),
    Scenario("rolling", "SIGHUP: rolling restart", outages.rolling, 20, 2),
    Scenario("terminate", "SIGTERM under load, started again", outages.terminate, 20, 1),
    Scenario(
        *("stopped-process", "SIGSTOP of one process for 3 s", outages.stopped_process, 10, 1),
        # Whose connections are all to the stopped one gives up on its own, in 12 s.
        longest_s=13,
        recovery_goal_s=PROCESS_S,
    ),
    Scenario(
        "stopped-mongod",
        "SIGSTOP of the mongod for 6 s",
        outages.stopped_mongod,
        10,
        1,
        release_s=16,
    ),
    Scenario(
        *("primary", "SIGKILL of the primary of three", outages.primary_killed, 30, 1),
        database="replicas",
        release_s=30,
        recovery_goal_s=PRIMARY_S,
    ),
    Scenario(
        *("step-down", "the primary of three steps down", outages.primary_steps_down, 20, 1),
        database="replicas",
        release_s=30,
        recovery_goal_s=PRIMARY_S,
    ),
    Scenario(
        # No goal: after the election, MongoDB's other secondary still waits for the stopped one
        # to send it what happened, and no majority has anything until it gives up.
        *("stopped-primary", "SIGSTOP of the primary of three", outages.primary_stopped, 3, 1),
        database="replicas",
        release_s=30,
    ),
    Scenario(
        *("no-majority", "SIGSTOP of both secondaries for 6 s", outages.no_majority, 10, 1),
        database="replicas",
        release_s=30,
        recovery_goal_s=PRIMARY_S,
    ),
    Scenario(
        *("lossy-wire", "replies lost, cut, truncated", outages.lossy_wire, 90, 4),
        database="proxied",
    ),
    Scenario(
        *("slow-wire", "every reply 0 to 200 ms late", outages.slow_wire, 60, 3),
        database="proxied",
    ),
    Scenario(
        "full-disk", "the disk fills up", outages.full_disk, 5, 1, needs_disk=True, release_s=40
    ),
    Scenario(
        *("clocks", "clocks 2 s fast and an hour slow", outages.nothing, 60, 6),
        database="external",
        processes=1,
        wrappers=(wrong_clock(2), wrong_clock(-3600), ()),
        lifetimes_s=(1, 2, 5),
    ),
    Scenario("expiry", "lifetimes of 1 to 5 s", outages.nothing, 60, 5, lifetimes_s=(1, 2, 5)),
    Scenario(
        *(
            "descriptors",
            "twice as many connections as descriptors",
            overload_scenarios.descriptors,
            5,
            1,
        ),
        processes=1,
        wrappers=(("prlimit", "--nofile=256"),),
    ),
    Scenario(
        "slow-senders", "2,000 connections, a byte a second", overload_scenarios.slow_senders, 20, 3
    ),
    Scenario("slow-readers", "readers that take nothing", overload_scenarios.slow_readers, 20, 3),
    Scenario(
        "disconnects", "clients that leave at any point", overload_scenarios.disconnects, 60, 3
    ),
    Scenario(
        *("overload", "three times what it can carry", overload_scenarios.overload, 30, 4),
        database="proxied",
        processes=1,
        settings={"batch_max": "8", "queue_max": "40"},
        clients=4,
    ),
    Scenario(
        *("unread-log", "a log that nobody reads", outages.nothing, 30, 3),
        is_log_read=False,
    ),
    Scenario(
        *("dropped-indexes", "all indexes are dropped", operators.drop_indexes, 10, 1),
        database="external",
        recovery_goal_s=PRIMARY_S,
    ),
    Scenario(
        *("dropped-messages", "the collection is dropped", operators.drop_messages, 10, 1),
        database="external",
        recovery_goal_s=PRIMARY_S,
    ),
    Scenario(
        *("socket", "the mongod's socket is removed", operators.remove_socket, 8, 1),
        recovery_goal_s=PRIMARY_S,
        release_s=16,
    ),
    Scenario(
        *("reserve", "the disk is filled up to the reserve", operators.fill_disk, 5, 1),
        needs_disk=True,
    ),
    Scenario(
        *("clock-steps", "clocks that step by a minute and back", outages.nothing, 60, 3),
        database="external",
        processes=1,
        wrappers=(wrong_clock(60, 1.5), wrong_clock(-60, 2.0), ()),
        lifetimes_s=(1, 2, 5),
    ),
    Scenario(
        *("database-clock", "the mongod's clock steps by a minute", clocks.database_steps, 3, 1),
        database="external",
        steps_mongod=True,
        # By a clock that was put back it takes so much longer until a claim's time is over.
        release_s=70,
    ),
    Scenario("attack-pings", "WebSockets flooded with pings", attack("pings"), 15, 3),
    Scenario("attack-origins", "pages of other sites", attacks.origins, 15, 2),
    Scenario(
        *("attack-disk", "posts that fill the disk", attacks.disk, 20, 6),
        needs_disk=True,
        release_s=40,
    ),
    Scenario(
        *("attack-bodies", "120 unfinished bodies", attack("unfinished", answers_all=False), 15, 3),
    ),
    Scenario("attack-dear", "cheap requests for dear work", attack("dear"), 15, 3),
    Scenario("attack-chunks", "bodies in chunks of one byte", attack("chunks"), 15, 3),
    Scenario("attack-heads", "counts of a full inbox", attack("heads"), 15, 3),
    Scenario(
        *("attack-batches", "batches of 500", attack("batches", answers_all=False), 15, 3),
    ),
    Scenario(
        *("attack-idle", "300 idle sockets", attack("idle", answers_all=False), 15, 3),
        processes=1,
        wrappers=(("prlimit", "--nofile=256"),),
    ),
)
