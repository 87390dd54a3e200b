"""Errors as `application/problem+json` (RFC 9457): what a client reads when something is wrong.

Handlers raise `Problem`; `answer_to` makes an answer of it, and of everything else that a handler
raises. docs/api.md lists them.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import msgspec
import structlog

from chat_service.api.types import BodyChunk, Response
from workers.commands import Finished
from workers.errors import (
    Draining,
    KeyInFlight,
    KeyReused,
    NotExecuted,
    OutcomeUnknown,
    Overloaded,
    Rejected,
    ServiceError,
    StorageFull,
)

log = structlog.get_logger(__name__)

CONTENT_TYPE = "application/problem+json"
#: What a request does to messages. A 503 has this word as a field.
Effect: TypeAlias = Literal["stored", "claimed", "changed"]


class FieldError(NamedTuple):
    """One field of the request, and the rule that it breaks."""

    field: str
    detail: str


class Problem(Exception):
    """Raised to answer a request with an error."""

    def __init__(
        self,
        status: int,
        kind: str,
        title: str,
        detail: str,
        *,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(f"{status} {kind}: {detail}")
        self.status = status
        self.kind = kind
        self.title = title
        self.detail = detail
        self.errors = errors
        self.headers = headers or {}
        self.more = more or {}

    def body(self, request_id: str) -> bytes:
        """The document, for the request of this id."""
        document: dict[str, Any] = {
            "type": f"urn:chat:problem:{self.kind}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "instance": request_id,
            **self.more,
        }
        if self.errors:
            document["errors"] = [error._asdict() for error in self.errors]
        return msgspec.json.encode(document)


def invalid(*errors: FieldError) -> Problem:
    """400: fields of the request that break their rules."""
    detail = "; ".join(f"{error.field} {error.detail}" for error in errors)
    return Problem(400, "invalid-request", "The request is not valid", detail, errors=errors)


def not_json(detail: str, what: str = "body") -> Problem:
    """400: the body, or a message in it, is not a JSON object."""
    return Problem(400, "invalid-json", f"The {what} is not a JSON object", detail)


def bad_request(detail: str) -> Problem:
    """400: the request itself, its path or its head, is malformed."""
    return Problem(400, "bad-request", "The request is malformed", detail)


def websocket_elsewhere(stream: str) -> Problem:
    """400: a WebSocket is opened at another path than that of streams."""
    return bad_request(f"a WebSocket is opened at {stream}")


def no_handshake(detail: str) -> Problem:
    """400: an upgrade to a WebSocket that is none, with the version that is spoken."""
    title, version = "The request is malformed", {"Sec-WebSocket-Version": "13"}
    return Problem(400, "bad-request", title, detail, headers=version)


def not_found() -> Problem:
    """404: no such path."""
    return Problem(404, "not-found", "There is nothing here", "no resource has this path")


def method_not_allowed(allowed: str) -> Problem:
    """405, with the methods that are."""
    detail = f"this resource knows {allowed}"
    title = "The method is not allowed"
    return Problem(405, "method-not-allowed", title, detail, headers={"Allow": allowed})


def too_large(what: str, limit: int) -> Problem:
    """413: a body or a text over its limit in bytes."""
    detail = f"{what} may have at most {limit} bytes"
    return Problem(413, "too-large", "The request is too large", detail)


def head_too_large() -> Problem:
    """431: a request line and headers that are over their limit together."""
    detail = "the request line and the headers are longer than this server reads"
    return Problem(431, "head-too-large", "The request head is too large", detail)


def encoded_body() -> Problem:
    """415: compressed bodies are not read, so that none can be a bomb."""
    detail = "the body may have no Content-Encoding"
    return Problem(415, "content-encoding", "The encoding is not supported", detail)


def speculative(detail: str) -> Problem:
    """403: a browser's prefetch, which must not consume: no person asked for it yet."""
    return Problem(403, "speculative", "The request was not carried out", detail)


def cross_origin(detail: str) -> Problem:
    """403: a request that a page of another origin made a browser send."""
    return Problem(403, "cross-origin", "The request was not carried out", detail)


def wrong_host(is_loopback: bool) -> Problem:
    """421: a Host that this server does not answer for, and the setting that would change that."""
    answered = "IP addresses, localhost and " if is_loopback else ""
    detail = f"this server answers only for {answered}the names in the setting allowed_hosts"
    return Problem(421, "wrong-host", "The request is misdirected", detail)


def lease_over() -> Problem:
    """410: a lease that is unknown, over or another inbox's."""
    detail = "no such message of this inbox is on loan under this lease, or no longer"
    return Problem(410, "lease-over", "The lease is over", detail)


def not_acknowledged(finished: Finished) -> Problem:
    """410: an acknowledgement for which some or all of the messages are lost; names both."""
    problem = lease_over()
    problem.more = {"acknowledged": finished.acknowledged, "lost": finished.lost}
    if finished.acknowledged:
        problem.detail = (
            f"could not acknowledge {len(finished.lost)} of these messages, because their lease is "
            f"over; {len(finished.acknowledged)} are acknowledged"
        )
    return problem


def no_receipt() -> Problem:
    """400: a question about a message without what its sender was given for it."""
    return invalid(FieldError("X-Receipt", "is required: it came with the answer to the post"))


def no_such_message() -> Problem:
    """404: no message with this id and this receipt, as far as anybody remembers."""
    detail = "there is no message of this id with the receipt in X-Receipt, or not any more"
    return Problem(404, "not-found", "There is nothing here", detail)


def too_late(status: str) -> Problem:
    """409: a message that cannot be taken back any more."""
    return Problem(
        409, "too-late", "It is too late", f"the message is {status}", more={"fate": status}
    )


def internal_error() -> Problem:
    """500: a bug. The log has it under the request's id."""
    detail = "an unexpected error; the server's log holds it under this request's id"
    return Problem(500, "internal", "Something went wrong", detail)


def of_service_error(error: ServiceError, effect: Effect) -> Problem:
    """503 or 507, saying what became of the request; 400 for a message that can never be stored.

    `effect` is the word for what the request would have done: "stored", "claimed" or "changed".
    """
    if isinstance(error, Rejected):
        return invalid(FieldError("text", str(error)))
    if isinstance(error, KeyReused):
        detail = "this Idempotency-Key came with another message before; nothing was stored"
        return Problem(422, "key-reused", "The key was used before", detail)
    if isinstance(error, KeyInFlight):
        detail = "a request with this Idempotency-Key is not answered yet; ask again"
        title, again = "The same request is being served", {"Retry-After": "1"}
        return Problem(409, "key-in-flight", title, detail, headers=again)
    if isinstance(error, StorageFull):
        detail = (
            "the disk has no room for messages until some are read or expire; nothing was stored"
        )
        title, again = "The storage is full", {"Retry-After": "10"}
        return Problem(507, "storage-full", title, detail, headers=again, more={"stored": False})
    happened: str | bool
    if isinstance(error, OutcomeUnknown):
        title, kind, happened = "The outcome is not known", "outcome-unknown", "unknown"
    elif isinstance(error, Overloaded):
        title, kind, happened = "The service is overloaded", "overloaded", False
    elif isinstance(error, Draining):
        title, kind, happened = "The service is stopping", "draining", False
    else:
        assert isinstance(error, NotExecuted)
        title, kind, happened = "The service is not available", "unavailable", False
    # What the database said belongs into the log: it may name hosts.
    detail = (
        f"it is not known whether anything was {effect}" if happened else f"nothing was {effect}"
    )
    if isinstance(error, Overloaded):
        # These are our own words.
        detail = f"{error}; {detail}"
    more: dict[str, Any] = {effect: happened}
    if isinstance(error, OutcomeUnknown) and error.message_id is not None:
        more["id"] = error.message_id
    return Problem(503, kind, title, detail, headers={"Retry-After": "1"}, more=more)


def answer_to(error: Exception, request_id: str, effect: Effect = "claimed") -> Response:
    """The answer to a request that met an error. What nobody expected is logged whole."""
    if isinstance(error, Problem):
        problem = error
    elif isinstance(error, ServiceError):
        log.debug("not served", id=request_id, kind=type(error).__name__, reason=str(error))
        problem = of_service_error(error, effect)
    else:
        log.error("a handler failed", id=request_id, exc_info=error)
        problem = internal_error()
    headers = {"Content-Type": CONTENT_TYPE, "Cache-Control": "no-store", **problem.headers}
    return Response(problem.status, headers, BodyChunk(problem.body(request_id), 0))
