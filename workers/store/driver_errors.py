"""Translates the driver's errors into those of `workers.errors`, for all parts of the store.

A failed read changed nothing. A failed write was not sent, or its outcome is unknown. The reason of
an error names the cause, and how to fix it if an operator can.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Any

from pymongo.errors import OperationFailure, PyMongoError, ServerSelectionTimeoutError

from workers.errors import IndexMissing, OutcomeUnknown, ServiceError, StoreUnavailable
from workers.store.driver import may_be_sent

#: The reason if an operation names an index that does not exist.
MISSING = "an operation needs an index that the database does not have"
#: What the driver adds to a reason: its timeouts, and a description of all servers.
_DRIVERS_OWN = re.compile(
    r" \(configured timeouts: [^)]*\)|, Timeout: .*|, Topology Des.*|, full error: .*", re.DOTALL
)
#: The drivers' words for a connection that the server closed; they depend on driver and moment. For
#: a TLS handshake PyMongo gives no reason at all.
_CLOSED = re.compile(
    r"connection (?:is already )?closed|\[Errno 104\] Connection reset by peer"
    r"|\[SSL: UNEXPECTED_EOF_WHILE_READING\] [^()]*\(_ssl\.c:\d+\)"
    r"|(?<=: )(?=,|$)"
)
#: The error code for a missing privilege. Atlas may report one with a code of its own.
UNAUTHORIZED, NOT_ALLOWED = 13, (13, 8000)
#: All codes that concern the database user; 18 is AuthenticationFailed.
_REFUSALS = (13, 18, 8000)
#: The error for a missing privilege. It has the database, the command, and all its arguments.
_LACKS_RIGHT = re.compile(r"not authorized on (\S+) to execute command \{ (\w+):")


class StoreRefused(StoreUnavailable):
    """Raised when the database refuses the user of the connection string."""


class Unsent(StoreUnavailable):
    """Raised when a command was not sent this time. Another attempt may be."""


class _ReadErrors(AbstractContextManager[None]):
    """See `read_errors`."""

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None or not isinstance(error, PyMongoError):
            return
        if not isinstance(error, OperationFailure):
            is_unavailable = isinstance(error, ServerSelectionTimeoutError)
            reason = f"the database did not answer: {short_reason(error)}"
            raise StoreUnavailable(reason, is_unavailable=is_unavailable) from error
        if misses_index(error.details):
            raise IndexMissing(MISSING) from error
        if error.code in _REFUSALS:
            raise StoreRefused(explain_refusal(error)) from error
        raise StoreUnavailable(
            f"the database answered with an error: {short_reason(error)}"
        ) from error


_READ_ERRORS = _ReadErrors()


def read_errors() -> AbstractContextManager[None]:
    """Raise the errors of a read as `StoreUnavailable`, since a read changes nothing."""
    return _READ_ERRORS


@contextmanager
def write_errors() -> Iterator[None]:
    """Raise the errors of a write as those that `write_failure` returns."""
    try:
        yield
    except PyMongoError as error:
        raise write_failure(error) from error


def write_failure(error: PyMongoError) -> ServiceError:
    """Return the error for a failed write: it was not sent, or its outcome is unknown.

    If the driver repeats a write and then finds no server, it raises the error of the first try.
    Of all other errors, only the checkouts of connections tell whether it was sent.
    """
    if isinstance(error, OperationFailure) and misses_index(error.details):
        return IndexMissing(MISSING)
    if isinstance(error, ServerSelectionTimeoutError):
        reason = f"the database was not reached: {short_reason(error)}"
        return StoreUnavailable(reason, is_unavailable=True)
    if isinstance(error, OperationFailure) and error.code in _REFUSALS:
        reason = explain_refusal(error)
        # An earlier attempt may have been allowed.
        return OutcomeUnknown(reason) if may_be_sent() else StoreRefused(reason)
    if not may_be_sent():
        return Unsent(f"there was no connection to the database: {short_reason(error)}")
    return OutcomeUnknown(f"the database's answer was lost: {short_reason(error)}")


def explain_refusal(error: OperationFailure) -> str:
    """Explain why the database refuses the connection string's user, and how to fix it."""
    reason = str((error.details or {}).get("errmsg") or short_reason(error))
    if error.code == UNAUTHORIZED:
        if match := _LACKS_RIGHT.match(reason):
            return (
                f"the database does not allow this user to {match[2]} in {match[1]}: grant the "
                f"user the role readWrite on the database {match[1]}"
            )
        if "requires authentication" in reason:
            return (
                "the database requires a user: name one in --mongo-uri "
                "(mongodb://NAME:PASSWORD@HOST/) with the role readWrite on the database"
            )
    return (
        f"the database refuses the user: {reason.rstrip('.')}; check name, password and authSource "
        "in --mongo-uri (CHAT_MONGO_URI)"
    )


def misses_index(answer: Mapping[str, Any] | None) -> bool:
    """Return whether the database reports that the index named by an operation does not exist.

    There is no separate error code for this.
    """
    return "hint provided does not correspond" in str((answer or {}).get("errmsg"))


def short_reason(error: PyMongoError) -> str:
    """Return a driver's error with hosts and reasons, but without its settings and its state."""
    reason = _DRIVERS_OWN.sub("", str(error))
    if "CERTIFICATE_VERIFY_FAILED" in reason:
        return (
            f"{reason}; name the authority of its certificate with tlsCAFile in the connection "
            "string"
        )
    reason, closed = _CLOSED.subn("the server closed the connection", reason)
    if closed and isinstance(error, ServerSelectionTimeoutError):
        # Nothing was reached, perhaps because only one of the two uses TLS.
        if "SSL handshake failed" in reason:
            reason += "; if it does not use TLS, remove tls=true from the connection string"
        else:
            reason += "; if it requires TLS, add tls=true to the connection string"
    return reason
