"""Error responses as `application/problem+json` (RFC 9457).

Handlers raise `Problem`. `answer_to` turns it, and any other exception of a handler, into a
response. docs/api.md lists all problem types.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import msgspec
import structlog
from tornado.httputil import HTTPHeaders

from chat_service.api.identity import Right
from chat_service.api.types import BodyChunk, Response
from workers.commands import Finished
from workers.errors import (
    Draining,
    InboxFull,
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
    """A field of the request, and the rule that it breaks."""

    field: str
    detail: str


class Problem(Exception):
    """Raised by a handler to answer a request with an error."""

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
        """Return the document as JSON. `request_id` is its `instance`."""
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
    """Return a 400 for fields of the request that break their rules."""
    detail = "; ".join(f"{error.field} {error.detail}" for error in errors)
    return Problem(400, "invalid-request", "The request is not valid", detail, errors=errors)


def not_json(detail: str, what: str = "body") -> Problem:
    """Return a 400 for a body, or a message in it, that is not a JSON object."""
    return Problem(400, "invalid-json", f"The {what} is not a JSON object", detail)


def bad_request(detail: str) -> Problem:
    """Return a 400 for a malformed request line or header."""
    return Problem(400, "bad-request", "The request is malformed", detail)


def plain_http() -> Problem:
    """Return a 400 for a client that speaks HTTP without TLS to a port that has TLS."""
    return bad_request("this port speaks HTTPS; begin the address with https://")


def websocket_elsewhere(stream: str) -> Problem:
    """Return a 400 for a WebSocket handshake at any path but that of streams."""
    return bad_request(f"this path has no WebSocket; connect to {stream}")


def no_handshake(detail: str) -> Problem:
    """Return a 400 for an invalid WebSocket handshake. Its header names the supported version."""
    title, version = "The request is malformed", {"Sec-WebSocket-Version": "13"}
    return Problem(400, "bad-request", title, detail, headers=version)


def not_found() -> Problem:
    """Return a 404 for an unknown path."""
    return Problem(404, "not-found", "There is nothing here", "no resource has this path")


def method_not_allowed(allowed: str) -> Problem:
    """Return a 405 that lists the allowed methods."""
    detail = f"this resource allows {allowed}"
    title = "The method is not allowed"
    return Problem(405, "method-not-allowed", title, detail, headers={"Allow": allowed})


def too_large(what: str, limit: int) -> Problem:
    """Return a 413 for a body or a text that exceeds `limit` bytes."""
    detail = f"{what} may have at most {limit} bytes"
    return Problem(413, "too-large", "The request is too large", detail)


def head_too_large() -> Problem:
    """Return a 431 for a head of too many bytes, or of too many lines."""
    detail = "the request line and the headers are too long together, or there are too many headers"
    return Problem(431, "head-too-large", "The request head is too large", detail)


def encoded_body() -> Problem:
    """Return a 415 for a compressed body. The service reads none, so none can be a zip bomb."""
    detail = "compressed bodies are not supported; send the body without Content-Encoding"
    return Problem(415, "content-encoding", "The encoding is not supported", detail)


def speculative(detail: str) -> Problem:
    """Return a 403 for a browser's prefetch. It must not consume messages nobody asked for."""
    return Problem(403, "speculative", "The request was not carried out", detail)


def cross_origin(detail: str) -> Problem:
    """Return a 403 for a request that a page of another origin made a browser send."""
    return Problem(403, "cross-origin", "The request was not carried out", detail)


class Refusal(Problem):
    """A 401 or 403 of access control.

    `right` and `name` say what was asked for, as far as it is known. They are for the log.
    """

    right: Right | None = None
    name = ""


def unauthorized(detail: str = "", *, is_invalid: bool = False) -> Problem:
    """Return a 401: the request has no token, or one that is not valid (RFC 6750, 3).

    The same for every inbox, whether or not it exists.
    """
    challenge = 'Bearer error="invalid_token"' if is_invalid else "Bearer"
    detail = detail or "send a token that may do this, as Authorization: Bearer TOKEN"
    title, headers = "The request needs a token", {"WWW-Authenticate": challenge}
    return Refusal(401, "unauthorized", title, detail, headers=headers)


def is_invalid_token(problem: Problem) -> bool:
    """Return whether a problem refuses a token that was sent."""
    return "invalid_token" in problem.headers.get("WWW-Authenticate", "")


def forbidden(right: Right) -> Problem:
    """Return a 403: the identity lacks a right. The same whether or not an inbox exists."""
    wanted = {"send": "send to this name", "read": "read this name", "ops": "operate the service"}
    headers = {"WWW-Authenticate": 'Bearer error="insufficient_scope"'}
    detail = f"this token does not have the right to {wanted[right]}"
    return Refusal(403, "forbidden", "The token does not permit this", detail, headers=headers)


def rate_limited(retry_after_s: int, headers: Mapping[str, str], effect: Effect) -> Problem:
    """Return a 429 for a client that exceeds its rate. Nothing of the request was done."""
    detail = f"this client sends too many requests; nothing was {effect}"
    more: Mapping[str, Any] = {effect: False}
    headers = {"Retry-After": str(retry_after_s), **headers}
    return Problem(429, "rate-limited", "Too many requests", detail, headers=headers, more=more)


def too_many_waits(effect: Effect) -> Problem:
    """Return a 429 for a client that has too many long polls and streams open."""
    problem = rate_limited(1, {}, effect)
    problem.detail = f"this client has too many long polls and streams open; nothing was {effect}"
    return problem


def too_many_connections() -> Problem:
    """Return a 429 for a client that has too many connections open."""
    problem = rate_limited(1, {}, "claimed")
    problem.detail, problem.more = "this client has too many connections open", {}
    return problem


def wrong_host(is_loopback: bool) -> Problem:
    """Return a 421 for an unknown `Host`. Its detail names the setting that adds a host."""
    answered = "IP addresses, localhost and " if is_loopback else ""
    detail = f"this server answers only for {answered}the names in the setting allowed_hosts"
    return Problem(421, "wrong-host", "The request is misdirected", detail)


def lease_over() -> Problem:
    """Return a 410 for a lease that is unknown, has ended, or belongs to another inbox."""
    detail = (
        "the lease is unknown, has ended, belongs to another inbox, or does not hold these "
        "messages, or the messages have expired"
    )
    return Problem(410, "lease-over", "The lease is over", detail)


def not_acknowledged(finished: Finished) -> Problem:
    """Return a 410 that lists the acknowledged messages and the lost ones."""
    problem = lease_over()
    problem.more = {"acknowledged": finished.acknowledged, "lost": finished.lost}
    if finished.acknowledged:
        problem.detail = (
            f"could not acknowledge {len(finished.lost)} of these messages because their lease has "
            f"ended; {len(finished.acknowledged)} are acknowledged"
        )
    return problem


def no_receipt() -> Problem:
    """Return a 400 for a request about a message without its receipt."""
    return invalid(FieldError("X-Receipt", "is required; the answer to the post has it"))


def no_such_message() -> Problem:
    """Return a 404 for an unknown id, a wrong receipt, or a record that was deleted."""
    detail = (
        "there is no message with this id and the receipt in X-Receipt, or its record was deleted"
    )
    return Problem(404, "not-found", "There is nothing here", detail)


def too_late(status: str) -> Problem:
    """Return a 409 for a message that can no longer be revoked."""
    return Problem(
        409, "too-late", "It is too late", f"the message is {status}", more={"fate": status}
    )


def internal_error() -> Problem:
    """Return a 500 for a bug."""
    detail = "an unexpected error occurred; find it in the server's log by the id of this request"
    return Problem(500, "internal", "Something went wrong", detail)


def of_service_error(error: ServiceError, effect: Effect) -> Problem:
    """Return the problem for an error of the engine.

    Most are a 503 or a 507, which say whether the request had its `effect`. A message that can
    never be stored is a 400, and a misused key is a 409 or a 422.
    """
    if isinstance(error, Rejected):
        return invalid(FieldError("text", str(error)))
    if isinstance(error, KeyReused):
        detail = (
            "this Idempotency-Key was used before, with another text, timeout or delay; "
            "nothing was stored"
        )
        return Problem(422, "key-reused", "The key was used before", detail)
    if isinstance(error, KeyInFlight):
        detail = "a request with this Idempotency-Key is still in progress; try again later"
        title, again = "The same request is in progress", {"Retry-After": "1"}
        return Problem(409, "key-in-flight", title, detail, headers=again)
    if isinstance(error, InboxFull):
        # Its readers must act first. They seldom do so within a second.
        title, again = "The inbox is full", {"Retry-After": "10"}
        detail = f"{error}; nothing was stored"
        return Problem(429, "inbox-full", title, detail, headers=again, more={"stored": False})
    if isinstance(error, StorageFull):
        detail = "there is no room for messages until others are read or expire; nothing was stored"
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
    # The database's own message stays in the log, because it may name hosts.
    detail = (
        f"it is not known whether anything was {effect}" if happened else f"nothing was {effect}"
    )
    if isinstance(error, Overloaded):
        # This message is ours and names no hosts.
        detail = f"{error}; {detail}"
    more: dict[str, Any] = {effect: happened}
    if isinstance(error, OutcomeUnknown) and error.message_id is not None:
        more["id"] = error.message_id
    return Problem(503, kind, title, detail, headers={"Retry-After": "1"}, more=more)


def problem_of(error: Exception, request_id: str, effect: Effect) -> Problem:
    """Return the problem of a request that failed. Logs an unexpected error with its trace."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, ServiceError):
        log.debug("request not served", id=request_id, kind=type(error).__name__, reason=str(error))
        return of_service_error(error, effect)
    log.error("handler failed", id=request_id, exc_info=error)
    return internal_error()


def answer_to(error: Exception, request_id: str, effect: Effect = "claimed") -> Response:
    """Return the response to a request that failed, and log an unexpected error with its trace."""
    problem = problem_of(error, request_id, effect)
    # In Tornado's spelling, so that a client gets the same bytes on both request paths.
    more = HTTPHeaders(problem.headers)
    headers = {"Content-Type": CONTENT_TYPE, "Cache-Control": "no-store", **more}
    return Response(problem.status, headers, BodyChunk(problem.body(request_id), 0))
