"""The fast path and Tornado with access: who may do what, before and after a token is revoked.

As `tests.fuzz.paths`, with tokens of all kinds in the requests. Each case sends some requests, then
the access file changes, and then the case sends more on the same connections. A token of the first
half is revoked in the second one, and the other way round.
"""

import asyncio
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from hashlib import sha256
from pathlib import Path
from typing import Any

from tests.fuzz.fuzzer import Case
from tests.fuzz.inside import tokens_known
from tests.fuzz.mutation import pieces
from tests.fuzz.paths import Outcome, Paths, Side, outcome_on
from tests.fuzz.requests import LAST, Pipeline, requests_for
from tests.fuzz.wire import Wire
from tests.support.waiting import eventually

#: Names that tokens without all rights may use, and others.
_OPEN, _SHUT = "open-", "shut-"
_ALL, _NARROW, _SENDER, _READER, _NONE, _OLD = (f"cht_{each * 9}" for each in "abcdef")
#: Two tokens, of which one is valid in each half. A case has a placeholder of the same length.
_FLEETING = ("cht_even_even", "cht_odd__odd_")
_BEFORE, _AFTER = b"cht_<before>x", b"cht_<after>xx"


def _bearer(token: str | bytes) -> bytes:
    return b"Authorization: Bearer " + (token if isinstance(token, bytes) else token.encode())


#: Header lines. The first permits everything, and most requests shall be permitted.
_CREDENTIALS = (
    *(_bearer(_ALL),) * 6,
    *(_bearer(_BEFORE),) * 3,
    *(_bearer(_AFTER),) * 3,
    *map(_bearer, (_NARROW, _NARROW, _SENDER, _READER, _NONE, _OLD, "cht_unknown")),
    *(
        b"authorization: bearer  " + _ALL.encode(),
        b"AUTHORIZATION:Bearer " + _NARROW.encode() + b"\t ",
        b"Authorization: Basic YTpi",
        b"Authorization: Bearer",
        b"Authorization: Bearer a b",
        b"Authorization: Bearer \xff",
        b"Authorization: " + _ALL.encode(),
        b"Authorization:",
        b"Authorization: Bearer " + b"x" * 5000,
        _bearer(_ALL) + b"\r\n" + _bearer(_ALL),
        _bearer(_ALL) + b", Bearer " + _NARROW.encode(),
        b"Cookie: chat=" + _ALL.encode(),
        b"Cookie: a=b; chat=" + _ALL.encode() + b"\r\nSec-Fetch-Site: same-origin",
        b"Cookie: __Host-chat=" + _ALL.encode() + b"\r\nOrigin: http://a",
        b"Cookie: chat=" + _ALL.encode() + b"\r\nOrigin: http://evil.test",
        _bearer(_NARROW) + b"\r\nCookie: chat=" + _ALL.encode(),
        b"X: y",
    ),
)


def rules(fleeting: str) -> str:
    """Return an access file in which one of the fleeting tokens is valid."""
    tokens = (
        ("all", _ALL, '["*"]', '["*"]', ""),
        ("narrow", _NARROW, f'["{_OPEN}*"]', f'["{_OPEN}*"]', ""),
        ("sender", _SENDER, '["*"]', "[]", ""),
        ("reader", _READER, "[]", '["*"]', ""),
        ("none", _NONE, "[]", "[]", ""),
        ("old", _OLD, '["*"]', '["*"]', "until = 2020-01-01T00:00:00Z\n"),
        ("fleeting", fleeting, '["*"]', '["*"]', ""),
    )
    return "".join(
        f'[[token]]\nname = "{name}"\nsha256 = "{sha256(token.encode()).hexdigest()}"\n'
        f"send = {send}\nread = {read}\n{more}"
        for name, token, send, read, more in tokens
    )


class PathsWithAccess(Paths):
    """Compares the fast path with Tornado with access control."""

    name = "access"
    at_once = 60
    share = 3

    def _changes(self, stack: AsyncExitStack) -> dict[str, Any]:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="fuzz-access-"))
        self._file = Path(folder) / "access.toml"
        self._version = 0
        self._write()
        return {"access": "tokens", "access_file": str(self._file)}

    def _write(self) -> None:
        replacement = self._file.with_suffix(".new")
        replacement.write_text(rules(_FLEETING[self._version % 2]), encoding="utf-8")
        replacement.rename(self._file)

    async def _revoke(self) -> None:
        """Change the file, and wait until both services use it."""
        self._version += 1
        self._write()
        valid = sha256(_FLEETING[self._version % 2].encode()).digest()

        async def is_in_effect() -> bool:
            sides = (self._fast, self._slow)
            return all(valid in tokens_known(side.service) for side in sides)

        await eventually(is_in_effect, 20)
        self.tally["revocations"] += 1

    def _pipeline(self, case: Case) -> Pipeline:
        rng = case.rng
        names = [f"{_OPEN}{case.tag}", f"{_SHUT}{case.tag}", f"{_OPEN}{case.tag}\u00e9 /"]
        before, after = (requests_for(rng, names, _CREDENTIALS) for _ in range(2))
        if rng.random() < 0.1:
            # The file changes while a request is on its way.
            at = rng.randrange(len(after) + 1)
            before, after = before + after[:at], after[at:]
        return Pipeline(pieces(rng, before), pieces(rng, after + LAST))

    async def _exchange(
        self, lines: Sequence[Pipeline], quiet_s: float
    ) -> Sequence[tuple[Outcome, Outcome]]:
        lines = [_with_tokens(line, self._version) for line in lines]
        async with AsyncExitStack() as stack:

            async def connect(side: Side) -> list[Wire]:
                return [await stack.enter_async_context(side.connection()) for _ in lines]

            sides = [await connect(self._fast), await connect(self._slow)]

            async def send(half: Callable[[Pipeline], Sequence[bytes]]) -> list[list[Outcome]]:
                return await asyncio.gather(
                    *(
                        asyncio.gather(
                            *(
                                _outcome(wire, half(line), quiet_s)
                                for wire, line in zip(wires, lines, strict=True)
                            )
                        )
                        for wires in sides
                    )
                )

            await send(lambda line: line.segments)
            await self._revoke()
            fast, slow = await send(lambda line: line.later)
            return list(zip(fast, slow, strict=True))

    async def _shorten(self, case: Case, line: Pipeline, rule: str) -> Pipeline:
        # A shorter case would lose the place at which the file changes.
        return line


async def _outcome(wire: Wire, segments: Sequence[bytes], quiet_s: float) -> Outcome:
    await wire.send(segments)
    return await outcome_on(wire, quiet_s)


def _with_tokens(line: Pipeline, version: int) -> Pipeline:
    """Return a case with tokens instead of the placeholders, in segments of the same length."""
    before, after = (_FLEETING[each % 2].encode() for each in (version, version + 1))
    data = line.data.replace(_BEFORE, before).replace(_AFTER, after)
    cut, at = [], 0
    for segment in (*line.segments, *line.later):
        cut.append(data[at : at + len(segment)])
        at += len(segment)
    return Pipeline(cut[: len(line.segments)], cut[len(line.segments) :])
