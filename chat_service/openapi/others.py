"""The operations on leases, the operations for operators, and the web pages."""

from chat_service.api.problems import (
    cross_origin,
    lease_over,
    not_found,
    not_json,
    unauthorized,
)
from chat_service.api.request_policy import OTHER_ORIGIN_DETAIL
from chat_service.openapi.parts import (
    Operation,
    answer,
    json_body,
    limited,
    link,
    not_served,
    refused,
)
from chat_service.openapi.schemas import DELIVERED, ID, LEASE, Object, schema_of

_LEASE = "$response.body#/lease"
_NEXT: Object = {
    "acknowledge": link(
        "acknowledge-lease",
        "Acknowledge the messages once they are processed.",
        {"lease": _LEASE},
        username="$request.path.username",
    ),
    "extend": link(
        "extend-lease",
        "Extend the lease if you need more time.",
        {"lease": _LEASE, "ttl": 60},
        username="$request.path.username",
    ),
    "release": link(
        "release-lease",
        "Release the messages to other readers.",
        {"lease": _LEASE},
        username="$request.path.username",
    ),
}


def _on_lease(
    operation_id: str, description: str, schema: str, done: Object, effect: str
) -> Operation:
    examples: Object = {"all": {"lease": LEASE}, "some": {"lease": LEASE, "ids": [ID]}}
    if schema == "LeaseRelease":
        examples["not begun"] = {"lease": LEASE, "delivered": False}
        examples["in a minute"] = {"lease": LEASE, "ids": [ID], "delay": 60}
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


def _sessions() -> dict[str, Operation]:
    who: Object = {
        "access": "tokens",
        "subject": "worker",
        "send": ["*"],
        "read": ["jobs-*", "worker"],
        "ops": False,
        "until": "2027-01-01T00:00:00Z",
        "kept_until": None,
    }
    other_page = cross_origin(OTHER_ORIGIN_DETAIL)
    nothing = "leave all messages as they are"
    return {
        "GET /session": Operation(
            "show-session",
            "Session",
            "Who sends this request, by its token or its cookie, and the patterns of names that "
            "they may send to and read. A pattern is a whole name, or the beginning of one and "
            "`*`. The subject is `null` without a token.",
            {200: answer("The identity and its rights.", schema_of("Session"), who)},
            (unauthorized(), limited("changed"), other_page),
        ),
        "POST /session": Operation(
            "begin-session",
            "Session",
            "Turns the token in `Authorization` into a cookie, so that the pages of this service "
            "can open streams and need not keep the token. The cookie ends with the token or with "
            "the browser. With `keep`, the browser keeps it for up to 30 days.",
            {
                200: answer(
                    "The identity and its rights.", schema_of("Session"), who, ("Set-Cookie",)
                )
            },
            (
                refused("keep", "must be true or false"),
                not_json("the body must be an object"),
                unauthorized(),
                limited("changed"),
                other_page,
            ),
            body={
                **json_body("NewSession", kept={"keep": True}),
                "required": False,
            },
            effect=nothing,
        ),
        "GET /.well-known/oauth-protected-resource": Operation(
            "protected-resource",
            "Session",
            "The issuer whose JSON Web Tokens the service takes, as RFC 9728 defines it. Without "
            "JSON Web Tokens, the answer is 404.",
            {
                200: answer(
                    "The issuer.",
                    schema_of("ProtectedResource"),
                    {
                        "resource": "https://chat.example",
                        "authorization_servers": ["https://login.example"],
                        "bearer_methods_supported": ["header"],
                    },
                )
            },
            (not_found(),),
        ),
        "DELETE /session": Operation(
            "end-session",
            "Session",
            "Makes the browser forget the cookie. The token stays valid.",
            {204: answer("The browser has no session.", headers=("Set-Cookie",))},
            (other_page,),
            effect=nothing,
        ),
    }


def page(operation_id: str) -> Operation:
    """Return the operation of a web page."""
    html: Object = {"type": "string"}
    return Operation(
        operation_id,
        "Pages",
        "HTML for a browser, compressed if the browser accepts it.",
        {
            200: answer("The page.", html, headers=("ETag",), media="text/html"),
            304: answer("The client has the current version.", headers=("ETag",)),
        },
        parameters=("if-none-match",),
    )


def operations() -> dict[str, Operation]:
    """Return the operations, by method and path."""
    parts = ("database", "indexes", "workers", "accepting")
    ready = {"status": "ok", **dict.fromkeys(parts, True)}
    text: Object = {"type": "string"}
    return {
        "POST /chat/:username/lease": Operation(
            "lease-messages",
            "Leases",
            "A read that you acknowledge. Until you do, no other reader receives its messages. If "
            "you do not, they become unread again when the lease ends, or move to a dead-letter "
            "inbox if they were leased too often. A lease holds at most about 256 KiB of text and "
            "1000 messages.",
            {
                200: answer(
                    "The leased messages. The lease is `null` if there are none.",
                    schema_of("Leased"),
                    {"lease": LEASE, "ttl": 30.0, "messages": [DELIVERED]},
                    ("X-More", "Preference-Applied"),
                    links=_NEXT,
                )
            },
            (refused("ttl", "must be at least 0.01 seconds"), *not_served("claimed")),
            ("username", "prefer-wait"),
            effect="lease the messages",
            consumes=True,
        ),
        "POST /chat/:username/ack": _on_lease(
            "acknowledge-lease",
            "Marks leased messages as read. You can repeat an acknowledgement. If a message is no "
            "longer leased and was not acknowledged before, it is lost, and the answer is 410: it "
            "lists the acknowledged messages and the lost ones.",
            "LeasedMessages",
            answer(
                "The number of acknowledged messages: all that the request applies to.",
                schema_of("Acknowledgement"),
                {"acknowledged": 1},
            ),
            "mark the messages as read",
        )._replace(consumes=True),
        "POST /chat/:username/release": _on_lease(
            "release-lease",
            "Ends a lease early. Its messages are unread at once, or after a `delay`, but not "
            "beyond their lifetime. With `delivered: false`, this lease does not count as a "
            "delivery of them.",
            "LeaseRelease",
            answer(
                "The number of messages that are unread again, or after the delay.",
                schema_of("Release"),
                {"released": 1},
            ),
            "release the messages",
        ),
        "POST /chat/:username/extend": _on_lease(
            "extend-lease",
            "The lease ends `ttl` seconds from now, but never sooner than before.",
            "LeaseExtension",
            answer("The `ttl` in effect.", schema_of("Extended"), {"ttl": 60.0}),
            "extend the lease",
        ),
        **_sessions(),
        "GET /livez": Operation(
            "livez",
            "Operators",
            "Answers while the process can answer at all. Does not query the database.",
            {200: answer("The process is alive.", schema_of("Liveness"), {"status": "ok"})},
        ),
        "GET /readyz": Operation(
            "readyz",
            "Operators",
            "For load balancers. The service is ready if the database has a primary and every "
            "index, every worker runs, and the service is not stopping.",
            {
                200: answer("The service is ready.", schema_of("Readiness"), ready),
                503: answer(
                    "The service is not ready. The field that is false names the reason.",
                    schema_of("Readiness"),
                    {**ready, "status": "unavailable", "database": False},
                ),
            },
        ),
        "GET /metrics": Operation(
            "metrics",
            "Operators",
            "The Prometheus exposition.",
            {200: answer("The metrics.", text, media="text/plain")},
        ),
        "GET /ops": page("page-dashboard"),
        "GET /ops/runbook": page("page-runbook"),
        "GET /ops/history": Operation(
            "history",
            "Operators",
            "What the dashboard shows: the state of this node, facts about it, and every process's "
            "own counters for the last quarter of an hour. With `range=day`, the node's counters "
            "for the last day instead, one sample every two minutes.",
            {200: answer("The state, the facts and the samples.", schema_of("History"))},
            (refused("since", "must be one number of seconds since 1970"),),
            ("since", "range"),
        ),
        "GET /": page("page-inbox"),
        "GET /docs": page("page-docs"),
        "GET /openapi.json": Operation(
            "openapi",
            "Pages",
            "OpenAPI 3.1, with the limits in effect.",
            {
                200: answer("This document.", schema_of("Document"), headers=("ETag",)),
                304: answer("The client has the current version.", headers=("ETag",)),
            },
            parameters=("if-none-match",),
        ),
        "GET /assets/:file": Operation(
            "page-file",
            "Pages",
            "Style sheets, scripts, images, and the manifest of the web UI as an app.",
            {
                200: {
                    **answer("The file.", headers=("ETag",)),
                    "content": {
                        **{
                            media: {"schema": text}
                            for media in ("text/css", "text/javascript", "image/svg+xml")
                        },
                        # Any value: they are for browsers.
                        **{
                            media: {"schema": {}}
                            for media in ("application/manifest+json", "image/png")
                        },
                    },
                },
                304: answer("The client has the current version.", headers=("ETag",)),
            },
            (not_found(),),
            ("file", "if-none-match"),
        ),
    }
