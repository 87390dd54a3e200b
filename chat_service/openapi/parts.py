"""Building blocks of operations: bodies, answers, links, and answers for problems.

Used by `chat_service.openapi` and by its modules that describe operations.
"""

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from chat_service.api.problems import (
    CONTENT_TYPE,
    Effect,
    FieldError,
    Problem,
    invalid,
    of_service_error,
    rate_limited,
)
from chat_service.openapi.schemas import ID, Object, reference, schema_of
from workers.errors import (
    Draining,
    InboxFull,
    OutcomeUnknown,
    Overloaded,
    StorageFull,
    StoreUnavailable,
)

#: The request id in every example of an error.
_REQUEST_ID = "f2b43ddace53-5"


class Operation(NamedTuple):
    """The description of an operation, except for what comes from its route and its handler.

    `parameters` and the headers in `answers` are names of components. Query parameters that the
    route names are added to `parameters`. `problems` has those that not every route can answer
    with. `effect` says what a call does to messages and completes "a call will ...". `consumes`
    says that nobody else receives these messages afterwards.
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
    """Return a successful answer. Without a schema it has no body."""
    found: Object = {"description": description, "headers": headers_of(*headers)}
    if schema is not None:
        content = {"schema": schema, **({} if example is None else {"example": example})}
        found["content"] = {media: content}
    return found if links is None else {**found, "links": links}


def headers_of(*names: str) -> Object:
    """Return these headers of an answer, and the one that every answer has."""
    return {name: reference("headers", name) for name in ("X-Request-ID", *names)}


def json_body(schema: str, **examples: object) -> Object:
    """Return a request body of this schema."""
    named = {name: {"value": value} for name, value in examples.items()}
    content = {"application/json": {"schema": schema_of(schema), "examples": named}}
    return {"required": True, "content": content}


def link(operation: str, description: str, body: Object | None = None, **from_: str) -> Object:
    """Return a link from an answer to an operation, with values for its parameters and body."""
    found: Object = {"operationId": operation, "description": description}
    if from_:
        found["parameters"] = {name.replace("_", "-"): value for name, value in from_.items()}
    return found if body is None else {**found, "requestBody": body}


def refused(field: str, rule: str) -> Problem:
    """Return the problem of a field that breaks a rule, for an example."""
    return invalid(FieldError(field, rule))


def example_of(problem: Problem) -> Object:
    """Return the document of a problem as clients receive it."""
    document: Object = json.loads(problem.body(_REQUEST_ID))
    return document


def not_served(effect: Effect) -> tuple[Problem, ...]:
    """Return every problem of the engine for a route with this effect."""
    unknown = OutcomeUnknown("", ID if effect == "stored" else None)
    errors = [Overloaded(), Draining(), StoreUnavailable(""), unknown]
    if effect == "stored":
        errors[:0] = [InboxFull(), StorageFull()]
    return tuple(of_service_error(error, effect) for error in errors)


def limited(effect: Effect) -> Problem:
    """Return the problem of a client that exceeds its rate, for an example."""
    headers = {"RateLimit-Policy": '"requests";q=100;w=10', "RateLimit": '"requests";r=0;t=1'}
    return rate_limited(1, headers, effect)


def refusals(problems: Sequence[Problem]) -> dict[int, Object]:
    """Return the answers for problems, by status. The examples are generated from the problems."""
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
