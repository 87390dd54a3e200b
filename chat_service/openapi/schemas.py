"""The shapes of bodies: msgspec's view of the structs that decode them, with the rules in force.

Called by `chat_service.openapi`. A field that no struct has cannot be documented here.
"""

from collections.abc import Collection
from typing import Any, NamedTuple, TypeAlias, get_args

import msgspec

from chat_service.api.request_options import TTL_MIN_S, WaitLimits
from chat_service.api.validation import IDS_MAX, LeaseBody, MessageBody, MessageLimits
from chat_service.handlers.health import Readiness
from workers.commands import Message, Status

#: Anything in the document.
Object: TypeAlias = dict[str, Any]

ID, LEASE = "01a20bdacd390000b765d1a0c4bde3d1", "cddd139d4bd3a8bddd89fd598357ed28"
MESSAGE: Object = {"text": "lunch?", "username": "bob", "timeout": 3600}
RECEIVED: Object = {"text": "lunch?", "id": ID}

#: Control characters would not survive every client and log on the way.
_NO_CONTROLS = r"^[^\u0000-\u001f\u007f-\u009f]*$"
_IS_LEASE = {"pattern": "^[0-9a-f]{1,64}$", "description": "As the lease's answer named it."}


class Terms(NamedTuple):
    """What the settings in force allow: seconds, bytes, messages."""

    rules: MessageLimits
    waits: WaitLimits
    body_bytes: int
    batch_messages: int
    batch_bytes: int
    receipt_keep_s: int


def reference(kind: str, name: str) -> Object:
    """What stands for one of the document's components."""
    return {"$ref": f"#/components/{kind}/{name}"}


def schema_of(name: str) -> Object:
    """What stands for a schema."""
    return reference("schemas", name)


def username_of(rules: MessageLimits) -> Object:
    """The schema of a username, in a body or in a path."""
    return {
        "type": "string",
        "minLength": 1,
        "maxLength": rules.username_chars,
        "pattern": _NO_CONTROLS,
        "not": {"enum": [".", ".."]},
        "description": "The inbox. Case-sensitive, neither `.` nor `..`, no control characters.",
    }


def schemas(terms: Terms) -> Object:
    """Every schema that has a name."""
    rules, waits = terms.rules, terms.waits
    identity: Object = {"type": "string", "pattern": "^[0-9a-f]{32}$"}
    lease: Object = {"type": ["string", "null"], "description": "`null` where there is nothing."}
    held_s: Object = {"type": "number", "description": "The seconds that hold."}
    counted: Object = {"type": "integer", "minimum": 0}
    return {
        "NewMessage": _body(
            MessageBody,
            ("text", "username"),
            text={
                "type": "string",
                "maxLength": rules.text_bytes,
                "description": f"Any content, up to {rules.text_bytes} bytes of UTF-8.",
            },
            username=username_of(rules),
            timeout={
                "type": ["integer", "null"],
                "minimum": 1,
                "maximum": rules.timeout_s,
                "default": rules.default_timeout_s,
                "description": "Seconds of life; `null` counts as absent.",
            },
        ),
        "Message": _body(
            Message,
            ("text", "id"),
            text={"description": "Equal to the byte to what was posted."},
            id={**identity, "description": "Ids sort by the time of acceptance."},
        ),
        "Messages": {"type": "array", "items": schema_of("Message")},
        "Posted": _answer(id=identity),
        "BatchResults": _answer(
            results={
                "type": "array",
                "items": {
                    "oneOf": [
                        _answer(("id",), id=identity, receipt={"type": "string"}),
                        _answer(error=schema_of("Problem")),
                    ]
                },
            }
        ),
        "Lease": _answer(
            lease=lease, ttl=held_s, messages={"type": "array", "items": schema_of("Message")}
        ),
        "LeasedMessages": _body(
            LeaseBody,
            ("lease",),
            lease=_IS_LEASE,
            ids={
                "type": ["array", "null"],
                "items": {"type": "string"},
                "maxItems": IDS_MAX,
                "description": "Some of its messages; without it all are meant.",
            },
        ),
        "LeaseExtension": _body(
            LeaseBody,
            ("lease", "ttl"),
            lease=_IS_LEASE,
            ttl={
                "type": "number",
                "minimum": TTL_MIN_S,
                "description": f"Seconds from now; more than {waits.lease_max_s:g} is cut to that.",
            },
        ),
        "Acknowledged": _answer(acknowledged=counted),
        "Released": _answer(released=counted),
        "Extended": _answer(ttl=held_s),
        "Fate": _answer(
            id=identity,
            status={"enum": list(get_args(Status))},
            at={
                "type": ["string", "null"],
                "format": "date-time",
                "description": "When; `null` while it is pending or leased.",
            },
        ),
        "Liveness": _answer(status={"const": "ok"}),
        "Readiness": _answer(
            status={"enum": ["ok", "unavailable"]},
            **{part: {"type": "boolean"} for part in Readiness._fields},
        ),
        "Problem": _problem(),
    }


def _problem() -> Object:
    happened: Object = {
        "enum": [False, "unknown"],
        "description": "What became of the request: nothing, or nobody knows.",
    }
    document = _answer(
        ("type", "title", "status", "detail", "instance"),
        type={"type": "string", "pattern": "^urn:chat:problem:[a-z-]+$"},
        title={"type": "string"},
        status={"type": "integer"},
        detail={"type": "string"},
        instance={"type": "string", "description": "The request's id, as in `X-Request-ID`."},
        errors={
            "type": "array",
            "items": _answer(field={"type": "string"}, detail={"type": "string"}),
            "description": "Each field that breaks a rule, and the rule.",
        },
        stored=happened,
        claimed=happened,
        changed=happened,
        id={"type": "string", "description": "The message's, if it was stored after all."},
        acknowledged={
            "type": "array",
            "items": {"type": "string"},
            "description": "The ids that are acknowledged, where others are lost.",
        },
        lost={
            "type": "array",
            "items": {"type": "string"},
            "description": "The ids that could not be acknowledged.",
        },
        fate={"enum": list(get_args(Status)), "description": "What became of the message."},
    )
    return {**document, "description": "An error, as RFC 9457 has it."}


def _body(struct: type[msgspec.Struct], required: Collection[str], **rules: Object) -> Object:
    """A struct's schema with these of its fields, each with its rules."""
    derived = msgspec.json.schema(struct)["$defs"][struct.__name__]["properties"]
    fields = {}
    for name, rule in rules.items():
        field = {**derived[name], **rule}
        if "type" in rule:
            # It says more than the type by which the decoder lets it in.
            field.pop("anyOf", None)
        if field.get("default", 0) is None:
            del field["default"]
        fields[name] = field
    return {"type": "object", "required": list(required), "properties": fields}


def _answer(required: Collection[str] = (), **fields: Object) -> Object:
    """An object of these fields; all of them are always there unless some are named."""
    return {"type": "object", "required": list(required or fields), "properties": fields}
