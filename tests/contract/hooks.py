"""Python hooks for Schemathesis, besides schemathesis.toml."""

import json
import re
from itertools import count
from typing import Any

import schemathesis

from chat_service.openapi.components import KEY

_numbers = count()
_EXPONENT = re.compile(r"[0-9.]+e-?[0-9]+")


@schemathesis.hook
def before_load_schema(context: Any, raw_schema: dict[str, Any]) -> None:
    """Generate bodies of the types that the document lists apart, too."""
    for methods in raw_schema["paths"].values():
        for said in methods.values():
            body = said.get("requestBody", {})
            body.get("content", {}).update(body.get("x-other-content", {}))
            # The service takes these bytes only if they are UTF-8; text/plain generates such.
            body.get("content", {}).pop("application/octet-stream", None)


@schemathesis.hook
def map_query(context: Any, query: dict[str, Any] | None) -> dict[str, Any] | None:
    """Write numbers without exponents, which Python uses for small and large ones."""
    return query and {
        name: f"{value:.9f}" if isinstance(value, float) else value for name, value in query.items()
    }


@schemathesis.hook
def map_headers(context: Any, headers: dict[str, Any] | None) -> dict[str, Any] | None:
    """Write delays without exponents, too."""
    return headers and {
        name: f"{float(value):.9f}"
        if name == "X-Delay" and _EXPONENT.fullmatch(str(value))
        else value
        for name, value in headers.items()
    }


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Replace the example key by a unique one. Otherwise all calls but the first would misuse the
    key.
    """
    if case.headers and case.headers.get("Idempotency-Key") == KEY:
        case.headers["Idempotency-Key"] = f"{KEY}-{next(_numbers)}"
    _say_once(case)


def _say_once(case: Any) -> None:
    """Keep one of the ways to name a time, because those that differ are rejected."""
    for name in ("timeout", "delay"):
        if name in (case.query or {}) and case.headers:
            case.headers.pop(f"X-{name.title()}", None)
        is_said = name in (case.query or {}) or f"X-{name.title()}" in (case.headers or {})
        if is_said and isinstance(case.body, dict):
            case.body.pop(name, None)


@schemathesis.serializer("application/x-ndjson")
def lines(context: Any, value: Any) -> bytes:
    """Return a body of lines as it is. A value that is not text is not a body of lines."""
    return value.encode() if isinstance(value, str) else json.dumps(value).encode()
