"""The errors of a request after it was handed to the pool.

    ServiceError
    ├── NotExecuted          nothing was done, and nothing will be
    │   ├── Overloaded       a queue is full
    │   ├── Draining         the service is stopping
    │   ├── Expired          the deadline passed while the request waited in a queue
    │   ├── StoreUnavailable the database could not be reached
    │   │   └── IndexMissing the database lacks an index that this operation needs
    │   ├── StorageFull      the database's disk has no room for this message
    │   ├── InboxFull        the inbox has as many unread messages as it may have
    │   ├── Rejected         the database cannot store this message
    │   ├── KeyInFlight      a request with this idempotency key is still being processed
    │   └── KeyReused        the idempotency key was used for a different request
    └── OutcomeUnknown       a write was sent to the database, and its reply was lost

The two branches keep the guarantee that no error is false: a caller may safely repeat a request
that raised `NotExecuted`.
"""


class ServiceError(Exception):
    """Base class of all errors that the pool raises for a request."""


class NotExecuted(ServiceError):
    """Raised when the request changed nothing, and never will."""


class Overloaded(NotExecuted):
    """Raised when the shard's queue, or the inbox's share of it, is full."""


class Draining(NotExecuted):
    """Raised when the service accepts no new requests because it is stopping."""


class Expired(NotExecuted):
    """Raised when a request's deadline passed before it was sent to the database."""


class StoreUnavailable(NotExecuted):
    """Raised when the database was not reached, or refused, before anything was applied.

    `is_unavailable` is True if no primary was found within the driver's time limit. Other
    operations will not find one either.
    """

    def __init__(self, reason: str, *, is_unavailable: bool = False) -> None:
        super().__init__(reason)
        self.is_unavailable = is_unavailable


class IndexMissing(StoreUnavailable):
    """Raised when the database lacks an index. The store creates it again."""


class StorageFull(NotExecuted):
    """Raised when a post would use the part of the disk that is reserved for reads."""


class InboxFull(NotExecuted):
    """Raised when a post is refused because its inbox has reached its quota."""

    def __init__(self, reason: str = "the inbox is full until messages are read or expire") -> None:
        super().__init__(reason)


class Rejected(NotExecuted):
    """Raised when a message can never be stored, however often it is sent."""


class KeyInFlight(NotExecuted):
    """Raised when a request with the same idempotency key is still being processed."""


class KeyReused(NotExecuted):
    """Raised when a post's idempotency key was used for a different message before."""


class OutcomeUnknown(ServiceError):
    """Raised when a write may or may not have been applied.

    `message_id` is the id of the message if it was stored, or None if the request was not a post.
    """

    def __init__(self, reason: str, message_id: str | None = None) -> None:
        super().__init__(reason)
        self.message_id = message_id
