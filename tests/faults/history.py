"""What clients saw: every request of a run, with its time and its outcome.

Filled by the clients of `tests.faults.simulation` and `tests.faults.chaos_clients`, judged by
`tests.faults.checker`. Times are seconds of one clock.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

#: ok: answered. refused: the answer says that nothing was done, or a 4xx. unknown: the answer
#: says that it is not known. cut: no answer, since the connection broke or the client gave up.
Outcome: TypeAlias = Literal["ok", "refused", "unknown", "cut"]


class PostRecord(NamedTuple):
    """One POST. Its text is one that no other has, but for repeats with the same `key`.

    `sender` posts one after the other; `receipt` is what it asked for the message's fate with.
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


class ReadRecord(NamedTuple):
    """One read, with what it returned as (id, text). `is_all`: it had no limit.

    It waited up to `wait_s` for a first message. With a `lease`, the token, it took them on loan
    for `ttl_s`; with a `key` it may be repeated.
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


class LeaseOperation(NamedTuple):
    """What a consumer did with what it has on loan: all of the lease, or these ids.

    `lease` is its name. A resume names the `last` message of the stream with that lease.
    `messages` is the answer: how many. An acknowledgement is told besides whether all that it is
    about is acknowledged, and if not, what is.
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


class ReceiptQuery(NamedTuple):
    """A sender that asked what became of its message, or took it back. `status` is the answer."""

    what: Literal["track", "revoke"]
    id: str
    receipt: str
    began: float
    ended: float
    outcome: Outcome
    status: str | None


class CollectionDrop(NamedTuple):
    """An operator that dropped the collection of messages, between these moments."""

    began: float
    ended: float


@dataclass
class History:
    """All requests of a run; it ends with reads of every inbox that are all answered.

    `kills` are the moments at which a server was killed, with what it had in mind. In `faults`,
    from one moment to another, anything may take its time. `sums` are what the servers counted
    of all messages at the end, where that must add up. `drops` excuse what was stored before them.
    """

    posts: list[PostRecord]
    reads: list[ReadRecord]
    kills: list[float]
    lease_operations: list[LeaseOperation] = field(default_factory=list)
    receipt_queries: list[ReceiptQuery] = field(default_factory=list)
    drops: list[CollectionDrop] = field(default_factory=list)
    faults: list[tuple[float, float]] = field(default_factory=list)
    sums: Mapping[str, int] | None = None
