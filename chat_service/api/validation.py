"""From bytes to values: every rule about what a client may send, and the sentence for each.

Called by the handlers. Raises `chat_service.api.problems.Problem` that names the field and the
rule.
"""

import re
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

import msgspec

from chat_service.api.problems import FieldError, invalid, not_json, too_large

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
#: What msgspec says where half of a surrogate pair stands alone.
_HALF_A_PAIR = re.compile("surrogate|end of hex escape")
_MESSAGE_ID = re.compile(r"[0-9a-f]{32}")
_LEASE = re.compile(r"[0-9a-f]{1,64}")
_LEASE_RULES = {
    "lease": "is required and must be a string of hexadecimal digits, as POST .../lease gave it",
    "ids": "must be a list of message ids",
    "ttl": "must be a number of seconds",
}
#: Stands for a value that has not the type it must have.
_WRONG = object()
#: Windows' programs begin JSON with it; RFC 8259, section 8.1, lets a reader ignore it.
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
#: Ids in one request about a lease.
IDS_MAX = 5000


class MessageLimits(NamedTuple):
    """The limits on a message, from the settings: code points, bytes of UTF-8, seconds."""

    username_chars: int
    text_bytes: int
    default_timeout_s: int
    timeout_s: int


class NewMessage(NamedTuple):
    """A message that keeps every rule; `size` is its text's length in bytes."""

    username: str
    text: str
    size: int
    timeout_s: int


class MessageBody(msgspec.Struct, gc=False):
    """What is posted, as loosely as it can be decoded; the rules are checked afterwards."""

    text: str | None = None
    username: str | None = None
    timeout: int | float | None = None


class _RawBody(msgspec.Struct):
    text: msgspec.Raw = msgspec.Raw(b"null")
    username: msgspec.Raw = msgspec.Raw(b"null")
    timeout: msgspec.Raw = msgspec.Raw(b"null")


#: What a value begins with that has the right type, or is null: others are not decoded, however
#: long they are. The longest number that is looked at, in digits.
_OF_STRING, _OF_NUMBER, _DIGITS_MAX = b'"n', b"-0123456789n", 400


class LeaseBody(msgspec.Struct, gc=False):
    """What is asked about a lease: all of it, or some ids; for so many seconds."""

    lease: str
    ids: list[str] | None = None
    ttl: float | None = None


_decode = msgspec.json.Decoder(MessageBody).decode
_decode_lease = msgspec.json.Decoder(LeaseBody).decode
_decode_raw = msgspec.json.Decoder(_RawBody).decode


def new_message(body: bytes, rules: MessageLimits, what: str = "body") -> NewMessage:
    """The message in a request's body. Unknown fields are ignored, `null` counts as absent.

    `what` is the word for the bytes in what is said of them.
    """
    try:
        # The decoder does not look into fields that it skips, and all of a body must be UTF-8.
        if not body.isascii():
            body.decode()
        text, username, timeout = msgspec.structs.astuple(_decode(body))
    except (msgspec.DecodeError, ValueError, RecursionError):
        bare = body.removeprefix(BYTE_ORDER_MARK)
        if len(bare) < len(body) and not bare.startswith(BYTE_ORDER_MARK):
            return new_message(bare, rules, what)
        # Slowly, for the sentence: it says all that is wrong at once.
        text, username, timeout = _decode_leniently(body, what)
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
    if errors:
        raise invalid(*errors)
    if size > rules.text_bytes:
        raise too_large("text", rules.text_bytes)
    return NewMessage(username, text, size, int(timeout))


def lease_of(body: bytes) -> LeaseBody:
    """The lease that a request's body is about."""
    body = body.removeprefix(BYTE_ORDER_MARK)
    if not body.strip():
        raise not_json("the body is empty")
    try:
        # As with a message, also what the decoder skips.
        if not body.isascii():
            body.decode()
        asked = _decode_lease(body)
    except UnicodeDecodeError:
        raise not_json("the body is not UTF-8") from None
    except msgspec.ValidationError as error:
        # "... - at `$.ids[0]`", and none for a field that is missing.
        _, _, path = str(error).partition(" - at `$.")
        field = re.split(r"[`\[]", path)[0]
        if not field and "field `" not in str(error):
            raise not_json("the body must be an object with a lease") from None
        raise invalid(FieldError(field or "lease", _LEASE_RULES[field or "lease"])) from None
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise not_json(str(error)) from None
    if not _LEASE.fullmatch(asked.lease):
        raise invalid(FieldError("lease", _LEASE_RULES["lease"]))
    if asked.ids is not None and len(asked.ids) > IDS_MAX:
        raise invalid(FieldError("ids", f"may be at most {IDS_MAX}"))
    return asked


def is_message_id(text: str) -> bool:
    """Return whether a message can have this id."""
    return _MESSAGE_ID.fullmatch(text) is not None


def username_in_path(segment: str, rules: MessageLimits) -> str:
    """The username that a path segment names, percent-decoded once."""
    if "%" in segment:
        if _BAD_ESCAPE.search(segment):
            raise invalid(FieldError("username", "has a malformed percent-escape"))
        try:
            segment = unquote_to_bytes(segment).decode()
        except UnicodeDecodeError:
            raise invalid(FieldError("username", "is not UTF-8")) from None
    if reason := _username_fault(segment, rules.username_chars):
        raise invalid(FieldError("username", reason))
    return segment


def _username_fault(username: Any, chars_max: int) -> str | None:
    if not isinstance(username, str):
        return "is required and must be a string"
    if not 1 <= len(username) <= chars_max:
        return f"must have 1 to {chars_max} characters"
    if username in (".", ".."):
        return "may be neither . nor .., which clients take out of a path"
    if not username.isalnum() and _CONTROL.search(username):
        return "may have no control characters"
    return None


def _timeout_fault(timeout: Any, seconds_max: int) -> str | None:
    if (
        isinstance(timeout, bool)
        or not isinstance(timeout, int | float)
        or timeout != timeout // 1
        or not 1 <= timeout <= seconds_max
    ):
        return f"must be an integer from 1 to {seconds_max}"
    return None


def _decode_leniently(body: bytes, what: str) -> tuple[Any, Any, Any]:
    """The three fields whatever their types, for a body that did not decode strictly."""
    if not body.strip():
        raise not_json(f"the {what} is empty", what)
    try:
        body.decode()
        fields = _decode_raw(body)
        timeout = fields.timeout if len(fields.timeout) <= _DIGITS_MAX else b"["
        return (
            _value(fields.text, _OF_STRING),
            _value(fields.username, _OF_STRING),
            _value(timeout, _OF_NUMBER),
        )
    except msgspec.ValidationError:
        raise not_json(
            f"the {what} must be an object with text, username and timeout", what
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


def _value(field: msgspec.Raw | bytes, beginnings: bytes) -> Any:
    """Decode one field. Return `_WRONG` for another type, and for a number beyond all bounds."""
    if bytes(memoryview(field)[:1]) not in beginnings:
        return _WRONG
    try:
        return msgspec.json.decode(field)
    except UnicodeDecodeError:
        raise
    except (msgspec.ValidationError, ValueError):
        return _WRONG
