"""The operations on inboxes and receipts."""

from chat_service.api.plain_posts import NO_FORM
from chat_service.api.problems import (
    FieldError,
    no_handshake,
    no_receipt,
    no_such_message,
    not_json,
    of_service_error,
    too_late,
)
from chat_service.handlers.batch import not_a_batch
from chat_service.openapi.parts import (
    Operation,
    answer,
    example_of,
    json_body,
    link,
    not_served,
    refused,
)
from chat_service.openapi.schemas import ID, MESSAGE, RECEIVED, Object, Terms, schema_of
from workers.errors import KeyInFlight, KeyReused

_IN_FLIGHT = of_service_error(KeyInFlight(), "claimed")
_READ = (
    "Claims all unread messages and returns them, oldest first, or `[]`. Returned messages count "
    "as read and are never returned again. If an answer is lost, its messages are lost, unless the "
    "read has an `Idempotency-Key`: a repeat with the same key within a minute gets the same "
    "messages. A batch for a key holds at most about 256 KiB of text and 1000 messages. An unknown "
    "query parameter is 400 and reads nothing."
)
_CONSUMED = "mark the messages as read"


def _links(username: str) -> Object:
    """Return the links from the answer to a post. `username` says where the request has it."""
    receipt = {"id": "$response.body#/id", "X_Receipt": "$response.header.X-Receipt"}
    return {
        "status": link("message-status", "Query the status of the message.", None, **receipt),
        "revoke": link("revoke-message", "Revoke the message while it is unread.", None, **receipt),
        "count": link("count-unread", "Count unread messages.", username=username),
        "read": link("read-inbox", "Read the inbox.", username=username),
    }


def _posted(username: str) -> Object:
    return answer(
        "The message is stored.",
        schema_of("Posted"),
        {"id": ID},
        ("X-Receipt", "Preference-Applied", "Idempotent-Replayed"),
        links=_links(username),
    )


def _read(operation_id: str, description: str, field: FieldError) -> Operation:
    return Operation(
        operation_id,
        "Inbox",
        description,
        {
            200: answer(
                "The messages, which count as read. A long inbox is sent in chunks.",
                schema_of("Messages"),
                [RECEIVED],
                ("X-More", "Preference-Applied"),
            )
        },
        (refused(*field), _IN_FLIGHT, *not_served("claimed")),
        ("username", "prefer-wait", "read-key"),
        effect=_CONSUMED,
        consumes=True,
    )


def operations(terms: Terms) -> dict[str, Operation]:
    """Return the operations, by method and path."""
    rules = terms.rules
    limit = FieldError("limit", "must be one integer from 1 to 999999999")
    timeout = FieldError("timeout", f"must be an integer from 1 to {rules.timeout_s}")
    username = FieldError("username", "must not contain control characters")
    a_day = f"{terms.receipt_keep_s} seconds"
    bad = refused("username", "is required and must be a string")
    results = [{"id": ID}, {"error": example_of(bad)}]
    return {
        "POST /chat": Operation(
            "post-message",
            "Inbox",
            "The answer is 201 once a majority of the replica set has journaled the message. Other "
            "fields are ignored, and so is the `Content-Type`. A message with a `delay` is "
            "scheduled: nobody can read it before its time. A post with an `Idempotency-Key` "
            "stores one message, however often you send it. With `Prefer: receipt`, the sender can "
            "query the status of the message and revoke it.",
            {201: _posted("$request.body#/username")},
            (
                refused(*timeout),
                not_json("the body is empty"),
                _IN_FLIGHT,
                of_service_error(KeyReused(), "stored"),
                *not_served("stored"),
            ),
            ("post-key", "prefer-receipt"),
            json_body("NewMessage", message=MESSAGE, shortest={"text": "", "username": "bob"}),
            effect="store the message",
        ),
        "POST /chat/batch": Operation(
            "post-batch",
            "Inbox",
            f"Stores up to {terms.batch_messages} messages from one body of up to "
            f"{terms.batch_bytes} bytes: a JSON array, or one object per line (NDJSON; a single "
            "line needs `Content-Type: application/x-ndjson`). Each message is stored or refused "
            "on its own. The answer is 200 once the outcome of every message is decided. An "
            "`error` is the problem that a single post would have got. With an `Idempotency-Key`, "
            "each message is stored once, identified by its inbox and its position in the batch.",
            {
                200: answer(
                    "A result for each message, in the order of the request.",
                    schema_of("BatchResults"),
                    {"results": results},
                    ("Preference-Applied",),
                )
            },
            (refused("body", f"must have at most {terms.batch_messages} messages"), not_a_batch()),
            ("post-key", "prefer-receipt"),
            {
                "required": True,
                "content": {
                    "application/json": {
                        "schema": {
                            "type": "array",
                            "maxItems": terms.batch_messages,
                            "items": schema_of("NewMessage"),
                        },
                        "example": [MESSAGE, {"text": "at noon?", "username": "bob"}],
                    }
                },
                # Apart, because generators of clients warn of types that they cannot make.
                "x-other-content": {
                    "application/x-ndjson": {
                        "schema": {"type": "string", "pattern": r"^(\{[^\n]*\}\n)+$"},
                        "example": '{"text": "lunch?", "username": "bob"}\n',
                    },
                },
            },
            effect="store the messages",
        ),
        "GET /chat/:username": _read(
            "read-inbox",
            f"{_READ} HTTP defines GET as safe, and this GET is not: a proxy or a client may "
            "repeat it. If you can, use `POST /chat/{username}/read`.",
            limit,
        ),
        "POST /chat/:username/read": _read(
            "read-inbox-by-post", f"{_READ} The body must be empty or `{{}}`.", limit
        ),
        "POST /chat/:username": Operation(
            "post-text",
            "Inbox",
            "The body is the text, byte for byte, with any `Content-Type` but JSON's, "
            "`multipart/form-data`, and those with a charset other than UTF-8. With the "
            "`Content-Type` of JSON, the body is an object without `username`. Answers, keys and "
            "receipts are those of `POST /chat`. An unknown query parameter is 400 and stores "
            "nothing.",
            {201: _posted("$request.path.username")},
            (
                refused(*timeout),
                refused("text", "is not UTF-8"),
                refused("Content-Type", NO_FORM),
                not_json("the body is empty"),
                _IN_FLIGHT,
                of_service_error(KeyReused(), "stored"),
                *not_served("stored"),
            ),
            ("username", "x-timeout", "x-delay", "post-key", "prefer-receipt"),
            {
                "required": True,
                "content": {
                    "application/json": {
                        "schema": schema_of("NewMessageToInbox"),
                        "example": {"text": "Backup ok", "timeout": 3600},
                    },
                    "application/octet-stream": {
                        "schema": {
                            "type": "string",
                            "format": "binary",
                            "description": "The text, in UTF-8.",
                        },
                        "example": "Backup ok",
                    },
                },
                # Apart, because generators of clients warn of types that they cannot make.
                "x-other-content": {
                    "text/plain": {
                        "schema": {
                            "type": "string",
                            "maxLength": rules.text_bytes,
                            "description": "The text, in UTF-8.",
                        },
                        "example": "Backup ok",
                    },
                },
            },
            effect="store the message",
        ),
        "HEAD /chat/:username": Operation(
            "count-unread",
            "Inbox",
            "Consumes nothing.",
            {
                200: answer(
                    "The number of unread messages, and the dead-letter inbox.",
                    headers=("X-Unread-Count", "X-Dead-Letter-Inbox"),
                )
            },
            (refused(*username), *not_served("claimed")),
            ("username",),
        ),
        "GET /chat/:username/stream": Operation(
            "stream-inbox",
            "Inbox",
            "Delivers unread messages, then new ones, while the connection is open. Each delivery "
            "is a lease of 30 seconds. A message counts as read once its client reconnects with "
            "`Last-Event-ID`, has stayed connected for 10 seconds, or acknowledges it with the "
            "lease of the preceding `open` event. Otherwise it becomes unread again. With an "
            "`Upgrade`, the same path is a WebSocket: the server sends "
            '`{"type": "message", "id", "text", "deliveries"}`, and for a dead letter `dead`, as a '
            'lease has it. The client answers `{"type": "ack", "id"}`, '
            "which acknowledges this message and all that this connection delivered before it. "
            "Pages of another origin are refused unless their origin is allowed.",
            {
                101: answer("The connection is now a WebSocket."),
                200: answer(
                    "Events: `open` with a lease, and a `message` with the id for each message.",
                    {},
                    'retry: 1000\n\nevent: open\ndata: {"lease":"caab5cf6cfe8fc86969481d83c8d318d"}'
                    f'\n\nid: {ID}\nevent: message\ndata: {{"text":"lunch?","id":"{ID}"}}\n\n',
                    media="text/event-stream",
                ),
            },
            (
                refused(*username),
                no_handshake("this is not a WebSocket handshake"),
                *not_served("claimed"),
            ),
            ("username", "last-event-id"),
            effect="take all messages while it is open",
            consumes=True,
        ),
        "GET /messages/:id/status": Operation(
            "message-status",
            "Receipts",
            "The status is pending, leased, read, expired, revoked, or dead if the message moved "
            "to a dead-letter inbox. The service keeps it for "
            f"{a_day} after the message has ended.",
            {
                200: answer(
                    "The status of the message.",
                    schema_of("Fate"),
                    {"id": ID, "status": "pending", "at": None},
                )
            },
            # A query changes nothing, so its outcome is never unknown.
            (no_receipt(), no_such_message(), *not_served("changed")[:-1]),
            ("id", "receipt"),
        ),
        "DELETE /messages/:id": Operation(
            "revoke-message",
            "Receipts",
            "Revokes an unread message. A repeat gets the same answer. A message that is read, "
            "leased, expired or dead cannot be revoked.",
            {204: answer("The message is revoked. Nobody will read it.")},
            (no_receipt(), no_such_message(), too_late("read"), *not_served("changed")),
            ("id", "receipt"),
            effect="revoke the message",
        ),
    }
