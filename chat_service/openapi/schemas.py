"""The schemas of bodies: msgspec's schemas of the structs that decode them, with the rules.

Used by `chat_service.openapi`. Only fields of these structs can be documented.
"""

from collections.abc import Collection
from typing import Any, NamedTuple, TypeAlias, get_args

import msgspec

from chat_service.api.request_options import TTL_MIN_S, WaitLimits
from chat_service.api.validation import IDS_MAX, LeaseBody, MessageBody, MessageLimits, SessionBody
from chat_service.handlers.health import Readiness
from chat_service.handlers.sessions import KEPT_MAX_S
from chat_service.metrics.conditions import DatabaseKind, DatabaseState, Severity
from workers.commands import Delivered, Message, Origin, Status

#: An object in the document.
Object: TypeAlias = dict[str, Any]

ID, LEASE = "01a20bdacd390000b765d1a0c4bde3d1", "cddd139d4bd3a8bddd89fd598357ed28"
MESSAGE: Object = {"text": "lunch?", "username": "bob", "timeout": 3600}
RECEIVED: Object = {"text": "lunch?", "id": ID}
DELIVERED: Object = {**RECEIVED, "deliveries": 1}

#: Control characters would not survive every client, proxy and log.
_NO_CONTROLS = r"^[^\u0000-\u001f\u007f-\u009f]*$"
#: The field that names messages of a lease.
_SOME_IDS: Object = {
    "type": ["array", "null"],
    "items": {"type": "string"},
    "maxItems": IDS_MAX,
    "description": "Some messages of the lease. Without it, all are meant.",
}
_IS_LEASE = {
    "pattern": "^[0-9a-f]{1,64}$",
    "description": "The lease, from the answer that granted it.",
}


class Terms(NamedTuple):
    """The limits in effect: seconds, bytes, and numbers of messages."""

    rules: MessageLimits
    waits: WaitLimits
    body_bytes: int
    batch_messages: int
    batch_bytes: int
    receipt_keep_s: int
    access: str


def reference(kind: str, name: str) -> Object:
    """Return a reference to a component of the document."""
    return {"$ref": f"#/components/{kind}/{name}"}


def schema_of(name: str) -> Object:
    """Return a reference to a schema."""
    return reference("schemas", name)


def username_of(rules: MessageLimits) -> Object:
    """Return the schema of a username in a body or in a path."""
    return {
        "type": "string",
        "minLength": 1,
        "maxLength": rules.username_chars,
        "pattern": _NO_CONTROLS,
        "not": {"enum": [".", ".."]},
        "description": "The inbox. Case-sensitive, neither `.` nor `..`, no control characters.",
    }


def schemas(terms: Terms) -> Object:
    """Return all named schemas."""
    rules, waits = terms.rules, terms.waits
    identity: Object = {"type": "string", "pattern": "^[0-9a-f]{32}$"}
    text: Object = {
        "type": "string",
        "maxLength": rules.text_bytes,
        "description": f"Any content, up to {rules.text_bytes} bytes of UTF-8.",
    }
    timeout: Object = {
        "type": ["integer", "null"],
        "minimum": 1,
        "maximum": rules.timeout_s,
        "description": f"The lifetime in seconds, by default {rules.default_timeout_s}. "
        "`null` counts as absent.",
    }
    delay: Object = {
        "type": ["number", "null"],
        "minimum": 0,
        "maximum": rules.timeout_s,
        "description": "The message is readable in this many seconds, and its lifetime begins "
        "then. Decimals are allowed. `null` counts as absent.",
    }
    lease: Object = {"type": ["string", "null"], "description": "`null` if there are no messages."}
    held_s: Object = {"type": "number", "description": "The duration in effect, in seconds."}
    counted: Object = {"type": "integer", "minimum": 0}
    return {
        "NewMessage": _body(
            MessageBody,
            ("text", "username"),
            text=text,
            username=username_of(rules),
            timeout=timeout,
            delay=delay,
        ),
        "NewMessageToInbox": _body(MessageBody, ("text",), text=text, timeout=timeout, delay=delay),
        "Message": _body(
            Message,
            ("text", "id"),
            text={"description": "The text, byte for byte as it was posted."},
            id={
                **identity,
                "description": "Ids sort by the time from which messages are readable.",
            },
        ),
        "Messages": {"type": "array", "items": schema_of("Message")},
        "Delivered": {
            **_body(
                Delivered,
                ("text", "id", "deliveries"),
                text={},
                id=identity,
                deliveries={
                    "type": "integer",
                    "minimum": 1,
                    "description": "How often the message was leased, including this lease.",
                },
                dead={**schema_of("Origin"), "description": "The origin of a dead letter."},
            ),
            "description": "A message as the holder of its lease receives it.",
        },
        "Origin": {
            **_body(
                Origin,
                ("username", "id", "deliveries"),
                username={"description": "The inbox to which it was posted."},
                id={**identity, "description": "Its id there."},
                deliveries={"description": "How often it was leased there."},
            ),
            "description": "Where a dead letter comes from.",
        },
        "Posted": _answer(id=identity),
        "BatchResults": _answer(results={"type": "array", "items": schema_of("BatchResult")}),
        "BatchResult": {"oneOf": [schema_of("BatchPosted"), schema_of("BatchRefused")]},
        "BatchPosted": _answer(("id",), id=identity, receipt={"type": "string"}),
        "BatchRefused": _answer(error=schema_of("Problem")),
        # Not named like one of its fields, which some generators mix up.
        "Leased": _answer(
            lease=lease, ttl=held_s, messages={"type": "array", "items": schema_of("Delivered")}
        ),
        "LeasedMessages": _body(LeaseBody, ("lease",), lease=_IS_LEASE, ids=_SOME_IDS),
        "LeaseRelease": _body(
            LeaseBody,
            ("lease",),
            lease=_IS_LEASE,
            ids=_SOME_IDS,
            delivered={
                "type": ["boolean", "null"],
                "description": "Whether the reader began with the messages; true if it is absent. "
                "If it is false, the lease does not count in their `deliveries`.",
            },
            delay={
                "type": ["number", "null"],
                "minimum": 0,
                "maximum": rules.timeout_s,
                "description": "The messages are unread in this many seconds, and nobody holds "
                "them until then. Decimals are allowed. `null` counts as absent.",
            },
        ),
        "LeaseExtension": _body(
            LeaseBody,
            ("lease", "ttl"),
            lease=_IS_LEASE,
            ttl={
                "type": "number",
                "minimum": TTL_MIN_S,
                "description": f"Seconds from now. A longer time is cut to {waits.lease_max_s:g}.",
            },
        ),
        "Acknowledgement": _answer(acknowledged=counted),
        "Release": _answer(released=counted),
        "Extended": _answer(ttl=held_s),
        "Fate": _answer(
            id=identity,
            status=schema_of("Status"),
            at={
                "type": ["string", "null"],
                "format": "date-time",
                "description": "The time of that status: its due time if it is scheduled, `null` "
                "if it is pending or leased.",
            },
        ),
        "Status": {
            "type": "string",
            "enum": list(get_args(Status)),
            "description": "The status of the message.",
        },
        "Session": _answer(
            access=schema_of("Access"),
            subject={"type": ["string", "null"]},
            send={"type": "array", "items": {"type": "string"}},
            read={"type": "array", "items": {"type": "string"}},
            ops={"type": "boolean"},
            until={
                "type": ["string", "null"],
                "format": "date-time",
                "description": "When the token expires; `null` if it does not.",
            },
            kept_until={
                "type": ["string", "null"],
                "format": "date-time",
                "description": "When the browser forgets the cookie; `null` if it does when it is "
                "closed.",
            },
        ),
        "NewSession": _body(
            SessionBody,
            (),
            keep={
                "type": ["boolean", "null"],
                "description": "Whether the browser keeps the cookie after it was closed, for at "
                f"most {KEPT_MAX_S // 86_400} days.",
            },
        ),
        "Access": {"type": "string", "enum": ["off", "tokens", "jwt", "both"]},
        "ProtectedResource": _answer(
            resource={"type": "string"},
            authorization_servers={"type": "array", "items": {"type": "string"}},
            bearer_methods_supported={"type": "array", "items": {"type": "string"}},
        ),
        "Liveness": _answer(status={"const": "ok"}),
        "Readiness": _answer(
            status=schema_of("ReadinessStatus"),
            **{part: {"type": "boolean"} for part in Readiness._fields},
        ),
        "ReadinessStatus": {"type": "string", "enum": ["ok", "unavailable"]},
        **_history(),
        "Document": {
            "type": "object",
            "additionalProperties": True,
            "description": "A document of OpenAPI 3.1.",
        },
        "Problem": _problem(),
        "FieldError": _answer(field={"type": "string"}, detail={"type": "string"}),
        # Two schemas, because an enumeration of two types is more than generators of clients take.
        "Effect": {
            "oneOf": [{"type": "boolean", "const": False}, schema_of("Unknown")],
            "description": "Whether the request had this effect: `false`, or `unknown`.",
        },
        "Unknown": {"type": "string", "enum": ["unknown"]},
    }


def _history() -> Object:
    """Return the schemas of what the dashboard shows."""
    number = {"type": "number"}
    text, unknown_text = {"type": "string"}, {"type": ["string", "null"]}
    unknown_size = {"type": ["integer", "null"]}
    severity = schema_of("Severity")
    return {
        "History": _answer(
            now={**number, "description": "The time of the answer, in seconds since 1970."},
            every={**number, "description": "The interval of the samples, in seconds."},
            span={**number, "description": "The time that is kept, in seconds."},
            restarts={"type": "integer", "description": "Processes that died and were replaced."},
            mongod_restarts={
                "type": "integer",
                "description": "How often the embedded mongod ended and was restarted.",
            },
            leader={**text, "description": "The node that leads; empty while it is unknown."},
            state=schema_of("NodeState"),
            thresholds=schema_of("Thresholds"),
            node=schema_of("Node"),
            series={
                "type": "array",
                "items": text,
                "description": "The names of the values in each sample, after its time.",
            },
            processes={
                "type": "array",
                "items": schema_of("ProcessSamples"),
                "description": "The live processes; for a day, the runs of the node.",
            },
        ),
        "Severity": {"type": "string", "enum": list(get_args(Severity))},
        "NodeState": _answer(
            severity=severity,
            says=text,
            conditions={"type": "array", "items": schema_of("Condition")},
        ),
        "Condition": _answer(
            name={**text, "description": "A name that never changes."},
            severity=severity,
            says=text,
            next_step=text,
            runbook={**text, "description": "The anchor of the entry in `/ops/runbook`."},
        ),
        "Thresholds": {
            "type": "object",
            "additionalProperties": schema_of("Threshold"),
            "description": "The limits by which the state is judged, by name.",
        },
        "Threshold": _answer(value=number, unit=text, runbook=text),
        "Node": _answer(
            name=unknown_text,
            version=text,
            python=text,
            started=number,
            uptime_s=number,
            processes={"type": "integer"},
            leader=unknown_text,
            database=schema_of("NodeDatabase"),
            disk={"oneOf": [schema_of("NodeDisk"), {"type": "null"}]},
            oldest_sample={"type": ["number", "null"]},
        ),
        "NodeDatabase": _answer(
            state=schema_of("DatabaseState"),
            kind=schema_of("DatabaseKind"),
            version=unknown_text,
            members=unknown_size,
        ),
        "DatabaseState": {"type": "string", "enum": list(get_args(DatabaseState))},
        "DatabaseKind": {"type": "string", "enum": list(get_args(DatabaseKind))},
        "NodeDisk": _answer(
            free_bytes=unknown_size,
            total_bytes=unknown_size,
            reusable_bytes={"type": "integer"},
            used_bytes={"type": "integer"},
            free_min_bytes=unknown_size,
            used_max_bytes=unknown_size,
        ),
        "ProcessSamples": _answer(
            pid={"type": "integer"},
            started={**number, "description": "In seconds since 1970. Counters began at 0 then."},
            samples={
                "type": "array",
                "items": {"type": "array", "items": {"type": ["number", "null"]}},
                "description": "The time in seconds since 1970 and the values, oldest first.",
            },
        ),
    }


def _problem() -> Object:
    document = _answer(
        ("type", "title", "status", "detail", "instance"),
        type={"type": "string", "pattern": "^urn:chat:problem:[a-z-]+$"},
        title={"type": "string"},
        status={"type": "integer"},
        detail={"type": "string"},
        instance={"type": "string", "description": "The id of the request, as in `X-Request-ID`."},
        errors={
            "type": "array",
            "items": schema_of("FieldError"),
            "description": "The fields that break a rule, each with the rule.",
        },
        stored=schema_of("Effect"),
        claimed=schema_of("Effect"),
        changed=schema_of("Effect"),
        id={"type": "string", "description": "The id of the message, in case it was stored."},
        acknowledged={
            "type": "array",
            "items": {"type": "string"},
            "description": "The ids that are acknowledged.",
        },
        lost={
            "type": "array",
            "items": {"type": "string"},
            "description": "The ids that could not be acknowledged.",
        },
        fate=schema_of("Status"),
    )
    return {**document, "description": "An error in the format of RFC 9457."}


def _body(struct: type[msgspec.Struct], required: Collection[str], **rules: Object) -> Object:
    """Return the schema of a struct, with these of its fields and their rules."""
    derived = msgspec.json.schema(struct)["$defs"][struct.__name__]["properties"]
    fields = {}
    for name, rule in rules.items():
        field = {**derived[name], **rule}
        if "type" in rule or "$ref" in rule:
            # The rule is stricter than the lenient type of the decoder.
            field.pop("anyOf", None)
        # Generated clients would send a default, even if that of the service is another by then.
        field.pop("default", None)
        fields[name] = field
    return {"type": "object", "required": list(required), "properties": fields}


def _answer(required: Collection[str] = (), **fields: Object) -> Object:
    """Return the schema of an object. All of its fields are required unless some are named."""
    return {"type": "object", "required": list(required or fields), "properties": fields}
