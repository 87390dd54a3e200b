"""What can go wrong with a request once it was handed to the pool.

    ServiceError
    ├── NotExecuted          nothing was done, and nothing will be
    │   ├── Overloaded       a queue is full
    │   ├── Draining         the service is stopping
    │   ├── Expired          the deadline passed before its turn came
    │   ├── StoreUnavailable the database was not reached
    │   │   └── IndexMissing it was, and lacks an index that this needs
    │   ├── StorageFull      the database's disk has no room for this message
    │   ├── Rejected         the database cannot hold this message
    │   ├── KeyInFlight      a request with this idempotency key is not answered yet
    │   └── KeyReused        its idempotency key was used for something else
    └── OutcomeUnknown       it was sent to the database, and the answer is not known

The two branches are the promise "nothing false": a caller may repeat a `NotExecuted` freely.
"""


class ServiceError(Exception):
    """Base of every failure that the pool gives back for a request."""


class NotExecuted(ServiceError):
    """The request changed nothing, and never will."""


class Overloaded(NotExecuted):
    """Raised when the shard's queue, or the inbox's part of it, is full."""


class Draining(NotExecuted):
    """Raised when the service takes no new requests because it is stopping."""


class Expired(NotExecuted):
    """Raised when a request's deadline passed before it was sent to the database."""


class StoreUnavailable(NotExecuted):
    """Raised when the database was not reached, or refused, before anything was applied.

    `is_unavailable` is set if no primary was found within the driver's time limit. Other
    operations will find none either.
    """

    def __init__(self, reason: str, *, is_unavailable: bool = False) -> None:
        super().__init__(reason)
        self.is_unavailable = is_unavailable


class IndexMissing(StoreUnavailable):
    """Raised when the database lacks an index; the store makes it again."""


class StorageFull(NotExecuted):
    """Raised when a post would use the part of the disk that is kept for reads."""


class Rejected(NotExecuted):
    """Raised when one message cannot be stored, whatever is tried."""


class KeyInFlight(NotExecuted):
    """Raised when a request with the same idempotency key is not answered yet."""


class KeyReused(NotExecuted):
    """Raised when a post's idempotency key came with another message before."""


class OutcomeUnknown(ServiceError):
    """Raised when a write may or may not have been applied.

    `message_id` is the id that a message has if it was stored, or None.
    """

    def __init__(self, reason: str, message_id: str | None = None) -> None:
        super().__init__(reason)
        self.message_id = message_id
