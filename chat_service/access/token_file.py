"""The file of tokens and rights: parses it, and names the entry and the rule of each mistake.

    [anonymous]                    requests without a token; without this table, they are refused
    send = ["*"]
    [[token]]
    name = "worker"
    sha256 = "..."                 of the token, in hexadecimal digits; or a list, to replace it
    send = ["*"]
    read = ["jobs-*", "{sub}"]
    ops = false
    until = 2027-01-01T00:00:00Z
    [[revoked]]                    JSON Web Tokens that were issued before a time
    sub = "eve"
    before = 2026-11-27T00:00:00Z

`chat_service.access.control` reads the file; `chat_service.access.gate` uses the result.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from msgspec import Struct

from chat_service.access.patterns import SUBJECT_MAX, pattern_fault, resolve
from chat_service.api.identity import Identity, Rights

_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_TABLES = ("anonymous", "token", "revoked")
_RIGHTS = ("send", "read", "ops")
_TOKEN = ("name", "sha256", *_RIGHTS, "until")
_REVOKED = ("sub", "before")
#: The most mistakes in one message.
_SHOWN_MAX = 5


class TokenFileInvalid(Exception):
    """Raised for a file that breaks a rule. The message names the entries, and no secret."""


class Grants(Struct, frozen=True):
    """What one version of the file says.

    `tokens` maps the SHA-256 digest of a token to its identity. `revoked` maps a subject to a time
    in seconds since 1970: its tokens that were issued before are refused.
    """

    anonymous: Identity = Identity("", Rights())
    tokens: Mapping[bytes, Identity] = {}
    revoked: Mapping[str, float] = {}


def parse(text: str) -> Grants:
    """Return what a file says. Raises `TokenFileInvalid` with the first few mistakes."""
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise TokenFileInvalid(f"not valid TOML: {error or 'nested too deeply'}") from None
    reader = _Reader()
    grants = reader.read(document)
    if (count := len(reader.faults)) > _SHOWN_MAX:
        reader.faults[_SHOWN_MAX:] = [f"and {count - _SHOWN_MAX} more mistakes"]
    if reader.faults:
        raise TokenFileInvalid("; ".join(reader.faults))
    return grants


class _Reader:
    """Reads one document, and collects its mistakes."""

    def __init__(self) -> None:
        self.faults: list[str] = []

    def read(self, document: Mapping[str, Any]) -> Grants:
        self._reject_unknown("the file", document, _TABLES)
        anonymous = document.get("anonymous", {})
        if not isinstance(anonymous, dict):
            self.faults.append("[anonymous]: must be a table")
            anonymous = {}
        self._reject_unknown("[anonymous]", anonymous, _RIGHTS)
        rights = self._rights("[anonymous]", anonymous, "")
        return Grants(Identity("", rights), self._tokens(document), self._revoked(document))

    def _tokens(self, document: Mapping[str, Any]) -> Mapping[bytes, Identity]:
        tokens: dict[bytes, Identity] = {}
        names: set[str] = set()
        for where, entry in self._entries(document, "token", "name"):
            self._reject_unknown(where, entry, _TOKEN)
            name = self._name(where, entry, "name")
            if name and name in names:
                self.faults.append(
                    f"{where}: name: another entry has it; an entry can list two hashes"
                )
            names.add(name)
            rights = self._rights(where, entry, name)
            # An end of 0 would mean none.
            until = self._time(where, entry, "until") or -1.0 if "until" in entry else 0.0
            for digest in self._digests(where, entry):
                if digest in tokens:
                    self.faults.append(f"{where}: sha256: another token has it")
                tokens[digest] = Identity(name, rights, until, digest=digest)
        return tokens

    def _digests(self, where: str, entry: Mapping[str, Any]) -> Iterator[bytes]:
        """Yield the digests of an entry: one, or several while a token is being replaced."""
        given = entry.get("sha256")
        several = given if isinstance(given, list) and given else [given]
        for each in several:
            if isinstance(each, str) and _SHA256.fullmatch(each):
                yield bytes.fromhex(each)
            else:
                self.faults.append(f"{where}: sha256: must be 64 hexadecimal digits")

    def _revoked(self, document: Mapping[str, Any]) -> Mapping[str, float]:
        revoked: dict[str, float] = {}
        for where, entry in self._entries(document, "revoked", "sub"):
            self._reject_unknown(where, entry, _REVOKED)
            subject = self._name(where, entry, "sub")
            before = self._time(where, entry, "before")
            revoked[subject] = max(before, revoked.get(subject, 0.0))
        return revoked

    def _entries(
        self, document: Mapping[str, Any], table: str, key: str
    ) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield each entry of an array of tables, and what to call it."""
        entries = document.get(table, [])
        if not isinstance(entries, list) or not all(isinstance(each, dict) for each in entries):
            self.faults.append(f"{table}: must be written as [[{table}]]")
            return
        for number, entry in enumerate(entries, 1):
            name = entry.get(key)
            shown = f" ({name[:64]!a})" if isinstance(name, str) else ""
            yield f"[[{table}]] {number}{shown}", entry

    def _reject_unknown(self, where: str, entry: Mapping[str, Any], known: tuple[str, ...]) -> None:
        self.faults += [
            f"{where}: there is no key {key[:64]!a}; the keys are {', '.join(known)}"
            for key in entry
            if key not in known
        ]

    def _name(self, where: str, entry: Mapping[str, Any], key: str) -> str:
        name = entry.get(key)
        if not isinstance(name, str) or not 1 <= len(name) <= SUBJECT_MAX:
            self.faults.append(f"{where}: {key}: must be text of 1 to {SUBJECT_MAX} characters")
        elif _CONTROL.search(name) or (key == "name" and "*" in name):
            self.faults.append(f"{where}: {key}: must not have control characters or a *")
        else:
            return name
        return ""

    def _rights(self, where: str, entry: Mapping[str, Any], subject: str) -> Rights:
        ops = entry.get("ops", False)
        if not isinstance(ops, bool):
            self.faults.append(f"{where}: ops: must be true or false")
        send = self._patterns(where, entry, "send", subject)
        return Rights(send, self._patterns(where, entry, "read", subject), ops is True)

    def _patterns(
        self, where: str, entry: Mapping[str, Any], key: str, subject: str
    ) -> tuple[str, ...]:
        patterns = entry.get(key, [])
        if not isinstance(patterns, list):
            self.faults.append(f"{where}: {key}: must be a list of patterns")
            return ()
        faults = [
            f"{where}: {key}: {pattern!a:.64}: {reason}"
            for pattern in patterns
            if (reason := pattern_fault(pattern))
        ]
        if where == "[anonymous]" and any("{sub}" in str(pattern) for pattern in patterns):
            faults.append(f"{where}: {key}: {{sub}} needs a token, which has a name")
        self.faults += faults
        return () if faults else resolve(patterns, subject)

    def _time(self, where: str, entry: Mapping[str, Any], key: str) -> float:
        time = entry.get(key)
        if not isinstance(time, datetime) or time.tzinfo is None:
            self.faults.append(
                f"{where}: {key}: must be a time with an offset, such as 2027-01-01T00:00:00Z"
            )
            return 0.0
        return time.timestamp()
