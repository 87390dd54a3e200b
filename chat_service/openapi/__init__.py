"""The OpenAPI document: the routes as they are, described, with the limits that are in force.

`chat_service.service` has it made once, at start. What a route and its handler say is taken from
them; what is to be said besides is an entry in `inbox` or `others`, by method and route.
docs/api.md says the same in prose.
"""

import re
from collections.abc import Sequence

import msgspec

from chat_service import __version__
from chat_service.app import Handler, Route
from chat_service.guard import HEALTH
from chat_service.openapi import inbox, others
from chat_service.openapi.components import parameters, response_headers
from chat_service.openapi.parts import (
    Operation,
    answer,
    refusals,
)
from chat_service.openapi.schemas import Object, Terms, reference, schemas
from chat_service.problems import (
    bad_request,
    cross_origin,
    encoded_body,
    head_too_large,
    internal_error,
    method_not_allowed,
    not_found,
    speculative,
    too_large,
    wrong_host,
)

__all__ = ["Terms", "make_document"]

_ABOUT = """\
Anyone posts a short message to a name, the owner of the name reads it once, and what is not read \
in time is gone. JSON in UTF-8 over HTTP/1.1; a username in a path is one whole segment, \
percent-encoded. There is no authentication.

Some operations consume: what a call takes is then no more there for others. They say so \
(`x-consumes`), and each says what it does to messages (`x-effect`).

Every error is `application/problem+json` (RFC 9457). `OPTIONS` on any path is answered 204 with \
`Allow`; what a request that is none of these operations is answered stands at the end \
(`x-other-requests`).\
"""
_TAGS = {
    "Inbox": "Posting messages, reading them once, counting them.",
    "Leases": "Messages on loan: what is not acknowledged in time is unread again.",
    "Receipts": "For the sender: what became of a message, and taking it back.",
    "Operators": "For those who run the service, and their machines.",
    "Pages": "For people: these pages, and what they are made of.",
}
_METHOD = re.compile(r"^[A-Z]{3,7} /")


def make_document(routes: Sequence[Route], terms: Terms) -> bytes:
    """The document of these routes as JSON. A route that no entry describes is not in it."""
    known = {**inbox.operations(terms), **others.operations()}
    paths: Object = {}
    for route in routes:
        path = re.sub(r":(\w+)", r"{\1}", route.path)
        for method, handler in route.methods.items():
            if (operation := known.get(f"{method} {route.path}")) is not None:
                said = _operation(operation, handler, route, terms)
            elif method == "HEAD" and (operation := known.get(f"GET {route.path}")) is not None:
                operation = operation._replace(id=f"{operation.id}-head")
                said = _operation(operation, handler, route, terms)
            else:
                continue
            if method == "HEAD":
                said = {**said, "responses": _without_bodies(said["responses"])}
            paths.setdefault(path, {})[method.lower()] = said
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "Chat inbox",
                "version": __version__,
                "summary": "A chat inbox over HTTP: post a message to a name, read it once, or it "
                "expires.",
                "description": _ABOUT,
                "license": {"name": "MIT", "identifier": "MIT"},
            },
            # Where the document is, also below a proxy's path.
            "servers": [{"url": "."}],
            "tags": [{"name": name, "description": text} for name, text in _TAGS.items()],
            "paths": paths,
            "x-other-requests": _others(terms),
            "components": {
                "schemas": schemas(terms),
                "parameters": parameters(terms),
                "headers": response_headers(),
            },
        }
    )


def _operation(operation: Operation, handler: Handler, route: Route, terms: Terms) -> Object:
    body_max = route.max_body_bytes or terms.body_bytes
    problems = [
        *operation.problems,
        bad_request("there is no Host"),
        too_large("the body", body_max),
        encoded_body(),
        head_too_large(),
        internal_error(),
    ]
    if route.path not in HEALTH:
        problems.append(wrong_host(is_loopback=True))
    if route.path.startswith(("/chat", "/messages")):
        problems += (
            speculative("a prefetch reads nothing here; ask again when it is wanted"),
            cross_origin("a page of another origin reads and writes nothing here"),
        )
    answers = {**refusals(problems), **operation.answers}
    said: Object = {
        "operationId": operation.id,
        "tags": [operation.tag],
        "summary": _summary(handler),
        "description": operation.description,
        "responses": {str(status): answers[status] for status in sorted(answers)},
    }
    if operation.parameters:
        said["parameters"] = [reference("parameters", name) for name in operation.parameters]
    if operation.body is not None:
        said["requestBody"] = operation.body
    if operation.effect:
        said["x-effect"] = operation.effect
    if operation.consumes:
        said["x-consumes"] = True
        said["description"] = f"Consumes: a call will {operation.effect}. {operation.description}"
    return said


def _without_bodies(answers: Object) -> Object:
    """The answers to a HEAD."""
    return {
        status: {key: value for key, value in said.items() if key != "content"}
        for status, said in answers.items()
    }


def _summary(handler: Handler) -> str:
    """The first line of a handler's docstring, without its method and path."""
    line = (handler.__doc__ or "").strip().partition("\n")[0].rstrip(".")
    if _METHOD.match(line):
        line = line.partition(": ")[2]
    return line[:1].upper() + line[1:]


def _others(terms: Terms) -> Object:
    problems = (
        bad_request("there is no Host"),
        not_found(),
        method_not_allowed("GET, HEAD, OPTIONS"),
        too_large("the body", terms.body_bytes),
        encoded_body(),
        head_too_large(),
        wrong_host(is_loopback=True),
    )
    allowed = answer("The methods that are known here, for `OPTIONS`.", headers=("Allow",))
    answers = {204: allowed, **refusals(problems)}
    return {"responses": {str(status): answers[status] for status in sorted(answers)}}
