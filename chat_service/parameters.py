"""What a request says beside its path and its body: the rules for queries and for our headers.

Called by the handlers. Raises `chat_service.problems.Problem` that names the parameter and the
rule. A parameter that is not known is refused on routes that consume or settle messages, and
ignored on others.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import parse_qsl

from tornado.httputil import HTTPHeaders

from chat_service.problems import FieldError, invalid

#: A key by which a read can be repeated must not be guessed: so many characters hold 128 bits.
READ_KEY_MIN = 22
#: The shortest lease, in seconds.
TTL_MIN_S = 0.01
#: The most that is taken apart: fields of a query and its characters, members of a header's list.
_FIELDS_MAX, _QUERY_MAX, _MEMBERS_MAX = 100, 2048, 16
#: Of a parameter that is not known, so many characters are named.
_NAME_SHOWN_MAX = 64
# As many decimals as a float has when it is written out, and some.
_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,32})?")
_TIME = re.compile(r"[0-9]{1,12}(\.[0-9]{1,9})?")
_NO_WEIGHT = re.compile(r"\s*q\s*=\s*0(\.0*)?\s*", re.IGNORECASE)
_WAITING_ROUTES = ("/chat/:username", "/chat/:username/read", "/chat/:username/lease")
_WAIT = re.compile(r"(^|&)wait=")
_KEY_MAX = 255
_KEY = re.compile(rf"[\x21-\x7e]{{1,{_KEY_MAX}}}")
_QUOTED = re.compile(r'"((?:[\x20-\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"')


class Waits(NamedTuple):
    """The bounds of what can be asked for, in seconds: of a wait, and of a lease."""

    wait_max_s: float
    lease_max_s: float


class ReadOptions(NamedTuple):
    """How a read is wanted: at most `limit` messages, waiting `wait_s` seconds for the first.

    `is_clamped` where a longer wait was asked for.
    """

    limit: int | None
    wait_s: float
    is_clamped: bool
    is_preferred: bool = False
    ttl_s: float | None = None

    def headers(self) -> Mapping[str, str]:
        """What an answer says of it: the wait that held, where it is not the one asked for."""
        if self.is_clamped or self.is_preferred:
            return {"Preference-Applied": f"wait={self.wait_s:g}"}
        return {}


_PLAIN = ReadOptions(None, 0.0, False)
_READ_NAMES, _LEASE_NAMES = ("limit", "wait"), ("limit", "wait", "ttl")
#: What requests that wait have behind their route where they are counted: how long they take says
#: nothing about the service.
WAITING = "?wait"


class Preferences(NamedTuple):
    """The `Prefer` header (RFC 7240), as far as it is known: a wait in seconds, a receipt."""

    wait: str | None
    receipt: bool


def read_options(query: str, waits: Waits, prefer: str = "", is_lease: bool = False) -> ReadOptions:
    """The options in a query string; the wait may come from a `Prefer` header instead."""
    if not query and not prefer:
        return _PLAIN
    names = _LEASE_NAMES if is_lease else _READ_NAMES
    limits, waited, ttls = (*_fields(query, *names, are_all=True), None)[:3]
    preferred = preferences(prefer).wait if waited is None and prefer else None
    if preferred is not None:
        waited = preferred
    wait_s = 0.0 if waited is None else seconds("wait", waited)
    ttl_s = None
    if ttls is not None and (ttl_s := seconds("ttl", ttls)) < TTL_MIN_S:
        raise invalid(FieldError("ttl", f"must be at least {TTL_MIN_S} seconds"))
    return ReadOptions(
        None if limits is None else _limit(limits),
        min(wait_s, waits.wait_max_s),
        wait_s > waits.wait_max_s,
        preferred is not None,
        None if ttl_s is None else min(ttl_s, waits.lease_max_s),
    )


def refuse_parameters(query: str) -> None:
    """Raise a 400 problem for any parameter, on a route that changes messages and knows none."""
    if query:
        _fields(query, are_all=True)


def refuse_body(body: bytes) -> None:
    """Raise a 400 problem for a body on a route that consumes and whose parameters are elsewhere.

    A `limit` that is not looked at must not empty an inbox. No body or `{}` says nothing.
    """
    if body and body.strip() not in (b"", b"{}"):
        raise invalid(FieldError("body", "must be empty or {} here: parameters are in the query"))


def is_waiting(route: str, query: str, prefer: str = "") -> bool:
    """Whether a request of this route with this query, or this `Prefer` header, waits."""
    if (not query and not prefer) or route not in _WAITING_ROUTES:
        return False
    if "wait=" in query and _WAIT.search(query):
        return True
    return bool(prefer) and preferences(prefer).wait is not None


def seconds(name: str, value: str) -> float:
    """A number of seconds, decimals allowed."""
    if not _SECONDS.fullmatch(value):
        raise invalid(FieldError(name, "must be one number of seconds from 0, such as 2.5"))
    return float(value)


def preferences(prefer: str) -> Preferences:
    """The preferences in a `Prefer` header; what is not understood is no preference.

    Nor is what comes behind the first few: a header of commas would cost as much as ten requests.
    """
    wait, receipt = None, False
    for preference in prefer.split(",", _MEMBERS_MAX)[:_MEMBERS_MAX]:
        # What comes behind a semicolon is about the preference.
        preference = preference.partition(";")[0]
        name, _, value = (part.strip() for part in preference.partition("="))
        if name.lower() == "wait" and wait is None:
            wait = value.strip('"')
        elif name.lower() == "receipt":
            receipt = True
    return Preferences(wait if wait is not None and _SECONDS.fullmatch(wait) else None, receipt)


def idempotency_key(headers: Mapping[str, str], length_min: int = 1) -> str | None:
    """The key of a request that can be repeated, or None. Bare, or a quoted string."""
    given = headers.get("Idempotency-Key")
    if given is None:
        return None
    if isinstance(headers, HTTPHeaders) and len(headers.get_list("Idempotency-Key")) > 1:
        raise invalid(FieldError("Idempotency-Key", "must be there once"))
    # A quoted one has quotes around it, and may have a backslash before each character.
    quoted = _QUOTED.fullmatch(given) if len(given) <= 2 * _KEY_MAX + 2 else None
    key = re.sub(r"\\(.)", r"\1", quoted[1]) if quoted is not None else given
    is_open = quoted is None and given.startswith('"')
    if is_open or not _KEY.fullmatch(key.replace(" ", "_")):
        rule = f"must have 1 to {_KEY_MAX} characters of printable ASCII"
        raise invalid(FieldError("Idempotency-Key", rule))
    if len(key) < length_min:
        rule = f"must have at least {length_min} characters here: 128 random bits, a UUID will do"
        raise invalid(FieldError("Idempotency-Key", rule))
    return key


def since(query: str) -> float:
    """A time in seconds since 1970, after which something is wanted; all of it without one."""
    (value,) = _fields(query, "since")
    if value is not None and not _TIME.fullmatch(value):
        raise invalid(FieldError("since", "must be one number of seconds since 1970"))
    return float(value or 0)


def takes_gzip(headers: Mapping[str, str]) -> bool:
    """Whether the answer may be compressed (RFC 9110, 12.5.3); a plain one is always right."""
    codings = headers.get("Accept-Encoding", "").split(",", _MEMBERS_MAX)[:_MEMBERS_MAX]
    for coding in codings:
        name, _, weight = coding.partition(";")
        if name.strip().lower() in ("gzip", "x-gzip"):
            return not _NO_WEIGHT.fullmatch(weight)
    return False


def hash_of(*parts: str) -> str:
    """The hash under which a key or a receipt is stored, for what it is used for."""
    digest = hashlib.sha256()
    for part in parts:
        encoded = part.encode()
        digest.update(b"%d:" % len(encoded))
        digest.update(encoded)
    return digest.hexdigest()


def _fields(query: str, *names: str, are_all: bool = False) -> list[str | None]:
    """Return the values of these parameters in a query string; None for those that are not there.

    Raises a 400 problem for any other parameter if these `are_all` that there are.
    """
    if len(query) > _QUERY_MAX:
        rule = f"may have at most {_QUERY_MAX} characters"
        raise invalid(FieldError("query", rule))
    try:
        fields = parse_qsl(query, keep_blank_values=True, max_num_fields=_FIELDS_MAX)
    except ValueError:
        rule = f"may have at most {_FIELDS_MAX} fields"
        raise invalid(FieldError("query", rule)) from None
    if are_all:
        # A misspelled limit must not empty an inbox.
        for field, _ in fields:
            if field not in names:
                known = " and ".join((", ".join(names[:-1]), names[-1])) if names else "none"
                shown = field[:_NAME_SHOWN_MAX]
                raise invalid(FieldError(shown, f"is not a parameter here; known: {known}"))
    found: list[str | None] = []
    for name in names:
        values = [value for field, value in fields if field == name]
        if len(values) > 1:
            raise invalid(FieldError(name, "must be there once"))
        found.append(values[0] if values else None)
    return found


def _limit(value: str) -> int:
    if not value.isascii() or not value.isdigit() or len(value) > 9 or not int(value):
        raise invalid(FieldError("limit", "must be one integer from 1 to 999999999"))
    return int(value)
