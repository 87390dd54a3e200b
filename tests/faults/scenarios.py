"""All faults that the tests inject: what fails, how often, and which limits apply.

`tests.faults.chaos` runs them in full, and `tests.faults.test_scenarios` in short. A scenario's
function gets a `Testbed` under load, injects the fault a number of times, and restores everything.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from tests.faults import attacks, clocks, operators, outages, overload_scenarios, partitions
from tests.faults.attacks import attack
from tests.faults.stepping import FAKETIME, wrong_clock
from tests.faults.testbed import Database, Testbed, can_mount
from tests.network import hosts

#: The longest request where every process of a server starts anew. The kernel accepts connections
#: before that, and on a busy machine they wait for it; a client gives up by itself after 12 s.
RESTART_S = 13.0
#: Settings with which every lease that is not acknowledged makes dead letters.
_DEADLY = {"max_deliveries": "1"}
#: Goals for the time from a fault to the first success, in seconds.
PROCESS_S, EMBEDDED_S, PRIMARY_S = 1.5, 8.0, 12.0


@dataclass(frozen=True)
class Scenario:
    """One fault: injected `times` times in a full run, `short` times in a short one.

    A run leaves out a scenario with 0 of it, because another one covers its fault.
    """

    name: str
    title: str
    act: Callable[[Testbed, int], Awaitable[None]]
    times: int
    short: int
    database: Database = "embedded"
    processes: int = 2
    settings: dict[str, str] = field(default_factory=dict)
    #: The command prefix of each server; there is one server for each.
    wrappers: tuple[tuple[str, ...], ...] = ((),)
    clients: int = 32
    pause_s: float = 0.01
    lifetimes_s: tuple[int, ...] = (3600,)
    #: In seconds: the goal for the first success, how late a message may be, and the longest
    #: request.
    recovery_goal_s: float | None = None
    late_s: float = 0.1
    longest_s: float = 8.0
    #: Seconds within which messages claimed by an unknown read are unread again; the database is
    #: back by then.
    release_s: float = 8.0
    #: Seconds after which nothing is claimed any more for an unknown read, if the database was back
    #: when the read was answered.
    settle_s: float = 8.0
    #: The longest time after its due time until a scheduled message can be read, in seconds; None
    #: if faults may delay it further.
    due_s: float | None = None
    #: Whether it needs a small file system. A post that finds the disk full is refused with 507.
    needs_disk: bool = False
    #: Whether anything reads the server's stderr.
    is_log_read: bool = True
    #: Whether the mongod's clock steps. If so, clients do nothing that depends on time.
    steps_mongod: bool = False

    def missing(self) -> str:
        """Return what the scenario needs and this machine lacks, or an empty string."""
        if self.needs_disk and not can_mount():
            return "root, to mount a small file system"
        if self.steps_mongod and not FAKETIME.exists():
            return "Debian's package faketime"
        return hosts.missing() if self.database == "network" else ""


def _partition(
    name: str,
    title: str,
    act: Callable[[Testbed, int], Awaitable[None]],
    times: int,
    short: int,
) -> Scenario:
    """Return a scenario of two nodes on a replica set of three. `times` are seconds."""
    return Scenario(
        *(f"partition-{name}", f"partition: {title}", act, times, short),
        database="network",
        settings=_DEADLY,
        processes=1,
        wrappers=((), ()),
        recovery_goal_s=PRIMARY_S,
        # A node that is cut off makes messages unread once the partition has healed.
        release_s=60,
    )


SCENARIOS = (
    Scenario("soak", "no fault", outages.nothing, 600, 3, settings=_DEADLY, due_s=2.0),
    Scenario(
        "process",
        "SIGKILL of one of two processes",
        outages.one_process,
        60,
        2,
        settings=_DEADLY,
        recovery_goal_s=PROCESS_S,
    ),
    Scenario(
        "processes",
        "SIGKILL of both processes",
        outages.all_processes,
        40,
        2,
        longest_s=RESTART_S,
        recovery_goal_s=PROCESS_S,
    ),
    Scenario(
        *("server", "SIGKILL of the server, then restart", outages.whole_server, 60, 2),
        settings=_DEADLY,
        database="external",
        processes=1,
        longest_s=RESTART_S,
        recovery_goal_s=PROCESS_S,
    ),
    Scenario(
        *(
            "server-mongod",
            "SIGKILL of the server and its mongod, then restart",
            outages.server_and_mongod,
            50,
            1,
        ),
        longest_s=RESTART_S,
        recovery_goal_s=EMBEDDED_S,
    ),
    Scenario(
        "mongod",
        "SIGKILL of the embedded mongod",
        outages.embedded_mongod,
        100,
        2,
        recovery_goal_s=EMBEDDED_S,
        release_s=16,
    ),
    Scenario("rolling", "rolling restart (SIGHUP)", outages.rolling, 20, 2),
    Scenario(
        *("terminate", "SIGTERM under load, then restart", outages.terminate, 20, 1),
        longest_s=RESTART_S,
    ),
    Scenario(
        *("stopped-process", "SIGSTOP of one process for 3 s", outages.stopped_process, 10, 1),
        # All connections of a client may go to the stopped process.
        longest_s=RESTART_S,
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
        *("primary", "SIGKILL of the primary of three members", outages.primary_killed, 30, 1),
        settings=_DEADLY,
        database="replicas",
        release_s=30,
        recovery_goal_s=PRIMARY_S,
    ),
    Scenario(
        *(
            "step-down",
            "step-down of the primary of three members",
            outages.primary_steps_down,
            20,
            1,
        ),
        database="replicas",
        release_s=30,
        recovery_goal_s=PRIMARY_S,
    ),
    Scenario(
        # No goal: after the election, MongoDB's other secondary still waits for the stopped member
        # to send its writes, and nothing has a majority until it gives up.
        *(
            "stopped-primary",
            "SIGSTOP of the primary of three members",
            outages.primary_stopped,
            3,
            1,
        ),
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
        *("lossy-wire", "database replies lost, cut or truncated", outages.lossy_wire, 90, 4),
        database="proxied",
    ),
    Scenario(
        *("slow-wire", "database replies delayed by 0 to 200 ms", outages.slow_wire, 60, 3),
        database="proxied",
    ),
    Scenario("full-disk", "full disk", outages.full_disk, 5, 1, needs_disk=True, release_s=40),
    Scenario(
        *("clocks", "server clocks 2 s fast and 1 h slow", outages.nothing, 60, 6),
        database="external",
        processes=1,
        wrappers=(wrong_clock(2), wrong_clock(-3600), ()),
        lifetimes_s=(1, 2, 5),
    ),
    Scenario(
        *("expiry", "message lifetimes of 1 to 5 s", outages.nothing, 60, 5),
        lifetimes_s=(1, 2, 5),
        due_s=2.0,
    ),
    Scenario(
        *(
            "descriptors",
            "twice as many connections as file descriptors",
            overload_scenarios.descriptors,
            5,
            1,
        ),
        processes=1,
        wrappers=(("prlimit", "--nofile=256"),),
    ),
    Scenario(
        "slow-senders",
        "2,000 connections sending one byte per second",
        overload_scenarios.slow_senders,
        20,
        3,
    ),
    Scenario(
        "slow-readers",
        "clients that do not read their answers",
        overload_scenarios.slow_readers,
        20,
        3,
    ),
    Scenario(
        "disconnects", "clients that disconnect at any point", overload_scenarios.disconnects, 60, 3
    ),
    Scenario(
        *("overload", "three times the capacity", overload_scenarios.overload, 30, 4),
        database="proxied",
        processes=1,
        settings={"batch_max": "8", "queue_max": "40", "shards": "2"},
        clients=4,
    ),
    Scenario(
        *("unread-log", "stderr is a pipe that nobody reads", outages.nothing, 30, 3),
        is_log_read=False,
    ),
    Scenario(
        *("dropped-indexes", "all indexes dropped", operators.drop_indexes, 10, 1),
        database="external",
        recovery_goal_s=PRIMARY_S,
    ),
    Scenario(
        *("dropped-messages", "collection dropped", operators.drop_messages, 10, 1),
        database="external",
        recovery_goal_s=PRIMARY_S,
    ),
    Scenario(
        *("socket", "socket of the mongod removed", operators.remove_socket, 8, 1),
        recovery_goal_s=PRIMARY_S,
        release_s=16,
    ),
    Scenario(
        *("reserve", "disk filled up to the reserve", operators.fill_disk, 5, 1),
        needs_disk=True,
    ),
    Scenario(
        *("clock-steps", "server clocks step by a minute and back", outages.nothing, 60, 3),
        database="external",
        processes=1,
        wrappers=(wrong_clock(60, 1.5), wrong_clock(-60, 2.0), ()),
        lifetimes_s=(1, 2, 5),
    ),
    Scenario(
        *(
            "database-clock",
            "database clock steps by 20 s and back",
            clocks.database_steps,
            6,
            1,
        ),
        database="external",
        steps_mongod=True,
        # By a clock that was set back, a claim's time limit passes that much later, and a process
        # notices the next step within ten seconds.
        release_s=40,
        settle_s=40,
    ),
    Scenario("attack-pings", "attack: WebSockets flooded with pings", attack("pings"), 15, 3),
    Scenario(
        "attack-origins", "attack: requests from pages of other sites", attacks.origins, 15, 2
    ),
    Scenario(
        *("attack-disk", "attack: posts that fill the disk", attacks.disk, 20, 6),
        needs_disk=True,
        release_s=40,
    ),
    Scenario(
        *(
            "attack-bodies",
            "attack: 120 unfinished bodies",
            attack("unfinished", answers_all=False),
            15,
            3,
        ),
    ),
    Scenario(
        "attack-expensive",
        "attack: requests that are expensive to serve",
        attack("expensive"),
        15,
        3,
    ),
    Scenario("attack-chunks", "attack: bodies in chunks of one byte", attack("chunks"), 15, 3),
    Scenario("attack-heads", "attack: counts of a full inbox", attack("heads"), 15, 3),
    Scenario(
        *(
            "attack-batches",
            "attack: batches of 500 messages",
            attack("batches", answers_all=False),
            15,
            3,
        ),
    ),
    Scenario(
        *("attack-idle", "attack: 300 idle sockets", attack("idle", answers_all=False), 15, 3),
        processes=1,
        wrappers=(("prlimit", "--nofile=256"),),
    ),
    # In a short run, all partitions share one replica set, which takes long to start.
    _partition("all", "each kind in turn", partitions.all_in_turn, times=0, short=6),
    *(
        _partition(name, title, partitions.partition(name), times=30, short=0)
        for name, title in (
            ("primary", "the primary is cut off"),
            ("primary-mute", "nothing arrives that the primary sends"),
            ("primary-deaf", "the primary receives nothing"),
            ("node-mute", "no member receives what one node sends"),
            ("node-deaf", "one node receives nothing from the members"),
            ("nodes", "both nodes are cut off from the primary alone"),
            ("bridge", "the primary and a secondary are cut off from each other"),
        )
    ),
)
