"""The operations beside the inbox itself: leases, what operators ask, and the pages for people.

A page is one entry here: what its route answers is the same for all of them.
"""

from chat_service.api.problems import lease_over, not_found, not_json
from chat_service.openapi.parts import Operation, answer, json_body, link, not_served, refused
from chat_service.openapi.schemas import LEASE, RECEIVED, Object, schema_of

_LEASE = "$response.body#/lease"
_NEXT: Object = {
    "acknowledge": link(
        "acknowledge-lease",
        "Its messages are done with.",
        {"lease": _LEASE},
        username="$request.path.username",
    ),
    "extend": link(
        "extend-lease",
        "More time is needed.",
        {"lease": _LEASE, "ttl": 60},
        username="$request.path.username",
    ),
    "release": link(
        "release-lease",
        "They are for somebody else.",
        {"lease": _LEASE},
        username="$request.path.username",
    ),
}


def _on_lease(
    operation_id: str, description: str, schema: str, done: Object, effect: str
) -> Operation:
    examples: Object = {"all": {"lease": LEASE}, "some": {"lease": LEASE, "ids": [RECEIVED["id"]]}}
    if schema == "LeaseExtension":
        examples = {"a minute": {"lease": LEASE, "ttl": 60}}
    return Operation(
        operation_id,
        "Leases",
        description,
        {200: done},
        (
            refused("ids", "must be a list of message ids"),
            not_json("the body is empty"),
            lease_over(),
            *not_served("changed"),
        ),
        ("username",),
        json_body(schema, **examples),
        effect=effect,
    )


def page(operation_id: str) -> Operation:
    """A page for people, at a route of its own."""
    html: Object = {"type": "string"}
    return Operation(
        operation_id,
        "Pages",
        "HTML, for a browser. Compressed for who takes it.",
        {
            200: answer("The page.", html, headers=("ETag",), media="text/html"),
            304: answer("It has not changed.", headers=("ETag",)),
        },
        parameters=("if-none-match",),
    )


def operations() -> dict[str, Operation]:
    """What is to be said of each, by method and route."""
    parts = ("database", "indexes", "workers", "accepting")
    ready = {"status": "ok", **dict.fromkeys(parts, True)}
    text: Object = {"type": "string"}
    return {
        "POST /chat/:username/lease": Operation(
            "lease-messages",
            "Leases",
            "A read that has to be acknowledged: until then nobody else is given its messages, and "
            "without an acknowledgement they are unread again when it is over. At most about 256 "
            "KiB of text and 1000 messages.",
            {
                200: answer(
                    "The messages on loan; the lease is `null` where there are none.",
                    schema_of("Lease"),
                    {"lease": LEASE, "ttl": 30.0, "messages": [RECEIVED]},
                    ("X-More", "Preference-Applied"),
                    links=_NEXT,
                )
            },
            (refused("ttl", "must be at least 0.01 seconds"), *not_served("claimed")),
            ("username", "ttl", "limit", "wait", "prefer-wait"),
            effect="take the messages on loan",
            consumes=True,
        ),
        "POST /chat/:username/ack": _on_lease(
            "acknowledge-lease",
            "They are read, and gone. It may be repeated. If any of them is not on loan any more "
            "and was not acknowledged before, the answer is 410: it names those that are "
            "acknowledged and those that are lost.",
            "LeasedMessages",
            answer(
                "How many are read by this lease: all that were asked for.",
                schema_of("Acknowledged"),
                {"acknowledged": 1},
            ),
            "mark them as read",
        )._replace(consumes=True),
        "POST /chat/:username/release": _on_lease(
            "release-lease",
            "They are there for the next read.",
            "LeasedMessages",
            answer("How many are unread again.", schema_of("Released"), {"released": 1}),
            "give them back",
        ),
        "POST /chat/:username/extend": _on_lease(
            "extend-lease",
            "It ends so many seconds from now, or later where it did anyway.",
            "LeaseExtension",
            answer("The seconds that hold.", schema_of("Extended"), {"ttl": 60.0}),
            "hold them longer",
        ),
        "GET /livez": Operation(
            "livez",
            "Operators",
            "Asks nothing of the database.",
            {200: answer("It is alive.", schema_of("Liveness"), {"status": "ok"})},
        ),
        "GET /readyz": Operation(
            "readyz",
            "Operators",
            "For balancers: the database has a primary and every index, every worker runs, and the "
            "service is not stopping.",
            {
                200: answer("All of them are.", schema_of("Readiness"), ready),
                503: answer(
                    "One is not.",
                    schema_of("Readiness"),
                    {**ready, "status": "unavailable", "database": False},
                ),
            },
        ),
        "GET /metrics": Operation(
            "metrics",
            "Operators",
            "For Prometheus.",
            {200: answer("The figures.", text, media="text/plain")},
        ),
        "GET /ops": page("page-dashboard"),
        "GET /ops/history": Operation(
            "history",
            "Operators",
            "The samples that the dashboard draws: every process's own counters for the last "
            "quarter of an hour.",
            {200: answer("The samples.", {"type": "object"})},
            (refused("since", "must be one number of seconds since 1970"),),
            ("since",),
        ),
        "GET /": page("page-inbox"),
        "GET /docs": page("page-docs"),
        "GET /openapi.json": Operation(
            "openapi",
            "Pages",
            "OpenAPI 3.1, with the limits that are in force.",
            {
                200: answer("This document.", {"type": "object"}, headers=("ETag",)),
                304: answer("It has not changed.", headers=("ETag",)),
            },
            parameters=("if-none-match",),
        ),
        "GET /assets/:file": Operation(
            "page-file",
            "Pages",
            "Styles, scripts and pictures.",
            {
                200: {
                    **answer("The file.", headers=("ETag",)),
                    "content": {
                        media: {"schema": text}
                        for media in ("text/css", "text/javascript", "image/svg+xml")
                    },
                },
                304: answer("It has not changed.", headers=("ETag",)),
            },
            (not_found(),),
            ("file", "if-none-match"),
        ),
    }
