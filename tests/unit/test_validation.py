"""Bodies and usernames: each rule is kept once and broken once."""

import json
from collections.abc import Callable

import pytest

from chat_service.api.problems import Problem
from chat_service.api.validation import (
    IDS_MAX,
    MessageLimits,
    NewMessage,
    is_message_id,
    lease_body,
    new_message,
    username_in_path,
)

LIMITS = MessageLimits(username_chars=8, text_bytes=10, default_timeout_s=60, timeout_s=600)
ID = "01a20bdacd390000b765d1a0c4bde3d1"


def message(**fields: object) -> bytes:
    """Return the body of a valid post with these fields changed."""
    return json.dumps({"text": "hi", "username": "bob", **fields}).encode()


def lease(**fields: object) -> bytes:
    """Return the body of a valid request about a lease with these fields changed."""
    return json.dumps({"lease": "c0ffee", **fields}).encode()


def problem_of(call: Callable[[], object]) -> Problem:
    """Return the problem that the call raises."""
    with pytest.raises(Problem) as raised:
        call()
    return raised.value


@pytest.mark.parametrize(
    "body",
    [
        message(),
        message(text=""),
        message(text="x" * 10),
        message(text="é" * 5),
        message(text="\x00\u202e"),
        message(username="x" * 8),
        message(username="é" * 8),
        message(username="a/b ."),
        message(timeout=1),
        message(timeout=600),
        message(timeout=60.0),
        message(timeout=None),
        message(extra={"deep": [1]}),
        b"\xef\xbb\xbf" + message(),
        b'{"text": "x", "text": "y", "username": "bob"}',
    ],
)
def test_valid_message_is_accepted(body: bytes) -> None:
    new = new_message(body, LIMITS)
    assert new.size == len(new.text.encode())


def test_message_is_decoded() -> None:
    assert new_message(message(text="né"), LIMITS) == NewMessage("bob", "né", 3, 60, 0.0)
    assert new_message(message(timeout=60.0), LIMITS).timeout_s == 60


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (message(text=None), ["text"]),
        (message(text=1), ["text"]),
        (message(text=["x"]), ["text"]),
        (message(username=None), ["username"]),
        (message(username=1), ["username"]),
        (message(username=""), ["username"]),
        (message(username="x" * 9), ["username"]),
        (message(username="."), ["username"]),
        (message(username=".."), ["username"]),
        (message(username="a\nb"), ["username"]),
        (message(username="a\x85b"), ["username"]),
        (message(timeout=0), ["timeout"]),
        (message(timeout=601), ["timeout"]),
        (message(timeout=1.5), ["timeout"]),
        (message(timeout="60"), ["timeout"]),
        (message(timeout=True), ["timeout"]),
        (b'{"text": "x", "username": "bob", "timeout": 1e999}', ["timeout"]),
        (b'{"text": "x", "username": "bob", "timeout": %b}' % (b"9" * 500), ["timeout"]),
        (b"{}", ["username", "text"]),
        (message(text=1, username="", timeout=0), ["username", "text", "timeout"]),
    ],
)
def test_invalid_message_names_every_wrong_field(body: bytes, fields: list[str]) -> None:
    problem = problem_of(lambda: new_message(body, LIMITS))
    assert (problem.status, problem.kind) == (400, "invalid-request")
    assert [error.field for error in problem.errors] == fields


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"[]", "must be an object"),
        (b"1", "must be an object"),
        (b"{", ""),
        (message() + b"x", ""),
        (b'{"text": "\xff", "username": "bob"}', "is not UTF-8"),
        (b'{"text": "x", "username": "bob", "other": "\xff"}', "is not UTF-8"),
        (rb'{"text": "\ud800", "username": "bob"}', "half of a surrogate pair"),
        (b"\xef\xbb\xbf\xef\xbb\xbf" + message(), ""),
    ],
)
def test_body_that_is_no_json_object_is_refused(body: bytes, detail: str) -> None:
    problem = problem_of(lambda: new_message(body, LIMITS))
    assert (problem.status, problem.kind) == (400, "invalid-json")
    assert detail in problem.detail


@pytest.mark.parametrize("text", ["x" * 11, "é" * 6])
def test_text_over_its_limit_is_too_large(text: str) -> None:
    problem = problem_of(lambda: new_message(message(text=text), LIMITS))
    assert (problem.status, problem.detail) == (413, "text may have at most 10 bytes")


@pytest.mark.parametrize(
    "body",
    [
        lease(),
        lease(lease="f" * 64),
        lease(ids=None),
        lease(ids=[]),
        lease(ids=[ID] * IDS_MAX),
        lease(ttl=0.5),
        lease(ttl=None),
        lease(delay=0),
        lease(delay=0.5),
        lease(delay=600),
        lease(delay=None),
        lease(other=1),
        b"\xef\xbb\xbf" + lease(),
    ],
)
def test_valid_request_about_a_lease_is_accepted(body: bytes) -> None:
    assert lease_body(body, LIMITS).lease in ("c0ffee", "f" * 64)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"{}", "lease"),
        (lease(lease=None), "lease"),
        (lease(lease=""), "lease"),
        (lease(lease="XYZ"), "lease"),
        (lease(lease="f" * 65), "lease"),
        (lease(ids="x"), "ids"),
        (lease(ids=[1]), "ids"),
        (lease(ids=[ID] * (IDS_MAX + 1)), "ids"),
        (lease(ttl="30"), "ttl"),
        (lease(delay="30"), "delay"),
        (lease(delay=True), "delay"),
        (lease(delay=-0.1), "delay"),
        (lease(delay=600.1), "delay"),
        (b'{"lease": "c0ffee", "delay": 1%s}' % (b"0" * 400), "delay"),
    ],
)
def test_invalid_request_about_a_lease_names_the_field(body: bytes, field: str) -> None:
    problem = problem_of(lambda: lease_body(body, LIMITS))
    assert (problem.status, problem.kind) == (400, "invalid-request")
    assert [error.field for error in problem.errors] == [field]


@pytest.mark.parametrize("delay", ["30", -1, 601])
def test_the_rule_for_a_delay_has_its_limit(delay: object) -> None:
    for body, read in ((lease(delay=delay), lease_body), (message(delay=delay), new_message)):
        (error,) = problem_of(lambda body=body, read=read: read(body, LIMITS)).errors  # type: ignore[misc]
        assert error.detail == "must be a number of seconds from 0 to 600"


@pytest.mark.parametrize("body", [b"", b" ", b"[]", b"{", b'{"lease": "\xff"}'])
def test_request_about_a_lease_must_be_a_json_object(body: bytes) -> None:
    assert problem_of(lambda: lease_body(body, LIMITS)).kind == "invalid-json"


@pytest.mark.parametrize(
    ("segment", "username"),
    [
        ("bob", "bob"),
        ("a%2Fb", "a/b"),
        ("%C3%A9", "é"),
        ("%2525", "%25"),
        ("a+b", "a+b"),
        ("x" * 8, "x" * 8),
    ],
)
def test_username_in_path_is_decoded_once(segment: str, username: str) -> None:
    assert username_in_path(segment, LIMITS) == username


@pytest.mark.parametrize(
    ("segment", "rule"),
    [
        ("%", "has a malformed percent-escape"),
        ("%4", "has a malformed percent-escape"),
        ("%zz", "has a malformed percent-escape"),
        ("%FF", "is not UTF-8"),
        ("x" * 9, "must have 1 to 8 characters"),
        ("%2E%2E", "must not be . or .., because clients remove these from a path"),
        (".", "must not be . or .., because clients remove these from a path"),
        ("%00", "must not contain control characters"),
    ],
)
def test_invalid_username_in_path_is_refused(segment: str, rule: str) -> None:
    problem = problem_of(lambda: username_in_path(segment, LIMITS))
    assert problem.errors == (("username", rule),)


@pytest.mark.parametrize(
    ("text", "is_valid"),
    [(ID, True), (ID.upper(), False), (ID[1:], False), (ID + "0", False), ("", False)],
)
def test_message_id_has_32_hexadecimal_digits(text: str, is_valid: bool) -> None:
    assert is_message_id(text) is is_valid
