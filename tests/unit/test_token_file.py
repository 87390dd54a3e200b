"""The access file: what it grants, and which entry and rule each mistake names."""

from typing import Final

import pytest

from chat_service.access.patterns import resolve
from chat_service.access.token_file import TokenFileInvalid, parse
from chat_service.api.identity import Identity, Rights

DIGEST: Final = "ab" * 32
TOKEN: Final = f'[[token]]\nname = "worker"\nsha256 = "{DIGEST}"\n'


def test_an_empty_file_grants_nothing() -> None:
    grants = parse("")
    assert grants.anonymous == Identity("", Rights())
    assert not grants.tokens


def test_a_file_grants_what_it_says() -> None:
    grants = parse(
        '[anonymous]\nsend = ["*"]\n'
        + TOKEN
        + 'send = ["*"]\nread = ["jobs-*", "{sub}", "{sub}-*"]\nops = true\n'
        + "until = 2027-01-01T00:00:00Z\n"
        + '[[revoked]]\nsub = "eve"\nbefore = 1970-01-01T00:00:10+00:00\n'
        + '[[revoked]]\nsub = "eve"\nbefore = 1970-01-01T00:00:05Z\n'
    )
    assert grants.anonymous.rights == Rights(("*",))
    digest = bytes.fromhex(DIGEST)
    rights = Rights(("*",), ("jobs-*", "worker", "worker-*"), True)
    assert grants.tokens == {digest: Identity("worker", rights, 1798761600.0, digest=digest)}
    assert grants.revoked == {"eve": 10.0}


def test_a_holder_can_have_an_old_and_a_new_token() -> None:
    new = "cd" * 32
    grants = parse(TOKEN.replace(f'"{DIGEST}"', f'["{DIGEST}", "{new}"]') + 'send = ["*"]')
    assert {each.subject for each in grants.tokens.values()} == {"worker"}
    assert {each.hex() for each in grants.tokens} == {DIGEST, new}
    assert len({each.rights for each in grants.tokens.values()}) == 1


#: Mistakes, and what is said about each: its entry, and its rule.
MISTAKES: Final = {
    "no TOML": ("[[token", "not valid TOML"),
    "deep nesting": ("x = " + "[" * 5000, "not valid TOML"),
    "an unknown table": ("[admin]", "the file: there is no key 'admin'"),
    "an unknown key": (TOKEN + "reed = []", "[[token]] 1 ('worker'): there is no key 'reed'"),
    "one table": ("[token]", "token: must be written as [[token]]"),
    "a value": ("revoked = 1", "revoked: must be written as [[revoked]]"),
    "no table": ("anonymous = 1", "[anonymous]: must be a table"),
    "a right nobody has": ("[anonymous]\nops = 1", "[anonymous]: ops: must be true or false"),
    "a nameless subject": ('[anonymous]\nread = ["{sub}"]', "{sub} needs a token"),
    "no name": (f'[[token]]\nsha256 = "{DIGEST}"', "[[token]] 1: name: must be text"),
    "a number": (f'[[token]]\nname = 1\nsha256 = "{DIGEST}"', "name: must be text"),
    "an empty name": (f'[[token]]\nname = ""\nsha256 = "{DIGEST}"', "name: must be text"),
    "a star": (f'[[token]]\nname = "a*"\nsha256 = "{DIGEST}"', "must not have control"),
    "no hash": ('[[token]]\nname = "a"', "sha256: must be 64 hexadecimal digits"),
    "the token": ('[[token]]\nname = "a"\nsha256 = "cht_x"', "sha256: must be 64 hexadecimal"),
    "a hash twice": (
        TOKEN.replace(f'"{DIGEST}"', f'["{DIGEST}", "{DIGEST}"]'),
        "[[token]] 1 ('worker'): sha256: another token has it",
    ),
    "no hashes": ('[[token]]\nname = "a"\nsha256 = []', "sha256: must be 64 hexadecimal"),
    "a bad hash among others": (
        TOKEN.replace(f'"{DIGEST}"', f'["{DIGEST}", "x"]'),
        "sha256: must be 64 hexadecimal digits",
    ),
    "a repeated name": (
        TOKEN + TOKEN.replace("ab", "cd"),
        "[[token]] 2 ('worker'): name: another entry has it; an entry can list two hashes",
    ),
    "a repeated hash": (
        TOKEN + TOKEN.replace("worker", "eve"),
        "[[token]] 2 ('eve'): sha256: another token has it",
    ),
    "an inner star": (TOKEN + 'read = ["a*b"]', "read: 'a*b': may have one * only"),
    "two stars": (TOKEN + 'send = ["a**"]', "send: 'a**': may have one * only"),
    "an empty pattern": (TOKEN + 'send = [""]', "send: '': must be text of 1 to"),
    "no list": (TOKEN + 'send = "*"', "send: must be a list of patterns"),
    "numbers": (TOKEN + "send = [1]", "send: 1: must be text"),
    "a local time": (TOKEN + "until = 2027-01-01T00:00:00", "until: must be a time with an offset"),
    "a date": (TOKEN + "until = 2027-01-01", "until: must be a time with an offset"),
    "a time as text": (TOKEN + 'until = "2027"', "until: must be a time with an offset"),
    "no time": ('[[revoked]]\nsub = "eve"', "[[revoked]] 1 ('eve'): before: must be a time"),
    "nobody": ("[[revoked]]\nbefore = 2027-01-01T00:00:00Z", "[[revoked]] 1: sub: must be text"),
}


@pytest.mark.parametrize(("text", "said"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_names_its_entry_and_rule(text: str, said: str) -> None:
    with pytest.raises(TokenFileInvalid) as raised:
        parse(text)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)
    assert DIGEST not in str(raised.value)


def test_only_the_first_mistakes_are_listed() -> None:
    with pytest.raises(TokenFileInvalid, match="and 15 more mistakes") as raised:
        parse("[[token]]\n" * 10)
    assert str(raised.value).count(";") == 5


@pytest.mark.parametrize(
    ("pattern", "name", "fits"),
    [
        ("a", "a", True),
        ("a", "ab", False),
        ("a", "A", False),
        ("a*", "a", True),
        ("a*", "ab", True),
        ("a*", "b", False),
        ("*", "b", True),
        ("é", "e\u0301", False),
        ("team-*", "team-a", True),
        ("team-*", "Team-a", False),
        ("team-*", "team%2Da", False),
        ("team-*", "team", False),
    ],
)
def test_names_match_code_point_by_code_point(pattern: str, name: str, fits: bool) -> None:
    assert Rights(send=(pattern,)).allow("send", name) is fits
    assert Rights(read=(pattern,)).allow("read", name) is fits
    assert not Rights(send=(pattern,)).allow("read", name)


@pytest.mark.parametrize("subject", ["*", "eve*", ""])
def test_a_subject_never_becomes_a_wildcard(subject: str) -> None:
    assert resolve(["{sub}", "x-{sub}"], subject) == ()


def test_a_subject_within_a_pattern_is_literal() -> None:
    assert resolve(["{sub}-*", "*", "a"], "b*{sub}") == ("b*{sub}-*", "*", "a")
    assert not Rights(read=resolve(["{sub}-*"], "b*")).allow("read", "bob-1")
