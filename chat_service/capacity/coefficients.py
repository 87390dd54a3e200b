"""What requests and messages cost, as measured. All numbers of the model are here.

`scripts/bench --only costs` measures the processor times and prints them under these names. They
depend on the machine. The bytes do not: MongoDB counts them (`tests.bench.footprint`), and a test
counts them again.

Measured on 2026-11-28 with MongoDB 6.0.5 and Python 3.11.7, schema version 2, on 2 cores of a
shared machine that also ran the load generator, in loads of 4 s. Times are µs of processor time.
"""

from typing import NamedTuple


class Coefficients(NamedTuple):
    """The cost of each part of the work."""

    # The service, for each node.
    #: For a second in which requests arrive one by one, so that the process wakes up for each.
    node_awake: float
    node_request: float
    #: For each command that it sends to the database.
    node_command: float
    node_text_kib: float

    # The primary.
    database_awake: float
    insert_command: float
    insert_message: float
    search_command: float
    search_inbox: float
    claim_command: float
    claim_message: float
    #: For a message's deletion by the TTL index, and how many the one thread for it deletes in a
    #: second.
    purge_message: float
    purges_per_s: float
    database_text_kib: float
    #: For each command that writes, and each other member that fetches it.
    replicated_command: float
    #: For each document that changes, and each process that reads the change stream.
    change_stream: float

    # Bytes for each message, without its text. The last three are on disk, indexes included.
    oplog_insert: float
    oplog_claim: float
    oplog_delete: float
    oplog_confirmation: float
    index_unread: float
    index_claimed: float
    document: float
    #: The space of a claimed message, relative to an unread one: a claim writes the document anew,
    #: and the space of the old one is reused, but not returned.
    rewritten: float


MEASURED = Coefficients(
    node_awake=93_000,
    node_request=28,
    node_command=900,
    node_text_kib=11,
    database_awake=57_000,
    insert_command=740,
    insert_message=16,
    search_command=190,
    search_inbox=2,
    claim_command=1810,
    claim_message=40,
    purge_message=17,
    purges_per_s=49_000,
    database_text_kib=4,
    replicated_command=1040,
    # docs/operations.md, "What waiting costs the database".
    change_stream=25,
    oplog_insert=331,
    oplog_claim=326,
    oplog_delete=160,
    oplog_confirmation=356,
    index_unread=113,
    index_claimed=124,
    document=87,
    rewritten=2.1,
)

#: The shortest time of a command without any distance, in seconds: mostly the journal's flush.
POST_S, READ_S = 0.002, 0.003
#: How much longer a batch takes for each of its requests, in seconds.
BATCHED_S = 60e-6
#: How long a lane waits for requests on average, relative to the longest interval.
PAUSED = 0.72
#: How often another member fetches the primary's oplog at most, per second: the most that we saw.
FETCHES_PER_S = 250
#: Commands that a node without requests sends each second.
IDLE_COMMANDS = 3.0
#: The rate from which on a node is awake all the time, in requests per second. Up to it, a lane's
#: interval grows; see `workers.batch_pacing`.
AWAKE_RATE = 250.0
#: How many connections a node opens to each member: its pool at most, and two that watch it.
POOL, WATCHERS = 16, 2
#: Memory of a client's connection to a node, idle or in a long poll, in bytes: docs/performance.md.
CONNECTION_BYTES, WAITING_BYTES = 820, 2900
#: Bytes of HTTP for a request and its answer, for each message without its text: counted with the
#: load generator, which sends few headers.
POST_HTTP, READ_HTTP, MESSAGE_HTTP = 400, 260, 52
#: How full a core or thread should be: above it, answers wait for each other. A choice.
NODE_FULL, PRIMARY_FULL, THREAD_FULL = 0.6, 0.7, 0.8
