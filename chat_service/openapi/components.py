"""The parameters, and the headers of answers, that have a name which operations refer to.

Called by `chat_service.openapi`.
"""

from chat_service.api.request_options import READ_KEY_MIN, TTL_MIN_S
from chat_service.openapi.schemas import ID, Object, Terms, username_of
from workers.commands import COUNT_MAX

KEY = "4f0c3a9e-9a53-4f7e-8f5b-0b4c2f1a77d1"
RECEIPT = "ws5yGDMRspPrnW4OOFGpEqlMMuEQHPW_"


def parameters(terms: Terms) -> Object:
    """Every parameter that has a name."""
    rules, waits = terms.rules, terms.waits
    return {
        "username": _parameter("path", "username", username_of(rules), "bob"),
        "id": _parameter(
            "path",
            "id",
            {"type": "string", "minLength": 1, "description": "The message's id."},
            ID,
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
        "since": _parameter(
            "query",
            "since",
            {
                "type": "string",
                "pattern": r"^[0-9]{1,12}(\.[0-9]{1,9})?$",
                "description": "Only what is newer, in seconds since 1970.",
            },
            "1795600000",
        ),
        "wait": _parameter(
            "query",
            "wait",
            {
                "type": "number",
                "minimum": 0,
                "exclusiveMaximum": 1_000_000_000,
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
                "exclusiveMaximum": 1_000_000_000,
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
            ID,
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
        "X-Unread-Count": {
            "description": f"How many are unread; `>{COUNT_MAX}` where more are.",
            "schema": {"type": "string", "pattern": f"^([0-9]{{1,5}}|>{COUNT_MAX})$"},
            **always,
        },
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
