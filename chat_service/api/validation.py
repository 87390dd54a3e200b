"""The rules for request bodies and for usernames in paths.

Used by the handlers. Every function raises a `chat_service.api.problems.Problem` that names the
field and the rule that it breaks.
"""

import re
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

import msgspec

from chat_service.api.problems import FieldError, invalid, not_json, too_large

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
#: What msgspec says about half of a surrogate pair.
_HALF_A_PAIR = re.compile("surrogate|end of hex escape")
_MESSAGE_ID = re.compile(r"[0-9a-f]{32}")
_LEASE = re.compile(r"[0-9a-f]{1,64}")
_LEASE_RULES = {
    "lease": "is required and must be a string of hexadecimal digits, as POST .../lease gave it",
    "ids": "must be a list of message ids",
    "ttl": "must be a number of seconds",
    "delivered": "must be true or false",
}
#: A union of them would be made anew for each number.
_NUMBERS = (int, float)
#: Stands for a value of the wrong type.
_WRONG = object()
#: Programs on Windows put it before JSON. RFC 8259, section 8.1, lets a reader ignore it.
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
#: The most message ids in one request about a lease.
IDS_MAX = 5000


class MessageLimits(NamedTuple):
    """The limits on a message: code points, bytes of UTF-8, and seconds."""

    username_chars: int
    text_bytes: int
    default_timeout_s: int
    timeout_s: int


class NewMessage(msgspec.Struct, frozen=True, gc=False):
    """A valid message. `size` is the length of its text in bytes.

    It is readable in `delay_s` seconds; `timeout_s` counts from then.
    """

    username: str
    text: str
    size: int
    timeout_s: int
    delay_s: float


class MessageBody(msgspec.Struct, gc=False):
    """The body of a post. Its types are lenient; the rules are checked after decoding."""

    text: str | None = None
    username: str | None = None
    timeout: int | float | None = None
    delay: int | float | None = None


class _RawBody(msgspec.Struct):
    text: msgspec.Raw = msgspec.Raw(b"null")
    username: msgspec.Raw = msgspec.Raw(b"null")
    timeout: msgspec.Raw = msgspec.Raw(b"null")
    delay: msgspec.Raw = msgspec.Raw(b"null")


#: The first bytes of a string or null, and of a number or null. Other values are not decoded,
#: because they may be long.
_OF_STRING, _OF_NUMBER = b'"n', b"-0123456789n"
#: The longest number that is decoded, in digits.
_DIGITS_MAX = 400


class LeaseBody(msgspec.Struct, gc=False):
    """The body of a request about a lease, or about some of its messages."""

    lease: str
    ids: list[str] | None = None
    ttl: float | None = None
    delivered: bool | None = None
    delay: float | None = None


class SessionBody(msgspec.Struct, gc=False):
    """The body of a request that begins a session."""

    keep: bool | None = None


_decode = msgspec.json.Decoder(MessageBody).decode
_decode_lease = msgspec.json.Decoder(LeaseBody).decode
_decode_session = msgspec.json.Decoder(SessionBody).decode
_decode_raw = msgspec.json.Decoder(_RawBody).decode


def new_message(body: bytes, rules: MessageLimits, what: str = "body") -> NewMessage:
    """Return the message in a body. Unknown fields are ignored, and `null` counts as absent.

    Error messages call the bytes `what`. Raises a 400 problem, or 413 for a text that is too long.
    """
    return valid_message(*message_fields(body, what), rules)


def message_fields(body: bytes, what: str = "body") -> tuple[Any, Any, Any, Any]:
    """Return text, username, timeout and delay as they are in a body, None for an absent field.

    `valid_message` judges them. Raises a 400 problem if the body is not a JSON object.
    """
    try:
        # All of a body must be UTF-8, and the decoder does not check the fields that it skips.
        if not body.isascii():
            body.decode()
        return msgspec.structs.astuple(_decode(body))
    except (msgspec.DecodeError, ValueError, RecursionError):
        bare = body.removeprefix(BYTE_ORDER_MARK)
        if len(bare) < len(body) and not bare.startswith(BYTE_ORDER_MARK):
            return message_fields(bare, what)
        # The slow way finds everything that is wrong, for the error message.
        return _decode_leniently(body, what)


def valid_message(
    text: Any, username: Any, timeout: Any, delay: Any, rules: MessageLimits
) -> NewMessage:
    """Return the message with these fields, each None if it is absent.

    Raises a 400 problem that names all fields that break their rules, or 413 for a text that is too
    long.
    """
    errors: list[FieldError] = []
    if reason := _username_fault(username, rules.username_chars):
        errors.append(FieldError("username", reason))
    size = 0
    if not isinstance(text, str):
        errors.append(FieldError("text", "is required and must be a string"))
    else:
        size = len(text) if text.isascii() else len(text.encode())
    if timeout is None:
        timeout = rules.default_timeout_s
    elif reason := _timeout_fault(timeout, rules.timeout_s):
        errors.append(FieldError("timeout", reason))
    if delay is None:
        delay = 0.0
    elif reason := _delay_fault(delay, rules.timeout_s):
        errors.append(FieldError("delay", reason))
    if errors:
        raise invalid(*errors)
    if size > rules.text_bytes:
        raise too_large("text", rules.text_bytes)
    return NewMessage(username, text, size, int(timeout), float(delay))


def lease_body(body: bytes, rules: MessageLimits) -> LeaseBody:
    """Return the decoded body of a request about a lease. Raises a 400 problem."""
    body = body.removeprefix(BYTE_ORDER_MARK)
    if not body.strip():
        raise not_json("the body is empty")
    try:
        # As for a message: the decoder does not check the fields that it skips.
        if not body.isascii():
            body.decode()
        asked = _decode_lease(body)
    except UnicodeDecodeError:
        raise not_json("the body is not UTF-8") from None
    except msgspec.ValidationError as error:
        # msgspec's message ends in "- at `$.ids[0]`"; for a missing field it has no path.
        _, _, path = str(error).partition(" - at `$.")
        field = re.split(r"[`\[]", path)[0]
        if not field and "field `" not in str(error):
            raise not_json("the body must be an object with the field lease") from None
        if field == "delay":
            raise invalid(FieldError(field, _delay_rule(rules.timeout_s))) from None
        raise invalid(FieldError(field or "lease", _LEASE_RULES[field or "lease"])) from None
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise not_json(str(error)) from None
    if not _LEASE.fullmatch(asked.lease):
        raise invalid(FieldError("lease", _LEASE_RULES["lease"]))
    if asked.ids is not None and len(asked.ids) > IDS_MAX:
        raise invalid(FieldError("ids", f"must have at most {IDS_MAX} entries"))
    if asked.delay is not None and (reason := _delay_fault(asked.delay, rules.timeout_s)):
        raise invalid(FieldError("delay", reason))
    return asked


def keeps_session(body: bytes) -> bool:
    """Return whether a session is to outlast its browser. Raises a 400 problem."""
    if not body:
        return False
    try:
        return bool(_decode_session(body).keep)
    except msgspec.ValidationError as error:
        if "$.keep" in str(error):
            raise invalid(FieldError("keep", "must be true or false")) from None
        raise not_json("the body must be an object") from None
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise not_json(str(error)) from None


def is_message_id(text: str) -> bool:
    """Return whether the text has the form of a message id."""
    return _MESSAGE_ID.fullmatch(text) is not None


def username_in_path(segment: str, rules: MessageLimits) -> str:
    """Return the username in a path segment, percent-decoded once. Raises a 400 problem."""
    username = decode_segment(segment)
    if reason := _username_fault(username, rules.username_chars):
        raise invalid(FieldError("username", reason))
    return username


def decode_segment(segment: str) -> str:
    """Return a username's path segment, percent-decoded once. Raises a 400 problem."""
    if "%" not in segment:
        return segment
    if _BAD_ESCAPE.search(segment):
        raise invalid(FieldError("username", "has a malformed percent-escape"))
    try:
        return unquote_to_bytes(segment).decode()
    except UnicodeDecodeError:
        raise invalid(FieldError("username", "is not UTF-8")) from None


def _username_fault(username: Any, chars_max: int) -> str | None:
    if not isinstance(username, str):
        return "is required and must be a string"
    if not 1 <= len(username) <= chars_max:
        return f"must have 1 to {chars_max} characters"
    if username in (".", ".."):
        return "must not be . or .., because clients remove these from a path"
    if not username.isalnum() and _CONTROL.search(username):
        return "must not contain control characters"
    return None


def _timeout_fault(timeout: Any, seconds_max: int) -> str | None:
    if (
        isinstance(timeout, bool)
        or not isinstance(timeout, _NUMBERS)
        or timeout != timeout // 1
        or not 1 <= timeout <= seconds_max
    ):
        return f"must be an integer from 1 to {seconds_max}"
    return None


def _delay_fault(delay: Any, seconds_max: int) -> str | None:
    if isinstance(delay, bool) or not isinstance(delay, _NUMBERS) or not 0 <= delay <= seconds_max:
        return _delay_rule(seconds_max)
    return None


def _delay_rule(seconds_max: int) -> str:
    return f"must be a number of seconds from 0 to {seconds_max}"


def _decode_leniently(body: bytes, what: str) -> tuple[Any, Any, Any, Any]:
    """Return text, username, timeout and delay, with `_WRONG` for a value of the wrong type.

    For a body that did not decode strictly. Raises a 400 problem if it is not a JSON object.
    """
    if not body.strip():
        raise not_json(f"the {what} is empty", what)
    try:
        body.decode()
        fields = _decode_raw(body)
        return (
            _value(fields.text, _OF_STRING),
            _value(fields.username, _OF_STRING),
            _number(fields.timeout),
            _number(fields.delay),
        )
    except msgspec.ValidationError:
        raise not_json(
            f"the {what} must be an object with the fields text, username and timeout", what
        ) from None
    except msgspec.DecodeError as error:
        if _HALF_A_PAIR.search(str(error)):
            raise not_json(
                f"the {what} has half of a surrogate pair in a \\u escape", what
            ) from None
        raise not_json(str(error), what) from None
    except UnicodeDecodeError:
        raise not_json(f"the {what} is not UTF-8", what) from None
    except RecursionError:
        raise not_json(f"the {what} is nested too deeply", what) from None


def _number(field: msgspec.Raw) -> Any:
    """Return the decoded field, or `_WRONG` for another type or a number that is too long."""
    return _value(field if len(field) <= _DIGITS_MAX else b"[", _OF_NUMBER)


def _value(field: msgspec.Raw | bytes, beginnings: bytes) -> Any:
    """Return the decoded field, or `_WRONG` for another type or a number out of range."""
    if bytes(memoryview(field)[:1]) not in beginnings:
        return _WRONG
    try:
        return msgspec.json.decode(field)
    except UnicodeDecodeError:
        raise
    except (msgspec.ValidationError, ValueError):
        return _WRONG
