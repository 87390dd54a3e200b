"""A reference for the rules of client input: slow, on Python's own json module.

It is written from the documented contract, not from the code. If the contract leaves a choice, the
reference lists every correct outcome, with the reason.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

#: The only white space of JSON (RFC 8259, 2).
_SPACE = " \t\n\r"
#: Deeper nesting may be refused; nesting up to this depth may not.
DEPTH_MAX = 100
#: A longer number may be treated as out of bounds.
DIGITS_MAX = 400


class Limits(NamedTuple):
    """The limits of a message."""

    username_chars: int
    text_bytes: int
    default_timeout_s: int
    timeout_s: int


class Accepted(NamedTuple):
    """A message that is stored with these values."""

    username: str
    text: str
    timeout_s: int
    #: Rounded up to whole milliseconds.
    delay_ms: int = 0


class Refused(NamedTuple):
    """A problem of this kind, about exactly these fields."""

    kind: str
    fields: frozenset[str] = frozenset()


Outcome = Accepted | Refused
NOT_JSON = Refused("invalid-json")
TOO_LARGE = Refused("too-large")
TOO_MANY = Refused("invalid-request", frozenset({"body"}))
#: Types of a post to an inbox, and what each of them makes of the body.
TYPES: Mapping[str, str] = {
    "": "text",
    "text/plain": "text",
    "text/plain; charset=UTF-8": "text",
    "application/x-www-form-urlencoded": "text",
    "application/octet-stream": "text",
    "application/x-ndjson": "text",
    "application/json": "json",
    "Application/Problem+JSON;charset=utf-8": "json",
    "multipart/form-data; boundary=x": "refused",
    'text/plain; charset="latin1"': "refused",
}


class _NotJson(Exception):
    pass


class _Number(NamedTuple):
    """A number as written."""

    written: str

    @property
    def value(self) -> float:
        try:
            # As the service has it: the nearest number that a double can hold.
            return float(self.written)
        except OverflowError:
            return math.inf


def _constant(name: str) -> object:
    raise _NotJson(f"{name} is no JSON")


class _Object(dict[str, Any]):
    """An object that remembers all its fields, also those that came again."""

    def __init__(self, pairs: Sequence[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.pairs = pairs


_decoder = json.JSONDecoder(
    parse_int=_Number,
    parse_float=_Number,
    parse_constant=_constant,
    object_pairs_hook=_Object,
    strict=True,
)


#: Some editors begin a file with it: a body may.
BOM = b"\xef\xbb\xbf"


def text_post(
    body: bytes,
    content_type: str,
    given: Mapping[str, Sequence[str]],
    username: str,
    limits: Limits,
) -> set[Outcome]:
    """Return every correct outcome of a post to an inbox, for one of the types in `TYPES`.

    `given` has the timeouts and the delays in the query and in the headers.
    """
    asked: dict[str, object] = {}
    differ: set[Outcome] = set()
    for name, values in given.items():
        numbers = [_Number(each) if _SECONDS.fullmatch(each) else each for each in values]
        if len({_value(number) for number in numbers}) > 1:
            # Other faults need not be named with it.
            differ.add(Refused("invalid-request", frozenset({name})))
        asked[name] = numbers[0] if numbers else None
    if differ:
        return differ
    kind = TYPES[content_type]
    if kind == "refused":
        return {Refused("invalid-request", frozenset({"Content-Type"}))}
    if kind == "json":
        return message(body, limits, username, asked)
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return {Refused("invalid-request", frozenset({"text"}))}
    fields = {"text": text, "username": username, **asked}
    return _judged(fields, limits)


def _value(given: object) -> object:
    return given.value if isinstance(given, _Number) else given


def message(
    body: bytes,
    limits: Limits,
    inbox: str | None = None,
    asked: Mapping[str, object] | None = None,
) -> set[Outcome]:
    """Return every correct outcome of a post with this body.

    `inbox` and `asked` are the name, and the timeout and the delay, outside of the body.
    """
    body = body.removeprefix(BOM)
    try:
        document = _document(body.decode())
    except (_NotJson, UnicodeDecodeError):
        return {NOT_JSON}
    if not isinstance(document, dict):
        return {NOT_JSON}
    fields = {name: document.get(name) for name in _RULES}
    right: set[Outcome] = set()
    if _has_lone_surrogate(document):
        # UTF-8 cannot encode a lone surrogate, so this is invalid JSON. A decoder need not look for
        # it in values that it skips: other fields, and values of the wrong type.
        right.add(NOT_JSON)
        if any(isinstance(each, str) and _has_lone_surrogate(each) for each in fields.values()):
            return right
    if _depth(body) > DEPTH_MAX:
        right.add(NOT_JSON)
    for name in ("timeout", "delay"):
        number = fields[name]
        if isinstance(number, _Number) and len(number.written) > DIGITS_MAX:
            # A number with hundreds of zeros after its point may be too long to examine.
            fields[name] = _Number("1e999")
    if inbox is not None:
        if fields["username"] not in (None, inbox):
            return right | {Refused("invalid-request", frozenset({"username"}))}
        fields["username"] = inbox
    for name, value in (asked or {}).items():
        if value is None:
            continue
        if fields[name] is not None and _value(value) != _value(fields[name]):
            # Other faults may be named with it.
            right.add(Refused("invalid-request", frozenset({name})))
            fields[name] = _Number("-1")
        elif fields[name] is None:
            fields[name] = value
    return right | _judged(fields, limits)


def _judged(fields: Mapping[str, Any], limits: Limits) -> set[Outcome]:
    """Return the outcome of a post with these fields."""
    wrong = {name for name, rule in _RULES.items() if not rule(fields[name], limits)}
    if wrong:
        return {Refused("invalid-request", frozenset(wrong))}
    text, timeout = str(fields["text"]), fields["timeout"]
    if len(text.encode()) > limits.text_bytes:
        return {TOO_LARGE}
    seconds = int(timeout.value) if isinstance(timeout, _Number) else limits.default_timeout_s
    delay = fields["delay"]
    delay_ms = math.ceil(delay.value * 1000) if isinstance(delay, _Number) else 0
    return {Accepted(str(fields["username"]), text, seconds, delay_ms)}


class Batch(NamedTuple):
    """The correct outcomes of a batch: refusals of the whole, or the outcomes of each message."""

    wholes: frozenset[Refused]
    messages: Sequence[set[Outcome]] | None


def batch(body: bytes, content_type: str, limits: Limits, most: int) -> Batch:
    """Return every correct outcome of a batch: an array, or one message per line."""
    body = body.removeprefix(BOM)
    if not body.lstrip().startswith(b"["):
        lines = [line for line in body.split(b"\n") if line.strip(_SPACE.encode())]
        is_one = len(lines) == 1 and "ndjson" not in content_type.lower()
        if not lines or is_one or not lines[0].rstrip().endswith(b"}"):
            return Batch(frozenset({NOT_JSON}), None)
        if len(lines) > most:
            return Batch(frozenset({TOO_MANY}), None)
        # The contract does not mention a byte order mark within a body.
        within = [{NOT_JSON} if line.startswith(BOM) else set() for line in lines]
        right = [message(line, limits) | more for line, more in zip(lines, within, strict=True)]
        return Batch(frozenset(), right)
    items, is_whole = _items(body.decode("utf-8", "surrogateescape"))
    if not is_whole:
        # A batch that is too long may be refused before its end is examined.
        return Batch(frozenset({NOT_JSON, *([TOO_MANY] if len(items) > most else [])}), None)
    wholes: set[Refused] = set()
    if _LONE.search(body) or _depth(body) > DEPTH_MAX:
        # This may be an error of one message, or of the whole batch.
        wholes.add(NOT_JSON)
    if len(items) > most:
        return Batch(frozenset({*wholes, TOO_MANY}), None)
    encoded = [item.encode("utf-8", "surrogateescape") for item in items]
    return Batch(frozenset(wholes), [message(item, limits) for item in encoded])


def username_in_path(segment: str, limits: Limits) -> str | Refused:
    """Return the username that a segment of a path names."""
    refused = Refused("invalid-request", frozenset({"username"}))
    if re.search("%(?![0-9A-Fa-f][0-9A-Fa-f])", segment):
        return refused
    try:
        name = unquote_to_bytes(segment).decode()
    except UnicodeDecodeError:
        return refused
    return name if _is_username(name, limits) else refused


#: Leading zeros are allowed; the contract does not mention signs, points and spaces.
_LIMIT = re.compile("0*[1-9][0-9]*")
_SECONDS = re.compile("[0-9]+([.][0-9]+)?")


def read_options(query: str) -> tuple[int | None, float] | None:
    """Return the limit and the wait of a query with known, well-formed parameters; None if anything
    in it is wrong.
    """
    limit, wait = None, 0.0
    seen: set[str] = set()
    for field in query.split("&") if query else ():
        name, _, value = field.partition("=")
        if name in seen or name not in ("limit", "wait"):
            return None
        seen.add(name)
        if name == "limit":
            if not _LIMIT.fullmatch(value) or len(value) > 9:
                return None
            limit = int(value)
        else:
            whole, _, fraction = value.partition(".")
            if not _SECONDS.fullmatch(value) or len(whole) > 9 or len(fraction) > 32:
                return None
            wait = float(value)
    return limit, wait


#: Half of a surrogate pair, or perhaps a whole one.
_LONE = re.compile(rb"\\u[dD][89a-fA-F]")


def _items(text: str) -> tuple[list[str], bool]:
    """Return the items of an array as written, and whether it is valid. If not, return the items
    before the error and, if the error is in an item, the rest of the text as the last one.
    """
    items: list[str] = []
    at = _skip(text, _skip(text, 0) + 1)
    if text[at : at + 1] == "]":
        return items, _skip(text, at + 1) == len(text)
    while True:
        start = at
        try:
            _, at = _decoder.raw_decode(text, at)
        except (ValueError, RecursionError, _NotJson):
            return [*items, text[start:]], False
        items.append(text[start:at])
        at = _skip(text, at)
        if text[at : at + 1] == "]":
            return items, _skip(text, at + 1) == len(text)
        if text[at : at + 1] != ",":
            return items, False
        at = _skip(text, at + 1)


def _document(text: str) -> Any:
    try:
        document, end = _decoder.raw_decode(text, _skip(text, 0))
    except (ValueError, RecursionError):
        raise _NotJson("invalid JSON") from None
    if _skip(text, end) != len(text):
        raise _NotJson("trailing data")
    return document


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in _SPACE:
        at += 1
    return at


def _is_username(value: Any, limits: Limits) -> bool:
    return (
        isinstance(value, str)
        and 1 <= len(value) <= limits.username_chars
        and value not in (".", "..")
        and not any(ord(each) < 0x20 or 0x7F <= ord(each) <= 0x9F for each in value)
    )


def _is_text(value: Any, limits: Limits) -> bool:
    return isinstance(value, str)


def _is_timeout(value: Any, limits: Limits) -> bool:
    if value is None:
        return True
    if not isinstance(value, _Number):
        return False
    number = value.value
    return math.isfinite(number) and number == int(number) and 1 <= number <= limits.timeout_s


def _is_delay(value: Any, limits: Limits) -> bool:
    if value is None:
        return True
    return isinstance(value, _Number) and 0 <= value.value <= limits.timeout_s


_RULES = {
    "username": _is_username,
    "text": _is_text,
    "timeout": _is_timeout,
    "delay": _is_delay,
}


def _has_lone_surrogate(value: Any) -> bool:
    if isinstance(value, _Number):
        return False
    if isinstance(value, str):
        return any(0xD800 <= ord(each) <= 0xDFFF for each in value)
    if isinstance(value, _Object):
        return any(_has_lone_surrogate(each) for pair in value.pairs for each in pair)
    if isinstance(value, list):
        return any(_has_lone_surrogate(each) for each in value)
    return False


def _depth(body: bytes) -> int:
    depth = deepest = 0
    for each in body:
        depth += (each in b"[{") - (each in b"]}")
        deepest = max(deepest, depth)
    return deepest
