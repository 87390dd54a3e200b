"""Query parameters and headers: each rule is kept once and broken once."""

from collections.abc import Callable

import pytest
from tornado.httputil import HTTPHeaders

from chat_service.api.problems import Problem
from chat_service.api.request_options import (
    READ_KEY_MIN,
    WaitLimits,
    hash_of,
    history_range,
    idempotency_key,
    is_waiting,
    preferences,
    read_options,
    reject_body,
    reject_parameters,
    takes_gzip,
)

LIMITS = WaitLimits(wait_max_s=25.0, lease_max_s=3600.0)
KEY = "Idempotency-Key"


def field_of(call: Callable[[], object]) -> str:
    """Return the one field that the problem of this call names."""
    with pytest.raises(Problem) as raised:
        call()
    assert raised.value.status == 400
    (error,) = raised.value.errors
    return error.field


@pytest.mark.parametrize(
    ("query", "prefer", "limit", "wait_s", "applied"),
    [
        ("", "", None, 0, None),
        ("limit=1", "", 1, 0, None),
        ("limit=999999999", "", 999999999, 0, None),
        ("wait=2.5", "", None, 2.5, None),
        ("wait=0", "", None, 0, None),
        ("wait=25", "", None, 25, None),
        ("wait=26", "", None, 25, "wait=25"),
        ("limit=2&wait=1", "", 2, 1, None),
        ("", "wait=3", None, 3, "wait=3"),
        ("", "wait=99", None, 25, "wait=25"),
        ("wait=1", "wait=3", None, 1, None),
        ("", "wait=soon", None, 0, None),
        ("", "receipt", None, 0, None),
    ],
)
def test_read_options_are_understood(
    query: str, prefer: str, limit: int | None, wait_s: float, applied: str | None
) -> None:
    options = read_options(query, LIMITS, prefer)
    assert (options.limit, options.wait_s) == (limit, wait_s)
    assert options.headers().get("Preference-Applied") == applied


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=-1", "limit"),
        ("limit=1.5", "limit"),
        ("limit=", "limit"),
        ("limit=1000000000", "limit"),
        ("limit=٣", "limit"),
        ("limit=1&limit=2", "limit"),
        ("wait=", "wait"),
        ("wait=-1", "wait"),
        ("wait=soon", "wait"),
        ("wait=1e3", "wait"),
        ("wait=1000000000", "wait"),
        ("wait=1&wait=1", "wait"),
        ("limti=1", "limti"),
        ("ttl=30", "ttl"),
        ("Limit=1", "Limit"),
        ("x" * 100 + "=1", "x" * 64),
        ("limit=1" + "&" * 2048, "query"),
        ("&".join(["limit=1"] * 101), "query"),
    ],
)
def test_invalid_read_option_is_named(query: str, field: str) -> None:
    assert field_of(lambda: read_options(query, LIMITS)) == field


@pytest.mark.parametrize(
    ("query", "ttl_s"),
    [("", None), ("ttl=30", 30), ("ttl=0.01", 0.01), ("ttl=3601", 3600), ("ttl=1&limit=1", 1)],
)
def test_lease_has_a_duration(query: str, ttl_s: float | None) -> None:
    assert read_options(query, LIMITS, is_lease=True).ttl_s == ttl_s


@pytest.mark.parametrize("query", ["ttl=0", "ttl=0.001", "ttl=", "ttl=long", "ttl=1&ttl=2"])
def test_invalid_duration_of_a_lease_is_named(query: str) -> None:
    assert field_of(lambda: read_options(query, LIMITS, is_lease=True)) == "ttl"


def test_routes_without_parameters_reject_all() -> None:
    reject_parameters("")
    assert field_of(lambda: reject_parameters("limit=1")) == "limit"


@pytest.mark.parametrize(
    ("query", "prefer", "is_long_poll"),
    [
        ("", "", False),
        ("wait=1", "", True),
        ("limit=1&wait=1", "", True),
        ("w%61it=1", "", True),
        ("limit=1&%77ait=1", "", True),
        ("await=1", "", False),
        ("%61wait=1", "", False),
        ("", "wait=1", True),
        ("", "wait=x", False),
        ("", "receipt", False),
    ],
)
def test_long_polls_are_recognized(query: str, prefer: str, is_long_poll: bool) -> None:
    assert is_waiting(query, prefer) is is_long_poll


@pytest.mark.parametrize(
    ("prefer", "expected"),
    [
        ("", (None, False)),
        ("wait=5", ("5", False)),
        ('Wait="5"', ("5", False)),
        ("receipt, wait=5; x=1", ("5", True)),
        ("wait=5, wait=6", ("5", False)),
        ("RECEIPT", (None, True)),
        ("wait=x", (None, False)),
        ("respond-async", (None, False)),
        ("," * 20 + "receipt", (None, False)),
    ],
)
def test_preferences(prefer: str, expected: tuple[str | None, bool]) -> None:
    assert preferences(prefer) == expected


@pytest.mark.parametrize(
    ("given", "key"),
    [
        (None, None),
        ("a", "a"),
        ("a b", "a b"),
        ("x" * 255, "x" * 255),
        ('"quoted"', "quoted"),
        (r'"a\"b\\"', 'a"b\\'),
    ],
)
def test_valid_key(given: str | None, key: str | None) -> None:
    assert idempotency_key({} if given is None else {KEY: given}) == key


@pytest.mark.parametrize("given", ["", "x" * 256, "é", "a\tb", '"open', '""', '"' + "x" * 600])
def test_invalid_key_is_refused(given: str) -> None:
    assert field_of(lambda: idempotency_key({KEY: given})) == KEY


def test_key_of_a_read_is_long() -> None:
    long = "x" * READ_KEY_MIN
    assert idempotency_key({KEY: long}, READ_KEY_MIN) == long
    assert field_of(lambda: idempotency_key({KEY: long[1:]}, READ_KEY_MIN)) == KEY


def test_key_is_given_once() -> None:
    headers = HTTPHeaders()
    headers.add(KEY, "a")
    assert idempotency_key(headers) == "a"
    headers.add(KEY, "b")
    assert field_of(lambda: idempotency_key(headers)) == KEY


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", (0, False)),
        ("since=1795600000.5", (1795600000.5, False)),
        ("other=1", (0, False)),
        ("range=day", (0, True)),
        ("range=day&since=7", (7, True)),
    ],
)
def test_history_range(query: str, expected: tuple[float, bool]) -> None:
    assert history_range(query) == expected


@pytest.mark.parametrize("query", ["since=", "since=now", "since=-1", "since=1&since=2"])
def test_invalid_since_is_refused(query: str) -> None:
    assert field_of(lambda: history_range(query)) == "since"


@pytest.mark.parametrize("query", ["range=", "range=week", "range=day&range=day"])
def test_invalid_range_is_refused(query: str) -> None:
    assert field_of(lambda: history_range(query)) == "range"


@pytest.mark.parametrize(
    ("accepted", "is_accepted"),
    [
        ("", False),
        ("gzip", True),
        ("br, GZIP;q=0.5", True),
        ("x-gzip", True),
        ("gzip;q=0", False),
        ("gzip; q=0.000", False),
        ("br", False),
        ("br," * 16 + "gzip", False),
    ],
)
def test_gzip_is_accepted(accepted: str, is_accepted: bool) -> None:
    assert takes_gzip({"Accept-Encoding": accepted}) is is_accepted


def test_hash_depends_on_how_the_parts_are_split() -> None:
    assert len({hash_of("ab", "c"), hash_of("a", "bc"), hash_of("abc"), hash_of("abc", "")}) == 4
    assert hash_of("a", "b") == hash_of("a", "b")


@pytest.mark.parametrize("body", [b"", b"{}", b" \r\n", b"\t{}\n"])
def test_a_read_by_post_needs_no_body(body: bytes) -> None:
    reject_body(body)


@pytest.mark.parametrize(
    "body", [b'{"limit": 1}', b"[]", b"null", b"{ }", b"limit=1", b"{}{}", b"\0"]
)
def test_a_limit_in_a_body_is_refused(body: bytes) -> None:
    assert field_of(lambda: reject_body(body)) == "body"
