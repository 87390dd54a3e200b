"""What clients saw: every request of a run, with its time and its outcome.

Filled by the clients of `tests.faults.simulation` and `tests.faults.clients`, judged by
`tests.faults.checker`. Times are seconds of one clock.
"""

from typing import Literal, NamedTuple, TypeAlias

#: ok: answered. refused: the answer says that nothing was done, or a 4xx. unknown: the answer
#: says that it is not known. cut: no answer, since the connection broke or the client gave up.
Outcome: TypeAlias = Literal["ok", "refused", "unknown", "cut"]


class Posted(NamedTuple):
    """One POST. Its text is one that no other has; `sender` posts one after the other."""

    sender: str
    user: str
    text: str
    lifetime_s: float
    began: float
    ended: float
    outcome: Outcome
    id: str = ""


class Got(NamedTuple):
    """One read, with what it returned as (id, text). `is_all`: it had no limit."""

    user: str
    began: float
    ended: float
    outcome: Outcome
    messages: tuple[tuple[str, str], ...] = ()
    is_all: bool = True


class History(NamedTuple):
    """All requests of a run; it ends with reads of every inbox that are all answered.

    `kills` are the moments at which a server was killed, with what it had in mind.
    """

    posts: list[Posted]
    reads: list[Got]
    kills: list[float]
