"""The OpenAPI document, built from the route table and the limits in effect.

`chat_service.service` builds it once, at startup. Query parameters, limits and common problems come
from the route, and the summary comes from the handler's docstring. Everything else is an entry in
`inbox` or `others`, by method and path. docs/api.md says the same in prose.
"""

import re
from collections.abc import Sequence

import msgspec

from chat_service import __version__
from chat_service.api.problems import (
    bad_request,
    cross_origin,
    encoded_body,
    forbidden,
    head_too_large,
    internal_error,
    method_not_allowed,
    not_found,
    speculative,
    too_large,
    unauthorized,
    wrong_host,
)
from chat_service.api.request_policy import OTHER_ORIGIN_DETAIL, PREFETCH_DETAIL
from chat_service.api.routing import Handler, Route
from chat_service.openapi import inbox, others
from chat_service.openapi.components import parameters, response_headers, security_schemes
from chat_service.openapi.parts import (
    Operation,
    answer,
    limited,
    refusals,
)
from chat_service.openapi.schemas import Object, Terms, reference, schemas

__all__ = ["Terms", "make_document"]

_ABOUT = """\
Post a short message to a name. The owner of the name reads it once. A message that is not read in \
time expires. The API is HTTP/1.1 with JSON in UTF-8. In a path, a username is one segment, \
percent-encoded. {access}

Some operations consume messages: nobody else receives the messages of such a call. They carry \
`x-consumes`. `x-effect` describes what an operation does to messages.

Every error is `application/problem+json` (RFC 9457). Only a browser that opens an address (a GET \
whose `Accept` prefers HTML) gets a page instead, with the same status and headers. `OPTIONS` on \
any path answers 204 with `Allow`. `x-other-requests` has the answers to requests that are none of \
these operations.\
"""
_OPEN = "There is no authentication."
_GUARDED = (
    "Send a token as `Authorization: Bearer TOKEN`. Pages of the service can turn it into a cookie "
    "with `POST /session`. `x-right` names the right that an operation needs, for the name in the "
    "path or in the message. Without it, the answer is 401 or 403, whether or not the inbox exists."
)
_TAGS = {
    "Inbox": "Post messages, read them once, and count them.",
    "Leases": "Reads that you acknowledge. Otherwise the messages become unread again.",
    "Receipts": "For senders: query the status of a message, and revoke it.",
    "Session": "For the pages of the service: who the user is, and what the user may do.",
    "Operators": "Health, metrics and the dashboard, for operators and monitoring.",
    "Pages": "The web pages and their files.",
}
_METHOD = re.compile(r"^[A-Z]{3,7} /")


def make_document(routes: Sequence[Route], terms: Terms) -> bytes:
    """Return the document as JSON. It leaves out a route without an entry; a test finds those."""
    known = {**inbox.operations(terms), **others.operations()}
    paths: Object = {}
    for route in routes:
        path = re.sub(r":(\w+)", r"{\1}", route.path)
        for method, handler in route.methods.items():
            if (operation := known.get(f"{method} {route.path}")) is not None:
                said = _operation(method, operation, handler, route, terms)
            elif method == "HEAD" and (operation := known.get(f"GET {route.path}")) is not None:
                operation = operation._replace(id=f"{operation.id}-head")
                said = _operation(method, operation, handler, route, terms)
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
                "summary": "A chat inbox over HTTP: messages are read once, or expire.",
                "description": _ABOUT.replace(
                    "{access}", _OPEN if terms.access == "off" else _GUARDED
                ),
                "license": {"name": "MIT", "identifier": "MIT"},
            },
            # Relative to the document, so that it is right behind a proxy with a path prefix.
            "servers": [{"url": "."}],
            "tags": [{"name": name, "description": text} for name, text in _TAGS.items()],
            "paths": paths,
            "x-other-requests": _others(terms),
            "components": {
                "schemas": schemas(terms),
                "parameters": parameters(terms),
                "headers": response_headers(),
                "securitySchemes": security_schemes(),
            },
        }
    )


def _operation(
    method: str, operation: Operation, handler: Handler, route: Route, terms: Terms
) -> Object:
    body_max = route.max_body_bytes or terms.body_bytes
    problems = [
        *operation.problems,
        bad_request("the request has no Host header"),
        too_large("the body", body_max),
        encoded_body(),
        head_too_large(),
        internal_error(),
    ]
    if not route.takes_any_host:
        problems.append(wrong_host(is_loopback=True))
    if route.audience == "clients":
        problems += (
            speculative(PREFETCH_DETAIL),
            cross_origin(OTHER_ORIGIN_DETAIL),
        )
    if route.right is not None:
        # A session's cookie from another page.
        problems += (unauthorized(), cross_origin(OTHER_ORIGIN_DETAIL))
        if route.right != "any":
            problems.append(forbidden(route.right))
        problems.append(limited(route.effect))
    answers = {**refusals(problems), **operation.answers}
    said: Object = {
        "operationId": operation.id,
        "tags": [operation.tag],
        "summary": _summary(handler),
        "description": operation.description,
        "responses": {str(status): answers[status] for status in sorted(answers)},
    }
    if route.right is not None and terms.access != "off":
        said["security"] = [{"bearer": []}, {"session": []}]
        said["x-right"] = route.right
    names = [*operation.parameters, *(route.parameters or ())]
    if method == "HEAD":
        # A HEAD counts messages, and has no options.
        names = [*operation.parameters]
    if names:
        said["parameters"] = [reference("parameters", name) for name in names]
    if operation.body is not None:
        said["requestBody"] = operation.body
    if operation.effect:
        said["x-effect"] = operation.effect
    if operation.consumes:
        said["x-consumes"] = True
        said["description"] = f"Consumes: a call will {operation.effect}. {operation.description}"
    return said


def _without_bodies(answers: Object) -> Object:
    """Return the answers without their bodies, for a HEAD."""
    return {
        status: {key: value for key, value in said.items() if key != "content"}
        for status, said in answers.items()
    }


def _summary(handler: Handler) -> str:
    """Return the first line of a handler's docstring, without the method and the path."""
    line = (handler.__doc__ or "").strip().partition("\n")[0].rstrip(".")
    if _METHOD.match(line):
        line = line.partition(": ")[2]
    return line[:1].upper() + line[1:]


def _others(terms: Terms) -> Object:
    problems = (
        bad_request("the request has no Host header"),
        not_found(),
        method_not_allowed("GET, HEAD, OPTIONS"),
        too_large("the body", terms.body_bytes),
        encoded_body(),
        head_too_large(),
        wrong_host(is_loopback=True),
        limited("claimed"),
    )
    allowed = answer("`Allow` lists the methods of the path.", headers=("Allow",))
    answers = {204: allowed, **refusals(problems)}
    return {"responses": {str(status): answers[status] for status in sorted(answers)}}
