"""The rules for query parameters and request headers.

Used by the handlers. Every function raises a `chat_service.api.problems.Problem` that names the
parameter and the rule that it breaks. Routes that claim or settle messages refuse unknown query
parameters; the others ignore them.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote

from tornado.httputil import HTTPHeaders

from chat_service.api.identity import EVERYONE, Client
from chat_service.api.problems import FieldError, invalid

#: The shortest key of a read, in characters. The key must not be guessable: these hold 128 bits.
READ_KEY_MIN = 22
#: The shortest lease, in seconds.
TTL_MIN_S = 0.01
#: Limits on parsing: fields and characters of a query, and members of a list in a header.
_FIELDS_MAX, _QUERY_MAX, _MEMBERS_MAX = 100, 2048, 16
#: How much of an unknown parameter's name is quoted, in characters.
_NAME_SHOWN_MAX = 64
# More decimals than the longest representation of a float has.
_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,32})?")
_TIME = re.compile(r"[0-9]{1,12}(\.[0-9]{1,9})?")
_WEIGHT = re.compile(r"\s*q\s*=\s*([01](?:\.\d{0,3})?)\s*", re.IGNORECASE)
_NO_WEIGHT = re.compile(r"\s*q\s*=\s*0(\.0*)?\s*", re.IGNORECASE)
_WAIT = re.compile(r"(^|&)wait=")
_KEY_MAX = 255
_KEY = re.compile(rf"[\x21-\x7e]{{1,{_KEY_MAX}}}")
_QUOTED = re.compile(r'"((?:[\x20-\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"')


class WaitLimits(NamedTuple):
    """The longest wait and the longest lease that a request can ask for, in seconds."""

    wait_max_s: float
    lease_max_s: float


class ReadOptions(NamedTuple):
    """The options of a read: at most `limit` messages, after up to `wait_s` seconds.

    `is_clamped` says that the request asked for a longer wait, and `is_preferred` that it used a
    `Prefer` header. `ttl_s` is the duration of a lease.
    """

    limit: int | None
    wait_s: float
    is_clamped: bool
    is_preferred: bool = False
    ttl_s: float | None = None

    def headers(self) -> Mapping[str, str]:
        """Return the headers that tell the client which wait was applied, if that is needed."""
        if self.is_clamped or self.is_preferred:
            return {"Preference-Applied": f"wait={self.wait_s:g}"}
        return {}


_PLAIN = ReadOptions(None, 0.0, False)
#: The query parameters of reads and of leases.
READ_PARAMETERS, LEASE_PARAMETERS = ("limit", "wait"), ("limit", "wait", "ttl")
#: The query parameters of a post to an inbox. Each can also be a header: `X-Timeout`.
POST_PARAMETERS = ("timeout", "delay")
#: Long polls are counted under their route with this suffix, because their duration says nothing
#: about the service.
WAIT_SUFFIX = "?wait"


class Preferences(NamedTuple):
    """The supported preferences of a `Prefer` header (RFC 7240): a wait in seconds, a receipt."""

    wait: str | None
    receipt: bool


def read_options(
    query: str, waits: WaitLimits, prefer: str = "", is_lease: bool = False
) -> ReadOptions:
    """Return the options in a query string. A wait can also come from the `Prefer` header."""
    if not query and not prefer:
        return _PLAIN
    names = LEASE_PARAMETERS if is_lease else READ_PARAMETERS
    limits, waited, ttls = (*_fields(query, *names, are_all=True), None)[:3]
    preferred = preferences(prefer).wait if waited is None and prefer else None
    if preferred is not None:
        waited = preferred
    wait_s = 0.0 if waited is None else seconds("wait", waited)
    ttl_s = None
    if ttls is not None and (ttl_s := seconds("ttl", ttls, TTL_MIN_S)) < TTL_MIN_S:
        raise invalid(FieldError("ttl", f"must be at least {TTL_MIN_S} seconds"))
    return ReadOptions(
        None if limits is None else _limit(limits),
        min(wait_s, waits.wait_max_s),
        wait_s > waits.wait_max_s,
        preferred is not None,
        None if ttl_s is None else min(ttl_s, waits.lease_max_s),
    )


class PostOptions(NamedTuple):
    """The options of a post to an inbox: numbers of seconds, or None for an absent one.

    Anything but a number stays a string, and breaks the rule for the option.
    """

    timeout: float | str | None
    delay: float | str | None


def post_options(query: str, headers: Mapping[str, str]) -> PostOptions:
    """Return the options in a query string and in headers."""
    asked = _fields(query, *POST_PARAMETERS, are_all=True)
    return PostOptions(
        *(
            agreed(name, _number(value), _number(headers.get(f"X-{name.title()}")))
            for name, value in zip(POST_PARAMETERS, asked, strict=True)
        )
    )


def agreed(name: str, *values: Any) -> Any:
    """Return the value of an option that may be given in several places; None if it is in none.

    Raises a 400 problem if two of the values differ.
    """
    given = [value for value in values if value is not None]
    if any(value != given[0] for value in given):
        raise invalid(FieldError(name, "has several values, which differ"))
    return given[0] if given else None


def reject_parameters(query: str) -> None:
    """Raise a 400 problem for any query parameter, on a route that has none."""
    if query:
        _fields(query, are_all=True)


def reject_body(body: bytes) -> None:
    """Raise a 400 problem for a body on a route that takes its parameters from the query.

    Such a route consumes messages: a `limit` in a body that is ignored would empty an inbox. An
    empty body and `{}` are accepted.
    """
    if body and body.strip() not in (b"", b"{}"):
        raise invalid(FieldError("body", "must be empty or {}: use query parameters instead"))


def is_waiting(query: str, prefer: str = "") -> bool:
    """Return whether this query, or this `Prefer` header, asks for a long poll."""
    if "%" in query and len(query) <= _QUERY_MAX:
        # The name of a parameter may be written in escapes. A longer query is refused.
        query = unquote(query)
    if "wait=" in query and _WAIT.search(query):
        return True
    return bool(prefer) and preferences(prefer).wait is not None


def seconds(name: str, value: str, least: float = 0) -> float:
    """Return a number of seconds, which may have decimals. `least` is for the error only."""
    if not _SECONDS.fullmatch(value):
        rule = f"must be one number of seconds from {least}, such as 2.5"
        raise invalid(FieldError(name, rule))
    return float(value)


def _number(value: str | None) -> float | str | None:
    return float(value) if value is not None and _SECONDS.fullmatch(value) else value


def preferences(prefer: str) -> Preferences:
    """Return the preferences in a `Prefer` header, ignoring those that are not supported.

    Only the first 16 members are read: a header full of commas would otherwise cost as much as ten
    requests.
    """
    wait, receipt = None, False
    for preference in prefer.split(",", _MEMBERS_MAX)[:_MEMBERS_MAX]:
        # Parameters of a preference follow a semicolon; none is supported.
        preference = preference.partition(";")[0]
        name, _, value = (part.strip() for part in preference.partition("="))
        if name.lower() == "wait" and wait is None:
            wait = value.strip('"')
        elif name.lower() == "receipt":
            receipt = True
    return Preferences(wait if wait is not None and _SECONDS.fullmatch(wait) else None, receipt)


def idempotency_key(headers: Mapping[str, str], length_min: int = 1) -> str | None:
    """Return the `Idempotency-Key`, or None. The header holds it bare or as a quoted string."""
    given = headers.get("Idempotency-Key")
    if given is None:
        return None
    if isinstance(headers, HTTPHeaders) and len(headers.get_list("Idempotency-Key")) > 1:
        raise invalid(FieldError("Idempotency-Key", "must not be repeated"))
    # A quoted key has two quotation marks, and may have a backslash before each character.
    quoted = _QUOTED.fullmatch(given) if len(given) <= 2 * _KEY_MAX + 2 else None
    key = re.sub(r"\\(.)", r"\1", quoted[1]) if quoted is not None else given
    is_open = quoted is None and given.startswith('"')
    if is_open or not _KEY.fullmatch(key.replace(" ", "_")):
        rule = f"must have 1 to {_KEY_MAX} characters of printable ASCII"
        raise invalid(FieldError("Idempotency-Key", rule))
    if len(key) < length_min:
        rule = (
            f"must have at least {length_min} characters for a read: use 128 random bits or a UUID"
        )
        raise invalid(FieldError("Idempotency-Key", rule))
    return key


class HistoryRange(NamedTuple):
    """Which samples the dashboard asks for: those after a time in seconds since 1970, of the last
    day or of the last quarter of an hour.
    """

    since: float
    is_day: bool


def history_range(query: str) -> HistoryRange:
    """Return the parameters `since` and `range`."""
    since, period = _fields(query, "since", "range")
    if since is not None and not _TIME.fullmatch(since):
        raise invalid(FieldError("since", "must be one number of seconds since 1970"))
    if period not in (None, "day"):
        raise invalid(FieldError("range", "must be day, or absent for a quarter of an hour"))
    return HistoryRange(float(since or 0), period == "day")


def takes_gzip(headers: Mapping[str, str]) -> bool:
    """Return whether the client accepts gzip (RFC 9110, 12.5.3). When in doubt, return False."""
    codings = headers.get("Accept-Encoding", "").split(",", _MEMBERS_MAX)[:_MEMBERS_MAX]
    for coding in codings:
        name, _, weight = coding.partition(";")
        if name.strip().lower() in ("gzip", "x-gzip"):
            return not _NO_WEIGHT.fullmatch(weight)
    return False


def opens_page(headers: Mapping[str, str]) -> bool:
    """Return whether a browser opens an address: it prefers HTML to JSON."""
    accept = headers.get("Accept", "")
    # Java's HttpURLConnection asks for HTML and images unless its program asks for something else.
    if "text/html" not in accept or accept.startswith("text/html, image/gif, image/jpeg"):
        return False
    if headers.get("Sec-Fetch-Mode", "navigate") != "navigate":
        return False
    weights: dict[str, float] = {}
    for member in accept.split(",", _MEMBERS_MAX)[:_MEMBERS_MAX]:
        name, _, parameters = member.partition(";")
        weight = _WEIGHT.fullmatch(parameters)
        weights[name.strip().lower()] = float(weight[1]) if weight else float(not parameters)
    ranges = ("application/problem+json", "application/json", "application/*", "*/*")
    json = next((weights[name] for name in ranges if name in weights), 0.0)
    return weights.get("text/html", 0.0) > json


def hash_of(*parts: str) -> str:
    """Return the hash under which a key or a receipt is stored. The first part is its purpose."""
    digest = hashlib.sha256()
    for part in parts:
        encoded = part.encode()
        digest.update(b"%d:" % len(encoded))
        digest.update(encoded)
    return digest.hexdigest()


def post_key_hash(client: Client, *parts: str) -> str:
    """Return the hash of a post's idempotency key, which differs between identities.

    Such a key may be guessable, so callers without a subject are told apart by their address. With
    `access=off`, all share their keys.
    """
    if client.identity is EVERYONE:
        return hash_of(*parts)
    if client.identity.subject:
        return hash_of(*parts, "subject", client.identity.subject)
    return hash_of(*parts, "address", client.key)


def read_key_hash(client: Client, username: str, key: str) -> str:
    """Return the hash of a read's idempotency key, which differs between subjects.

    Callers without a subject share their keys: such a key is a secret, and a phone that repeats a
    read may have another address by then.
    """
    if client.identity.subject:
        return hash_of("read", username, key, "subject", client.identity.subject)
    return hash_of("read", username, key)


def gets_receipt_again(client: Client) -> bool:
    """Return whether a repeated post gets another receipt, with which its message can be revoked.

    Not if the caller may be someone else behind the same address.
    """
    return client.identity is EVERYONE or bool(client.identity.subject)


def _fields(query: str, *names: str, are_all: bool = False) -> list[str | None]:
    """Return the values of these parameters in a query string, or None for absent ones.

    Raises a 400 problem for a repeated parameter and, if `are_all` is set, for any other one.
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
                known = " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:]))) or "none"
                shown = field[:_NAME_SHOWN_MAX]
                raise invalid(
                    FieldError(shown, f"is not a parameter of this route; it has: {known}")
                )
    found: list[str | None] = []
    for name in names:
        values = [value for field, value in fields if field == name]
        if len(values) > 1:
            raise invalid(FieldError(name, "must not be repeated"))
        found.append(values[0] if values else None)
    return found


def _limit(value: str) -> int:
    if not value.isascii() or not value.isdigit() or len(value) > 9 or not int(value):
        raise invalid(FieldError("limit", "must be one integer from 1 to 999999999"))
    return int(value)
