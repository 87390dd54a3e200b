"""The rules for what a client may send, once more: slowly, with Python's own json module.

Written from the documented contract, not from the code. Where the contract leaves a choice, the
reference names every outcome that is right, with the reason beside it.
"""

import json
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

#: The only white space of JSON (RFC 8259, 2).
_SPACE = " \t\n\r"
#: Nesting beyond this may be refused, and below it must not be.
DEPTH_MAX = 100
#: A number of more characters may be taken for one beyond all bounds.
DIGITS_MAX = 400


class Limits(NamedTuple):
    """What a message may be, at most."""

    username_chars: int
    text_bytes: int
    default_timeout_s: int
    timeout_s: int


class Accepted(NamedTuple):
    """A message that is stored so."""

    username: str
    text: str
    timeout_s: int


class Refused(NamedTuple):
    """A problem of this kind, about exactly these fields."""

    kind: str
    fields: frozenset[str] = frozenset()


Outcome = Accepted | Refused
NOT_JSON = Refused("invalid-json")
TOO_LARGE = Refused("too-large")
TOO_MANY = Refused("invalid-request", frozenset({"body"}))


class _NotJson(Exception):
    pass


class _Number(NamedTuple):
    """A number as it was written."""

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


def message(body: bytes, limits: Limits) -> set[Outcome]:
    """What may come of a post of this body."""
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
        # No UTF-8 has one, so that it is a fault of the JSON. Nobody has to look for it in what is
        # skipped: other fields, and values of the wrong type.
        right.add(NOT_JSON)
        if any(isinstance(each, str) and _has_lone_surrogate(each) for each in fields.values()):
            return right
    if _depth(body) > DEPTH_MAX:
        right.add(NOT_JSON)
    timeout = fields["timeout"]
    if isinstance(timeout, _Number) and len(timeout.written) > DIGITS_MAX:
        # An integer with hundreds of zeros behind its point may be too long to be looked at.
        fields["timeout"] = _Number("1e999")
    wrong = {name for name, rule in _RULES.items() if not rule(fields[name], limits)}
    if wrong:
        return right | {Refused("invalid-request", frozenset(wrong))}
    text = fields["text"]
    assert isinstance(text, str)
    if len(text.encode()) > limits.text_bytes:
        return right | {TOO_LARGE}
    seconds = int(timeout.value) if isinstance(timeout, _Number) else limits.default_timeout_s
    return right | {Accepted(str(fields["username"]), text, seconds)}


class Batch(NamedTuple):
    """What may come of a batch: a refusal of all of it, or of each message what may come of it."""

    wholes: frozenset[Refused]
    messages: Sequence[set[Outcome]] | None


def batch(body: bytes, content_type: str, limits: Limits, most: int) -> Batch:
    """What may come of a batch: an array, or a message on each line."""
    body = body.removeprefix(BOM)
    if not body.lstrip().startswith(b"["):
        lines = [line for line in body.split(b"\n") if line.strip(_SPACE.encode())]
        is_one = len(lines) == 1 and "ndjson" not in content_type.lower()
        if not lines or is_one or not lines[0].rstrip().endswith(b"}"):
            return Batch(frozenset({NOT_JSON}), None)
        if len(lines) > most:
            return Batch(frozenset({TOO_MANY}), None)
        # Of one within a body nothing is said.
        within = [{NOT_JSON} if line.startswith(BOM) else set() for line in lines]
        right = [message(line, limits) | more for line, more in zip(lines, within, strict=True)]
        return Batch(frozenset(), right)
    items, is_whole = _items(body.decode("utf-8", "surrogateescape"))
    if not is_whole:
        # One that is too long may be refused before its end is looked at.
        return Batch(frozenset({NOT_JSON, *([TOO_MANY] if len(items) > most else [])}), None)
    wholes: set[Refused] = set()
    if _LONE.search(body) or _depth(body) > DEPTH_MAX:
        # It may be a fault of its message alone, or of all.
        wholes.add(NOT_JSON)
    if len(items) > most:
        return Batch(frozenset({*wholes, TOO_MANY}), None)
    encoded = [item.encode("utf-8", "surrogateescape") for item in items]
    return Batch(frozenset(wholes), [message(item, limits) for item in encoded])


def username_in_path(segment: str, limits: Limits) -> str | Refused:
    """The username that a segment of a path names."""
    refused = Refused("invalid-request", frozenset({"username"}))
    if re.search("%(?![0-9A-Fa-f][0-9A-Fa-f])", segment):
        return refused
    try:
        name = unquote_to_bytes(segment).decode()
    except UnicodeDecodeError:
        return refused
    return name if _is_username(name, limits) else refused


#: A whole number with leading zeros is one; nothing is said of signs, points and spaces.
_LIMIT = re.compile("0*[1-9][0-9]*")
_SECONDS = re.compile("[0-9]+([.][0-9]+)?")


def read_options(query: str) -> tuple[int | None, float] | None:
    """The limit and the wait that a query of known, well-formed parameters asks for; None where
    anything in it is wrong.
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
    """The items of an array as they were written; False where it is none, with those before."""
    items: list[str] = []
    at = _skip(text, _skip(text, 0) + 1)
    if text[at : at + 1] == "]":
        return items, _skip(text, at + 1) == len(text)
    while True:
        start = at
        try:
            _, at = _decoder.raw_decode(text, at)
        except (ValueError, RecursionError, _NotJson):
            return items, False
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
        raise _NotJson("it is no JSON") from None
    if _skip(text, end) != len(text):
        raise _NotJson("something is behind it")
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


_RULES = {"username": _is_username, "text": _is_text, "timeout": _is_timeout}


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
