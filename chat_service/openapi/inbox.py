"""The operations on an inbox: posting, reading, counting, streams; and what a receipt is for."""

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
    "Gives everything that is neither read nor expired, oldest first, or `[]`, and marks it as "
    "read: it is never given again. An answer that is lost on its way is lost with its messages, "
    "unless the read has an `Idempotency-Key`: then a repeat within a minute gets the same "
    "messages again, at most about 256 KiB of text and 1000 messages. A parameter "
    "that is not known is 400, and nothing is read."
)
_CONSUMED = "mark the messages as read"
_RECEIPT_LINKS: Object = {
    "status": link(
        "message-status",
        "What became of it, for the sender.",
        id="$response.body#/id",
        X_Receipt="$response.header.X-Receipt",
    ),
    "revoke": link(
        "revoke-message",
        "Taking it back while it is unread.",
        id="$response.body#/id",
        X_Receipt="$response.header.X-Receipt",
    ),
    "count": link("count-unread", "How many are unread.", username="$request.body#/username"),
    "read": link("read-inbox", "What its reader is given.", username="$request.body#/username"),
}


def _read(operation_id: str, description: str, field: FieldError) -> Operation:
    return Operation(
        operation_id,
        "Inbox",
        description,
        {
            200: answer(
                "The messages, which are read now. A long inbox comes in chunks.",
                schema_of("Messages"),
                [RECEIVED],
                ("X-More", "Preference-Applied"),
            )
        },
        (refused(*field), _IN_FLIGHT, *not_served("claimed")),
        ("username", "limit", "wait", "prefer-wait", "read-key"),
        effect=_CONSUMED,
        consumes=True,
    )


def operations(terms: Terms) -> dict[str, Operation]:
    """What is to be said of each, by method and route."""
    rules = terms.rules
    limit = FieldError("limit", "must be one integer from 1 to 999999999")
    timeout = FieldError("timeout", f"must be an integer from 1 to {rules.timeout_s}")
    username = FieldError("username", "may have no control characters")
    a_day = f"{terms.receipt_keep_s} seconds"
    bad = refused("username", "is required and must be a string")
    results = [{"id": ID}, {"error": example_of(bad)}]
    return {
        "POST /chat": Operation(
            "post-message",
            "Inbox",
            "A 201 is sent once the message is in the journal of a majority of the database's "
            "members. Other fields are ignored, and so is the `Content-Type`. With an "
            "`Idempotency-Key` the post is one message, however often it is sent; with "
            "`Prefer: receipt` its sender can ask what became of it, and take it back.",
            {
                201: answer(
                    "The message is stored.",
                    schema_of("Posted"),
                    {"id": ID},
                    ("X-Receipt", "Preference-Applied", "Idempotent-Replayed"),
                    links=_RECEIPT_LINKS,
                )
            },
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
            f"Up to {terms.batch_messages} messages in a body of up to {terms.batch_bytes} bytes: "
            "a JSON array, or one object on each line (NDJSON; a single line needs "
            "`Content-Type: application/x-ndjson`). Each is stored or refused by itself: the "
            "answer is 200 once every one is decided, and an `error` is what a single post would "
            "have been answered. With an `Idempotency-Key` each is stored once, by its place.",
            {
                200: answer(
                    "What became of each, in the order of the request.",
                    schema_of("BatchResults"),
                    {"results": results},
                    ("Preference-Applied",),
                )
            },
            (refused("body", f"may have at most {terms.batch_messages} messages"), not_a_batch()),
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
                    },
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
            f"{_READ} A GET that changes something is not what HTTP means by one: a proxy or "
            "client may repeat it. Where you can, use `POST /chat/{username}/read`.",
            limit,
        ),
        "POST /chat/:username/read": _read(
            "read-inbox-by-post", f"{_READ} A body is ignored.", limit
        ),
        "HEAD /chat/:username": Operation(
            "count-unread",
            "Inbox",
            "Changes nothing.",
            {200: answer("The number of unread messages.", headers=("X-Unread-Count",))},
            (refused(*username), *not_served("claimed")),
            ("username",),
        ),
        "GET /chat/:username/stream": Operation(
            "stream-inbox",
            "Inbox",
            "What is unread, then what comes, as long as the connection is open. Each delivery is "
            "a lease of 30 seconds. A message is read once its client connects again with "
            "`Last-Event-ID`, has stayed connected for 10 seconds, or acknowledges it with the "
            "lease of the `open` event before it; else it is unread again. Asked with an upgrade, "
            "the same path is a WebSocket: the server sends "
            '`{"type": "message", "id", "text"}`, the client answers `{"type": "ack", "id"}`, '
            "which acknowledges all that this connection was given up to there. A page of another "
            "site is refused unless its origin is allowed.",
            {
                101: answer("The connection is a WebSocket now."),
                200: answer(
                    "Events: `open` with a lease, and a `message` for each message, with its id.",
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
            effect="take the messages that come",
            consumes=True,
        ),
        "GET /messages/:id/status": Operation(
            "message-status",
            "Receipts",
            "Whether the message is pending, leased, read, expired or revoked. It can be asked for "
            f"{a_day} after its end.",
            {
                200: answer(
                    "What became of it.",
                    schema_of("Fate"),
                    {"id": ID, "status": "pending", "at": None},
                )
            },
            # It only looks, so that its outcome is never unknown.
            (no_receipt(), no_such_message(), *not_served("changed")[:-1]),
            ("id", "receipt"),
        ),
        "DELETE /messages/:id": Operation(
            "revoke-message",
            "Receipts",
            "Takes back a message that is unread; a repeat is answered the same. A message that is "
            "read, on loan or expired cannot be taken back.",
            {204: answer("It is revoked, and nobody will read it.")},
            (no_receipt(), no_such_message(), too_late("read"), *not_served("changed")),
            ("id", "receipt"),
            effect="take the message back",
        ),
    }
