"""A finding of `chat doctor`."""

from typing import Literal, NamedTuple, TypeAlias

State: TypeAlias = Literal["ok", "warn", "fail"]


class Finding(NamedTuple):
    """The state of one part, and what to do if something is wrong."""

    what: str
    state: State
    detail: str
    #: The anchor of the runbook's entry about it, if the name of the part does not tell.
    entry: str = ""
