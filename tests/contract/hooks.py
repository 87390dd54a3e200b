"""What Schemathesis has to be told in Python, beside schemathesis.toml."""

import json
from typing import Any

import schemathesis

#: What is closer to zero is written by Python with an exponent; seconds are plain decimals.
_LEAST = 0.0001


@schemathesis.hook
def map_query(context: Any, query: dict[str, Any] | None) -> dict[str, Any] | None:
    """Write small and large numbers out."""
    return query and {
        name: f"{value:.9f}" if isinstance(value, float) else value for name, value in query.items()
    }


@schemathesis.serializer("application/x-ndjson")
def lines(context: Any, value: Any) -> bytes:
    """A body of lines is text already; what is no text is not one of lines."""
    return value.encode() if isinstance(value, str) else json.dumps(value).encode()
