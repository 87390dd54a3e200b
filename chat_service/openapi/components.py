"""The named parameters and response headers that operations refer to.

Used by `chat_service.openapi`.
"""

from chat_service.access.credentials import LOCAL_COOKIE, SECURE_COOKIE
from chat_service.api.request_options import READ_KEY_MIN, TTL_MIN_S
from chat_service.api.validation import MessageLimits
from chat_service.openapi.schemas import ID, Object, Terms, username_of
from workers.commands import COUNT_MAX

KEY = "4f0c3a9e-9a53-4f7e-8f5b-0b4c2f1a77d1"
RECEIPT = "ws5yGDMRspPrnW4OOFGpEqlMMuEQHPW_"


def parameters(terms: Terms) -> Object:
    """Return all named parameters."""
    rules, waits = terms.rules, terms.waits
    return {
        "username": _parameter("path", "username", username_of(rules), "bob"),
        "id": _parameter(
            "path",
            "id",
            {"type": "string", "minLength": 1, "description": "The id of the message."},
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
                "description": "Return at most this many messages, the oldest first.",
            },
            10,
        ),
        "timeout": _parameter("query", "timeout", _timeout(rules, "X-Timeout"), 3600),
        "delay": _parameter("query", "delay", _delay(rules, "X-Delay"), 600),
        "x-delay": _parameter("header", "X-Delay", _delay(rules, "?delay="), 600),
        "x-timeout": _parameter("header", "X-Timeout", _timeout(rules, "?timeout="), 3600),
        "since": _parameter(
            "query",
            "since",
            {
                "type": "string",
                "pattern": r"^[0-9]{1,12}(\.[0-9]{1,9})?$",
                "description": "Return only newer samples. In seconds since 1970.",
            },
            "1795600000",
        ),
        "range": _parameter(
            "query",
            "range",
            {"type": "string", "pattern": "^day$", "description": "Return the last day."},
            "day",
        ),
        "wait": _parameter(
            "query",
            "wait",
            {
                "type": "number",
                "minimum": 0,
                "exclusiveMaximum": 1_000_000_000,
                "description": "Wait up to this many seconds for the first message. Decimals are "
                f"allowed. A longer wait is cut to {waits.wait_max_s:g}.",
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
                "description": "The duration of the lease in seconds, by default "
                f"{min(30, waits.lease_max_s):g}. Decimals are allowed. A longer duration is cut "
                f"to {waits.lease_max_s:g}.",
            },
            30,
        ),
        "prefer-wait": _parameter(
            "header",
            "Prefer",
            {
                "type": "string",
                "description": "`wait=S` does the same as `?wait=S`. If both are given, `?wait=` "
                "wins. Unknown preferences are ignored.",
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
                "description": "A post with a key stores one message, however often you send it. "
                "Printable ASCII, bare or as a quoted string, such as a UUID. A key belongs to an "
                "inbox: with another username, it stores another message.",
            },
            KEY,
        ),
        "read-key": _parameter(
            "header",
            "Idempotency-Key",
            {
                **_key(READ_KEY_MIN),
                "description": "A repeat with the same key within a minute gets the same messages "
                f"again. Printable ASCII, at least {READ_KEY_MIN} characters, such as a UUID.",
            },
            KEY,
        ),
        "receipt": _parameter(
            "header",
            "X-Receipt",
            {"type": "string", "description": "The receipt, from the answer to the post."},
            RECEIPT,
            is_required=True,
        ),
        "last-event-id": _parameter(
            "header",
            "Last-Event-ID",
            {
                "type": "string",
                "description": "The id of the last message that the client received. Acknowledges "
                "it and all messages that the same stream delivered before it. An invalid id is "
                "ignored.",
            },
            ID,
        ),
        "if-none-match": _parameter(
            "header",
            "If-None-Match",
            {"type": "string", "description": "The `ETag` of the version that the client has."},
            'W/"0123456789abcdef"',
        ),
    }


def response_headers() -> Object:
    """Return all named response headers."""
    true: Object = {"const": "true"}
    count: Object = {"type": "integer", "minimum": 0}
    text: Object = {"type": "string", "minLength": 1}
    always = {"required": True}
    return {
        "X-Request-ID": {
            "description": "The id of the request, as in the log. A client can send its own: 1 to "
            "64 letters, digits or `._:/+=@-`.",
            "schema": {"type": "string", "pattern": "^[A-Za-z0-9._:/+=@-]{1,64}$"},
            **always,
        },
        "Retry-After": {
            "description": "Try again after this many seconds.",
            "schema": count,
            **always,
        },
        "RateLimit-Policy": {
            "description": "The limits of each client: a quota (`q`) in a window of seconds (`w`).",
            "schema": text,
        },
        "RateLimit": {
            "description": "The limit that was exceeded, what remains of it (`r`), and the seconds "
            "until a repeat is accepted (`t`).",
            "schema": text,
        },
        "Allow": {"description": "The methods of this path.", "schema": text, **always},
        "X-Unread-Count": {
            "description": f"The number of unread messages, or `>{COUNT_MAX}`.",
            "schema": {"type": "string", "pattern": f"^([0-9]{{1,5}}|>{COUNT_MAX})$"},
            **always,
        },
        "X-Dead-Letter-Inbox": {
            "description": "The inbox of messages that were leased too often, percent-encoded as a "
            "segment of a path.",
            "schema": text,
            **always,
        },
        "X-More": {"description": "Present if more messages are unread.", "schema": true},
        "X-Receipt": {"description": "The receipt, if the request asked for one.", "schema": text},
        "Idempotent-Replayed": {
            "description": "Present if the request repeats an earlier one.",
            "schema": true,
        },
        "Preference-Applied": {"description": "The preferences that were applied.", "schema": text},
        "Sec-WebSocket-Version": {
            "description": "The supported version.",
            "schema": {"const": "13"},
        },
        "WWW-Authenticate": {
            "description": "The scheme to authenticate with, and what is wrong with the token.",
            "schema": {"type": "string", "pattern": "^Bearer"},
        },
        "Set-Cookie": {
            "description": "The session's cookie, which no script can read.",
            "schema": text,
        },
        "ETag": {"description": "The version, for `If-None-Match`.", "schema": text, **always},
    }


def security_schemes() -> Object:
    """Return the ways to send a token."""
    return {
        "bearer": {
            "type": "http",
            "scheme": "bearer",
            "description": "A token of the access file, or a JSON Web Token.",
        },
        "session": {
            "type": "apiKey",
            "in": "cookie",
            "name": SECURE_COOKIE,
            "description": "The cookie of a browser's session. The service accepts it only from "
            "its own pages. A browser on the same machine that uses plain HTTP has a cookie named "
            f"`{LOCAL_COOKIE}`.",
        },
    }


def _timeout(rules: MessageLimits, twin: str) -> Object:
    return {
        "type": "integer",
        "minimum": 1,
        "maximum": rules.timeout_s,
        "description": f"The lifetime in seconds, by default {rules.default_timeout_s}. `{twin}` "
        "does the same; if both are given, they must be equal.",
    }


def _delay(rules: MessageLimits, twin: str) -> Object:
    return {
        "type": "number",
        "minimum": 0,
        "maximum": rules.timeout_s,
        "description": "The message is readable in this many seconds, and its lifetime begins "
        f"then. Decimals are allowed. `{twin}` does the same; if both are given, they must be "
        "equal.",
    }


def _parameter(
    place: str, name: str, schema: Object, example: object, *, is_required: bool = False
) -> Object:
    # The description belongs to the parameter, not to its schema.
    rules = {key: value for key, value in schema.items() if key != "description"}
    found = {"in": place, "name": name, "required": is_required or place == "path"}
    said = {"description": schema["description"]} if "description" in schema else {}
    return {**found, **said, "schema": rules, "example": example}


def _key(length_min: int) -> Object:
    rest = f"([ -~]{{{max(length_min - 2, 0)},253}}[!-~])"
    bare = f"[!#-~]{rest}?" if length_min == 1 else f"[!#-~]{rest}"
    quoted = rf'"([ !#-\[\]-~]|\\["\\]){{{length_min},255}}"'
    return {"type": "string", "pattern": f"^({bare}|{quoted})$"}
