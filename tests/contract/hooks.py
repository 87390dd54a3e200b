"""What Schemathesis has to be told in Python, beside schemathesis.toml."""

import json
from itertools import count
from typing import Any

import schemathesis

from chat_service.openapi.components import KEY

_numbers = count()


@schemathesis.hook
def map_query(context: Any, query: dict[str, Any] | None) -> dict[str, Any] | None:
    """Write numbers out: Python has exponents for small and large ones."""
    return query and {
        name: f"{value:.9f}" if isinstance(value, float) else value for name, value in query.items()
    }


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """A key of its own in place of the example: else all but the first are the key's misuse."""
    if case.headers and case.headers.get("Idempotency-Key") == KEY:
        case.headers["Idempotency-Key"] = f"{KEY}-{next(_numbers)}"


@schemathesis.serializer("application/x-ndjson")
def lines(context: Any, value: Any) -> bytes:
    """A body of lines is text already; what is no text is not one of lines."""
    return value.encode() if isinstance(value, str) else json.dumps(value).encode()
