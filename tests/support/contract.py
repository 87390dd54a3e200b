"""Checks answers against the OpenAPI document: the document must allow each of them.

The clients of the tests (`tests.support.client`, `tests.support.raw`) check every answer here. The
check is stricter than the document in one respect: a body may have no undocumented field.
"""

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple, cast

from jsonschema import Draft202012Validator

from chat_service.api.routing import Route
from chat_service.service import Service
from config import Settings
from workers.pool import WorkerPool

#: The type of the pages.
_PAGE = "text/html"
_ABSOLUTE = re.compile(r"^https?://[^/?]*", re.IGNORECASE)
#: Check this many elements at each end of a long array, because all are made the same way.
_LOOKED_AT = 50


class _Answer(NamedTuple):
    """What the document says about one status: bodies by media type, headers by name."""

    bodies: Mapping[str, Draft202012Validator | None]
    headers: Mapping[str, tuple[bool, Draft202012Validator]]


class _Path(NamedTuple):
    template: str
    pattern: re.Pattern[str]
    methods: Mapping[str, Mapping[str, _Answer]]


class Contract:
    """An OpenAPI document, prepared for checks."""

    def __init__(self, document: Any) -> None:
        self._document = document
        self._headers = {name.lower() for name in document["components"]["headers"]}
        self._paths = [
            _Path(
                path,
                re.compile(re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(path))),
                {
                    method.upper(): self._answers(said["responses"])
                    for method, said in operations.items()
                },
            )
            for path, operations in document["paths"].items()
        ]
        self._others = self._answers(document["x-other-requests"]["responses"])

    def check(
        self, method: str, target: str, status: int, headers: Mapping[str, str], body: bytes
    ) -> None:
        """Raise AssertionError if the document does not allow this answer to this request."""
        operation, answers = self._find(method, _ABSOLUTE.sub("", target).partition("?")[0] or "/")
        of = f"the answer {status} to {operation}"
        answer = answers.get(str(status))
        assert answer is not None, f"{of} is not in the document: {body[:200]!r}"
        given = {name.lower(): value for name, value in headers.items()}
        for name in self._headers & given.keys():
            assert name in answer.headers, f"{of} has {name}, which is not in the document"
        for name, (is_required, validator) in answer.headers.items():
            assert name in given or not is_required, f"{of} has no {name}"
            if name in given:
                is_number = cast(Any, validator.schema).get("type") == "integer"
                value = int(given[name]) if is_number else given[name]
                _judge(validator, value, f"{name} of {of}")
        if not answer.bodies or method == "HEAD":
            assert not body, f"{of} has a body: {body[:200]!r}"
            return
        media = given.get("content-type", "").partition(";")[0]
        if media == _PAGE and status >= 400:
            # The document says it once, for all operations: a browser gets its errors as pages.
            assert method == "GET", f"{of} is a page"
            return
        assert media in answer.bodies, f"{of} is of the type {media!r}"
        if (schema := answer.bodies[media]) is not None:
            _judge(schema, _shortened(json.loads(body)), of)

    def _find(self, method: str, path: str) -> tuple[str, Mapping[str, _Answer]]:
        for template, pattern, methods in self._paths:
            if method in methods and pattern.fullmatch(path):
                return f"{method} {template}", methods[method]
        return f"{method} {path[:100]}", self._others

    def _answers(self, responses: Any) -> dict[str, _Answer]:
        return {status: self._answer(said) for status, said in responses.items()}

    def _answer(self, said: Any) -> _Answer:
        headers = {
            name.lower(): self._resolved(header) for name, header in said.get("headers", {}).items()
        }
        return _Answer(
            {
                # Only JSON has more rules than being text.
                media: Draft202012Validator(self._resolved(content["schema"]))
                if "json" in media
                else None
                for media, content in said.get("content", {}).items()
            },
            {
                name: (header.get("required", False), Draft202012Validator(header["schema"]))
                for name, header in headers.items()
            },
        )

    def _resolved(self, node: Any) -> Any:
        """Replace references by their components; no component refers to itself."""
        if isinstance(node, list):
            return [self._resolved(each) for each in node]
        if not isinstance(node, dict):
            return node
        node = dict(node)
        pointer = node.pop("$ref", None)
        found = {name: self._resolved(value) for name, value in node.items()}
        if pointer is not None:
            target = self._document
            for step in pointer.removeprefix("#/").split("/"):
                target = target[step]
            return {"allOf": [self._resolved(target)], **found} if found else self._resolved(target)
        if found.get("type") == "object" and "properties" in found:
            found["additionalProperties"] = False
        return found


@cache
def contract() -> Contract:
    """Return the contract of a service with the default settings. Limits concern requests, not
    answers.
    """
    return Contract(json.loads(document_of(Settings(mongo_uri="mongodb://nobody"))))


def document_of(settings: Settings) -> bytes:
    """Return a service's document without starting it."""
    service = Service(settings)
    # Nothing is asked of it.
    handlers = service._make_handlers(cast(WorkerPool, None))
    service._make_routes(handlers)
    return handlers.pages.document


def routes_of(settings: Settings) -> Sequence[Route]:
    """Return a service's routes without starting it."""
    service = Service(settings)
    return service._make_routes(service._make_handlers(cast(WorkerPool, None)))


def _judge(validator: Draft202012Validator, value: Any, of: str) -> None:
    for error in validator.iter_errors(value):
        raise AssertionError(f"{of} breaks its schema at {error.json_path}: {error.message[:500]}")


def _shortened(document: Any) -> Any:
    if isinstance(document, list) and len(document) > 2 * _LOOKED_AT:
        return document[:_LOOKED_AT] + document[-_LOOKED_AT:]
    return document
