"""Everything that the clients saw: every request of a run, with its times and its outcome.

The clients of `tests.faults.simulation` and `tests.faults.chaos_clients` fill it, and
`tests.faults.checker` judges it. Times are seconds of one clock.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

from workers.dead_letters import DeadLetters

#: ok: answered. refused: the answer says that nothing was done, or has a status of 4xx. unknown:
#: the answer says that the outcome is not known. cut: no answer, because the connection broke or
#: the client gave up.
Outcome: TypeAlias = Literal["ok", "refused", "unknown", "cut"]


class PostRecord(NamedTuple):
    """One POST. Its text is unique, except for repeats with the same `key`.

    A `sender` posts one message after the other. `receipt` is the receipt that it can use later.
    `client` waits in a `queue` together with others. `is_reused` says that the post was refused
    because its key belonged to another message. A scheduled message is due after `delay_s`, and its
    lifetime counts from then.
    """

    sender: str
    user: str
    text: str
    lifetime_s: float
    began: float
    ended: float
    outcome: Outcome
    id: str = ""
    key: str = ""
    receipt: str = ""
    client: str = ""
    queue: str = ""
    is_reused: bool = False
    delay_s: float = 0.0


class ReadRecord(NamedTuple):
    """One read, with its messages as (id, text). `is_all` means that it had no limit.

    It waited up to `wait_s` for a first message. With a `lease`, which is its token, it leased the
    messages for `ttl_s`. With a `key` it can be repeated. `client` and `queue` are those of a post.
    `deliveries` is what the lease says of each message, in order.
    """

    user: str
    began: float
    ended: float
    outcome: Outcome
    messages: tuple[tuple[str, str], ...] = ()
    is_all: bool = True
    wait_s: float = 0.0
    lease: str = ""
    ttl_s: float = 0.0
    key: str = ""
    client: str = ""
    queue: str = ""
    deliveries: tuple[int, ...] = ()


class LeaseOperation(NamedTuple):
    """One operation of a consumer on a lease: on all its messages, or on these ids.

    `lease` is the lease's name. A resume names the `last` message of the stream with that lease.
    `messages` is the number in the answer. A release that is not `is_delivered` takes back the
    delivery. After a release with `delay_s`, nobody may have the messages before that time. The
    answer to an acknowledgement also says whether all of its messages are acknowledged (`is_all`),
    and if not, which ones are.
    """

    what: Literal["acknowledge", "release", "extend", "resume"]
    user: str
    lease: str
    began: float
    ended: float
    outcome: Outcome
    messages: int
    ids: tuple[str, ...] | None = None
    ttl_s: float = 0.0
    last: str = ""
    is_all: bool | None = None
    acknowledged: frozenset[str] = frozenset()
    is_delivered: bool = True
    delay_s: float = 0.0


class ReceiptQuery(NamedTuple):
    """One request of a sender for its message's status, or to revoke it. `status` is the answer."""

    what: Literal["track", "revoke"]
    id: str
    receipt: str
    began: float
    ended: float
    outcome: Outcome
    status: str | None


class CollectionDrop(NamedTuple):
    """An operator dropped the collection of messages between these moments."""

    began: float
    ended: float


@dataclass
class History:
    """All requests of a run. It ends with answered reads of every inbox.

    `kills` are the moments at which a server was killed with everything in its memory. During
    `faults`, given as (start, end), requests may take longer. `sums` are the servers' counters at
    the end, if they must add up. `drops` excuse messages that were stored before them.

    `overruns` has, for each inbox with a quota, the most posts in a row that were stored while it
    was full; `overrun_max` are allowed. A post is overtaken by at most `overtaken_max` posts of
    another client, or by any number if that is None. `dead_letters` are the service's rules.
    """

    posts: list[PostRecord]
    reads: list[ReadRecord]
    kills: list[float]
    lease_operations: list[LeaseOperation] = field(default_factory=list)
    receipt_queries: list[ReceiptQuery] = field(default_factory=list)
    drops: list[CollectionDrop] = field(default_factory=list)
    faults: list[tuple[float, float]] = field(default_factory=list)
    sums: Mapping[str, int] | None = None
    overruns: Mapping[str, int] = field(default_factory=dict)
    overrun_max: int = 0
    overtaken_max: int | None = None
    dead_letters: DeadLetters = field(default_factory=DeadLetters)
