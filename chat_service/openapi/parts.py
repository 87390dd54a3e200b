"""What operations have in common: parameters, headers of answers, errors, and how they are said.

Called by the modules that describe operations, and by `chat_service.openapi`.
"""

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from chat_service.openapi.schemas import Object, Terms, reference, schema_of, username_of
from chat_service.parameters import READ_KEY_MIN, TTL_MIN_S
from chat_service.problems import CONTENT_TYPE, FieldError, Problem, invalid, of_service_error
from workers.errors import Draining, OutcomeUnknown, Overloaded, StoreUnavailable

KEY = "4f0c3a9e-9a53-4f7e-8f5b-0b4c2f1a77d1"
RECEIPT = "ws5yGDMRspPrnW4OOFGpEqlMMuEQHPW_"
#: The request in every example of an error.
_REQUEST_ID = "f2b43ddace53-5"


class Operation(NamedTuple):
    """What is to be said of an operation beside what its route and its handler say.

    `parameters` and the headers in `answers` are names of components. `problems` are those that not
    every route can give. `effect` says what a call does to messages, in the words of a button;
    `consumes` that these are then no more there for others.
    """

    id: str
    tag: str
    description: str
    answers: Mapping[int, Object]
    problems: Sequence[Problem] = ()
    parameters: Sequence[str] = ()
    body: Object | None = None
    effect: str = ""
    consumes: bool = False


def answer(
    description: str,
    schema: Object | None = None,
    example: object = None,
    headers: Sequence[str] = (),
    media: str = "application/json",
    links: Object | None = None,
) -> Object:
    """An answer that is no error; without a schema it has no body."""
    found: Object = {"description": description, "headers": headers_of(*headers)}
    if schema is not None:
        content = {"schema": schema, **({} if example is None else {"example": example})}
        found["content"] = {media: content}
    return found if links is None else {**found, "links": links}


def headers_of(*names: str) -> Object:
    """The headers of an answer: these, and the one that all have."""
    return {name: reference("headers", name) for name in ("X-Request-ID", *names)}


def json_body(schema: str, **examples: object) -> Object:
    """A body of this schema."""
    named = {name: {"value": value} for name, value in examples.items()}
    content = {"application/json": {"schema": schema_of(schema), "examples": named}}
    return {"required": True, "content": content}


def link(operation: str, description: str, body: Object | None = None, **from_: str) -> Object:
    """Where an answer leads to: an operation, and what of the answer its parameters are."""
    found: Object = {"operationId": operation, "description": description}
    if from_:
        found["parameters"] = {name.replace("_", "-"): value for name, value in from_.items()}
    return found if body is None else {**found, "requestBody": body}


def refused(field: str, rule: str) -> Problem:
    """A field that breaks a rule, for an example."""
    return invalid(FieldError(field, rule))


def example_of(problem: Problem) -> Object:
    """The document that a problem is, as it is sent."""
    document: Object = json.loads(problem.body(_REQUEST_ID))
    return document


def not_served(effect: str) -> tuple[Problem, ...]:
    """Every 503 of a route whose requests have this effect: "stored", "claimed" or "changed"."""
    unknown = OutcomeUnknown("", "01a20bdacd390000b765d1a0c4bde3d1" if effect == "stored" else None)
    errors = (Overloaded(), Draining(), StoreUnavailable(""), unknown)
    return tuple(of_service_error(error, effect) for error in errors)


def refusals(problems: Sequence[Problem]) -> dict[int, Object]:
    """The answers that problems make, by status. Their examples are what is really sent."""
    found: dict[int, Object] = {}
    for problem in problems:
        said = found.setdefault(
            problem.status,
            {
                "description": "",
                "headers": headers_of(*problem.headers),
                "content": {
                    CONTENT_TYPE: {
                        "schema": {
                            **schema_of("Problem"),
                            "properties": {
                                "type": {"enum": []},
                                "status": {"const": problem.status},
                            },
                        },
                        "examples": {},
                    }
                },
            },
        )
        said["headers"] |= headers_of(*problem.headers)
        content = said["content"][CONTENT_TYPE]
        document = example_of(problem)
        kinds = content["schema"]["properties"]["type"]["enum"]
        if document["type"] not in kinds:
            kinds.append(document["type"])
            content["examples"][problem.kind] = {"summary": problem.title, "value": document}
            titles = [each["summary"] for each in content["examples"].values()]
            said["description"] = ". ".join(dict.fromkeys(titles)) + "."
    return found


def parameters(terms: Terms) -> Object:
    """Every parameter that has a name."""
    rules, waits = terms.rules, terms.waits
    return {
        "username": _parameter("path", "username", username_of(rules), "bob"),
        "id": _parameter(
            "path",
            "id",
            {"type": "string", "minLength": 1, "description": "The message's id."},
            "01a20bdacd390000b765d1a0c4bde3d1",
        ),
        "file": _parameter("path", "file", {"type": "string", "minLength": 1}, "base.css"),
        "limit": _parameter(
            "query",
            "limit",
            {
                "type": "integer",
                "minimum": 1,
                "maximum": 999_999_999,
                "description": "At most so many messages, the oldest.",
            },
            10,
        ),
        "wait": _parameter(
            "query",
            "wait",
            {
                "type": "number",
                "minimum": 0,
                "maximum": 999_999_999,
                "description": "Wait up to so many seconds for a first message, decimals allowed. "
                f"More than {waits.wait_max_s:g} is cut to that.",
            },
            2.5,
        ),
        "ttl": _parameter(
            "query",
            "ttl",
            {
                "type": "number",
                "minimum": TTL_MIN_S,
                "maximum": 999_999_999,
                "default": min(30, waits.lease_max_s),
                "description": "The lease lasts so many seconds, decimals allowed. "
                f"More than {waits.lease_max_s:g} is cut to that.",
            },
            30,
        ),
        "prefer-wait": _parameter(
            "header",
            "Prefer",
            {
                "type": "string",
                "description": "`wait=S` is the same as `?wait=S`, which comes first. What is not "
                "understood is no preference.",
            },
            "wait=2.5",
        ),
        "prefer-receipt": _parameter(
            "header",
            "Prefer",
            {"type": "string", "description": "`receipt` asks for a receipt."},
            "receipt",
        ),
        "post-key": _parameter(
            "header",
            "Idempotency-Key",
            {
                **_key(1),
                "description": "With it the post is one message, however often it is sent. "
                "Printable ASCII, bare or as a quoted string. It counts for all posts: take a "
                "UUID.",
            },
            KEY,
        ),
        "read-key": _parameter(
            "header",
            "Idempotency-Key",
            {
                **_key(READ_KEY_MIN),
                "description": "A repeat with the same key within a minute gets the same messages "
                f"again. Printable ASCII, {READ_KEY_MIN} characters at least: a UUID will do.",
            },
            KEY,
        ),
        "receipt": _parameter(
            "header",
            "X-Receipt",
            {"type": "string", "description": "As the answer to the post gave it."},
            RECEIPT,
            is_required=True,
        ),
        "last-event-id": _parameter(
            "header",
            "Last-Event-ID",
            {
                "type": "string",
                "description": "The message that was seen last: that one and all that the same "
                "stream delivered before it are read. Junk is ignored.",
            },
            "01a20bdacd390000b765d1a0c4bde3d1",
        ),
        "if-none-match": _parameter(
            "header",
            "If-None-Match",
            {"type": "string", "description": "The `ETag` of what is there already."},
            'W/"0123456789abcdef"',
        ),
    }


def response_headers() -> Object:
    """Every header of an answer that has a name."""
    true: Object = {"const": "true"}
    count: Object = {"type": "integer", "minimum": 0}
    text: Object = {"type": "string", "minLength": 1}
    always = {"required": True}
    return {
        "X-Request-ID": {
            "description": "The request's id, as in the log; the one that it brought, where it did "
            "(1 to 64 letters, digits or `._:/+=@-`).",
            "schema": {"type": "string", "pattern": "^[A-Za-z0-9._:/+=@-]{1,64}$"},
            **always,
        },
        "Retry-After": {"description": "Seconds until to try again.", "schema": count, **always},
        "Allow": {"description": "The methods that are known here.", "schema": text, **always},
        "X-Unread-Count": {"description": "How many are unread.", "schema": count, **always},
        "X-More": {"description": "There where more is unread.", "schema": true},
        "X-Receipt": {"description": "There where one was preferred.", "schema": text},
        "Idempotent-Replayed": {"description": "There for a repeat.", "schema": true},
        "Preference-Applied": {"description": "What holds of `Prefer`.", "schema": text},
        "Sec-WebSocket-Version": {"description": "What is spoken.", "schema": {"const": "13"}},
        "ETag": {"description": "For `If-None-Match`.", "schema": text, **always},
    }


def _parameter(
    place: str, name: str, schema: Object, example: object, *, is_required: bool = False
) -> Object:
    # The description belongs to the parameter, and is said once.
    rules = {key: value for key, value in schema.items() if key != "description"}
    found = {"in": place, "name": name, "required": is_required or place == "path"}
    said = {"description": schema["description"]} if "description" in schema else {}
    return {**found, **said, "schema": rules, "example": example}


def _key(length_min: int) -> Object:
    rest = f"([ -~]{{{max(length_min - 2, 0)},253}}[!-~])"
    bare = f"[!#-~]{rest}?" if length_min == 1 else f"[!#-~]{rest}"
    quoted = rf'"([ !#-\[\]-~]|\\["\\]){{{length_min},255}}"'
    return {"type": "string", "pattern": f"^({bare}|{quoted})$"}
