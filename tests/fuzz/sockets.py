"""WebSockets of a real service, with valid and invalid frames, while messages arrive.

Each case has its own inbox, to which it posts, and up to two sockets at a time, on which it
acknowledges, violates the protocol, stalls and closes in any order. Judged are the close codes and
every message: none is altered, none is on two sockets at once, no acknowledged message is delivered
again, and all others become unread again in the end. Afterwards the service must hold nothing open.
"""

import asyncio
import json
import random
import resource
from collections.abc import Callable, Sequence
from typing import NamedTuple

from chat_service.service import Service
from config import Settings
from tests.fuzz import frames
from tests.fuzz.fuzzer import Case, Finding, Fuzzer
from tests.fuzz.inside import held_open
from tests.fuzz.mutation import mutate, pieces
from tests.fuzz.wire import Wire
from tests.support.raw import errors_logged

#: The longest wait on a busy machine, in seconds. Anything that takes longer counts as missing.
_PATIENCE_S = 20.0
#: KiB by which this process, with service and fuzzer, may grow after the warm-up.
_GROWTH_MAX_KIB = 150 << 10
_WARM_ROUNDS = 3
#: The receive buffer of a slow socket, in bytes.
_SMALL_BUFFER = 4096


class Broken(Exception):
    """A rule was broken: which one, and what was seen."""

    def __init__(self, rule: str, seen: str) -> None:
        super().__init__(rule)
        self.rule, self.seen = rule, seen


class Violation(NamedTuple):
    """Bytes that violate the protocol, and the close codes of which one must be the answer."""

    name: str
    data: bytes
    codes: frozenset[int]


def violation(rng: random.Random) -> Violation:
    """Return frames that no client may send. Masked frames have random masks."""

    def frame(opcode: int, data: bytes, **odd: int | bool) -> bytes:
        return frames.encode(rng, opcode, data, **odd)  # type: ignore[arg-type]

    text, cont, ping, close = frames.TEXT, frames.CONT, frames.PING, frames.CLOSE
    bad = {
        "reserved bits": (1002, frame(text, b"x", reserved=rng.randrange(1, 8))),
        "an unknown opcode": (1002, frame(rng.choice((3, 4, 5, 6, 7, 11, 12, 13, 14, 15)), b"x")),
        "no mask": (1002, frame(text, b"x", is_masked=False)),
        "a control frame in fragments": (1002, frame(ping, b"x", is_final=False)),
        "a long control frame": (1002, frame(ping, b"x" * 126)),
        "a continuation without a message": (1002, frame(cont, b"x")),
        "a message in a message": (1002, frame(text, b"x", is_final=False) + frame(text, b"x")),
        "a truncated code": (1002, frame(close, b"\x03")),
        "an invalid code": (
            1002,
            frame(close, rng.choice((b"\x03\xe7", b"\x03\xed", b"\0\0"))),
        ),
        "a reason that is not UTF-8": (1007, frame(close, b"\x03\xe8\xff")),
        "a binary message": (1003, frame(frames.BINARY, rng.randbytes(9))),
        "no UTF-8": (1007, frame(text, rng.choice((b"\xff", b"\xed\xa0\x80", b'{"a\xc3"}')))),
        "no UTF-8, in fragments": (
            1007,
            frame(text, b"\xe2\x82", is_final=False) + frame(cont, b"x"),
        ),
        "a long message": (1009, frame(text, b"x" * (16385 + rng.randrange(3000)))),
        "a length beyond all bounds": (
            1009,
            frame(text, b"", declared=1 << rng.choice((15, 40, 62))),
        ),
        "long fragments": (
            1009,
            frame(text, b"x" * 9000, is_final=False) + frame(cont, b"x" * 9000),
        ),
        "many fragments": (
            1009,
            frame(text, b"x", is_final=False) + frame(cont, b"", is_final=False) * 30,
        ),
        "a flood": (1008, frame(ping, b"") * 3000),
    }
    name = rng.choice(sorted(bad))
    code, data = bad[name]
    return Violation(name, data, frozenset({code}))


class Peer:
    """The client's side of one socket, and its knowledge."""

    def __init__(self, wire: Wire, rng: random.Random) -> None:
        self.wire = wire
        self.rng = rng
        #: Ids in order of delivery, and how many of them may be, and certainly are, acknowledged.
        self.delivered: list[str] = []
        self.acked = self.acked_for_certain = 0
        self.texts: dict[str, str] = {}
        self.pongs: set[bytes] = set()
        self.code: int | None = None
        self.is_ending = self.is_paused = False

    def read(self) -> None:
        """Process the received frames."""
        for opcode, is_final, data in frames.decode(self.wire.received):
            if not is_final or opcode not in (frames.TEXT, frames.CLOSE, frames.PING, frames.PONG):
                raise Broken("frames of the service", f"opcode {opcode}, final {is_final}")
            if opcode == frames.PONG:
                self.pongs.add(data)
            elif opcode == frames.CLOSE:
                self.code = int.from_bytes(data[:2], "big") if data else 1005
                data[2:].decode()
            elif opcode == frames.TEXT:
                self._take(json.loads(data.decode()))

    async def until(self, check: Callable[[], bool], within_s: float = _PATIENCE_S) -> bool:
        """Read until `check` returns true. Return False if it never does."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within_s
        while True:
            self.read()
            if check():
                return True
            if self.wire.is_closed or loop.time() > deadline:
                return False
            await self.wire.news(0.5)

    async def send(self, data: bytes, *, is_cut: bool = True) -> None:
        """Send these bytes, cut into segments like on a network."""
        await self.wire.send(pieces(self.rng, data) if is_cut and len(data) < 4000 else [data])

    async def acknowledge(self, upto: int, in_fragments: bool) -> None:
        """Acknowledge the first `upto` delivered messages."""
        ack = json.dumps({"type": "ack", "id": self.delivered[upto - 1]}).encode()
        parts = [ack]
        if in_fragments:
            at = self.rng.randrange(len(ack))
            parts = [ack[:at], b"", ack[at:]]
        data = b""
        for number, part in enumerate(parts):
            opcode = frames.CONT if number else frames.TEXT
            is_last = number == len(parts) - 1
            data += frames.encode(self.rng, opcode, part, is_final=is_last)
            if not is_last:
                data += frames.encode(self.rng, frames.PING, b"between")
        self.acked = max(self.acked, upto)
        await self.send(data)

    async def sync(self) -> None:
        """Wait until the service has handled everything sent before."""
        mark = self.rng.randbytes(8)
        await self.send(frames.encode(self.rng, frames.PING, mark))
        if not await self.until(lambda: mark in self.pongs):
            raise Broken("a ping is answered", f"closed: {self.wire.is_closed}, code {self.code}")
        self.acked_for_certain = self.acked

    def pause(self, is_paused: bool) -> None:
        """Stop reading for a while, or continue."""
        if is_paused != self.is_paused:
            self.is_paused = is_paused
            (self.wire.pause if is_paused else self.wire.resume)()

    def _take(self, said: dict[str, str]) -> None:
        if said["type"] == "message":
            self.delivered.append(said["id"])
            self.texts[said["id"]] = said["text"]
        elif said["type"] != "error":
            raise Broken("the messages of the service", str(said))


class Session:
    """One case: its posts, its sockets, and the expected results."""

    def __init__(self, case: Case, port: int) -> None:
        self._rng = case.rng
        self._tag = case.tag
        self._port = port
        self._posted: dict[str, str] = {}
        self._peers: list[Peer] = []
        self._http: Wire
        self.done: list[str] = []

    async def run(self) -> None:
        """Act at random, close everything, and judge the remaining messages. Raises `Broken`."""
        self._http = await Wire.connect(self._port)
        try:
            await self._open()
            for _ in range(self._rng.randrange(4, 25)):
                await self._act()
                self._judge_deliveries()
            for peer in self._peers:
                await self._end(peer)
            await self._judge_what_is_left()
        finally:
            for peer in self._peers:
                peer.wire.close()
            self._http.close()

    async def _act(self) -> None:
        rng = self._rng
        open_ = [peer for peer in self._peers if not peer.is_ending]
        kind = rng.choices(
            ("post", "ack", "sync", "open", "end", "stall", "oddity", "violation", "pause"),
            (6, 6, 3, 2, 1, 1, 3, 1, 2),
        )[0]
        self.done.append(kind)
        if kind == "post":
            await self._post(rng.choice((1, 1, 2, 5)), rng.choice((1, 10, 10, 20000)))
            if open_ and rng.random() < 0.7:
                await self._await_all(open_)
        elif kind == "open":
            if len(open_) < 2:
                await self._open()
        elif open_:
            peer = rng.choice(open_)
            await getattr(self, f"_{kind}")(peer)

    async def _ack(self, peer: Peer) -> None:
        if peer.delivered and not peer.is_paused:
            upto = self._rng.choice(
                (len(peer.delivered), self._rng.randrange(len(peer.delivered)) + 1)
            )
            await peer.acknowledge(upto, self._rng.random() < 0.3)

    async def _sync(self, peer: Peer) -> None:
        peer.pause(False)
        await peer.sync()

    async def _pause(self, peer: Peer) -> None:
        await asyncio.sleep(self._rng.choice((0, 0.001, 0.02)))

    async def _stall(self, peer: Peer) -> None:
        peer.pause(not peer.is_paused)

    async def _oddity(self, peer: Peer) -> None:
        """Send something that is neither an acknowledgement nor a violation."""
        rng = self._rng
        text = rng.choice(
            (b"", b"{}", b"[]", b'{"type": "ack"}', b'{"type": "ack", "id": "nothing"}', b"[" * 999)
        )
        if rng.random() < 0.3:
            text = mutate(rng, text, 2).decode("utf-8", "replace").encode()
        ping = frames.encode(rng, rng.choice((frames.PING, frames.PONG)), rng.randbytes(5))
        await peer.send(rng.choice((ping, frames.encode(rng, frames.TEXT, text))))

    async def _violation(self, peer: Peer) -> None:
        broken = violation(self._rng)
        self.done.append(broken.name)
        peer.is_ending = True
        peer.pause(False)
        await peer.send(broken.data, is_cut=self._rng.random() < 0.5)
        if not await peer.until(lambda: peer.code is not None):
            raise Broken("a violation is answered with a code", f"{broken.name}: none came")
        if peer.code not in broken.codes:
            raise Broken(
                "the code of a violation", f"{broken.name}: {peer.code}, not {set(broken.codes)}"
            )
        peer.wire.close()

    async def _end(self, peer: Peer) -> None:
        """Close the socket, properly or not."""
        rng = self._rng
        if peer.is_ending:
            return
        peer.is_ending = True
        how = rng.choice(("in order", "in order", "half", "closed", "reset", "in a frame"))
        self.done.append(how)
        if how == "in order":
            peer.pause(False)
            code = rng.choice((b"", b"\x03\xe8", b"\x03\xe9going", b"\x0f\xa0"))
            await peer.send(frames.encode(rng, frames.CLOSE, code))
            if not await peer.until(lambda: peer.code is not None):
                raise Broken("a close frame is answered", "none came")
            peer.acked_for_certain = peer.acked
        elif how == "half":
            peer.pause(False)
            peer.wire.half_close()
            if not await peer.wire.until_closed(_PATIENCE_S):
                raise Broken("a half-closed connection is closed", "it stays open")
        elif how == "in a frame":
            whole = frames.encode(rng, frames.TEXT, b"x" * 200)
            await peer.send(whole[: rng.randrange(len(whole))])
        peer.wire.close(by_reset=how == "reset")

    async def _open(self) -> None:
        wire = await Wire.connect(self._port, self._rng.choice((0, 0, 0, _SMALL_BUFFER)))
        await wire.send(pieces(self._rng, frames.HANDSHAKE % self._tag.encode()))
        if not await wire.until(b"\r\n\r\n", _PATIENCE_S):
            raise Broken("a handshake is answered", repr(bytes(wire.received)))
        head, _, rest = bytes(wire.received).partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 101 "):
            raise Broken("a handshake is accepted", repr(head))
        wire.received[:] = rest
        self._peers.append(Peer(wire, self._rng))

    async def _post(self, count: int, size: int) -> None:
        for _ in range(count):
            text = f"{len(self._posted)}:" + "x" * self._rng.randrange(size)
            body = json.dumps({"text": text, "username": self._tag, "timeout": 3000}).encode()
            head = b"POST /chat HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"
            answer = await self._ask(head % len(body) + body)
            self._posted[json.loads(answer)["id"]] = text

    async def _ask(self, request: bytes, tries: int = 10) -> bytes:
        """Send a request that must succeed, and return the body of the answer."""
        wire = self._http
        wire.received.clear()
        await wire.send([request])
        if not await wire.until(b"\r\n\r\n", _PATIENCE_S):
            raise Broken("a request is answered", f"closed: {wire.is_closed}")
        head, _, body = bytes(wire.received).partition(b"\r\n\r\n")
        if head.startswith(b"HTTP/1.1 503 ") and tries:
            # A machine that is too busy may refuse.
            await asyncio.sleep(1)
            return await self._ask(request, tries - 1)
        if head[:12] not in (b"HTTP/1.1 200", b"HTTP/1.1 201"):
            raise Broken("a valid request succeeds", repr(head))
        length = int(head.partition(b"Content-Length: ")[2].split(b"\r\n")[0])
        while len(body) < length:
            if not await wire.news(_PATIENCE_S):
                raise Broken("an answer is complete", repr(head))
            body = bytes(wire.received).partition(b"\r\n\r\n")[2]
        return body

    async def _await_all(self, peers: Sequence[Peer]) -> None:
        """Wait briefly until posted messages have arrived at a client that reads."""
        known = {each for peer in self._peers for each in peer.delivered}

        def is_known_to(peer: Peer) -> Callable[[], bool]:
            return lambda: set(self._posted) <= known | set(peer.delivered)

        for peer in peers:
            if not peer.is_paused:
                await peer.until(is_known_to(peer), 0.2)

    def _judge_deliveries(self) -> None:
        """Check that no message is altered, unknown, or on two sockets at once."""
        held: dict[str, Peer] = {}
        certain = self._certain()
        for peer in self._peers:
            if not peer.is_ending:
                peer.read()
            for number, each in enumerate(peer.delivered):
                if self._posted.get(each, peer.texts[each]) != peer.texts[each]:
                    raise Broken("a text is not altered", each)
                if peer.is_ending or number < peer.acked:
                    continue
                if each in held:
                    raise Broken("a message is on one socket at a time", each)
                if each in certain and certain[each] is not peer:
                    raise Broken("an acknowledged message is never delivered again", each)
                held[each] = peer
            if len(set(peer.delivered)) < len(peer.delivered):
                raise Broken("an open socket gets a message once", str(peer.delivered))

    def _certain(self) -> dict[str, Peer]:
        return {
            each: peer for peer in self._peers for each in peer.delivered[: peer.acked_for_certain]
        }

    async def _judge_what_is_left(self) -> None:
        """Check that exactly the unacknowledged messages are unread again."""
        perhaps = {each for peer in self._peers for each in peer.delivered[: peer.acked]}
        certain = self._certain()
        missing = set(self._posted) - perhaps
        read: list[str] = []
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _PATIENCE_S
        while missing - set(read) and loop.time() < deadline:
            got = await self._ask(
                b"GET /chat/%b?wait=0.5&limit=50 HTTP/1.1\r\nHost: a\r\n\r\n" % self._tag.encode()
            )
            read += [message["id"] for message in json.loads(got)]
        got = await self._ask(
            b"GET /chat/%b?limit=50 HTTP/1.1\r\nHost: a\r\n\r\n" % self._tag.encode()
        )
        read += [message["id"] for message in json.loads(got)]
        if lost := missing - set(read):
            raise Broken(
                "an unacknowledged message becomes unread again",
                f"{len(lost)} lost: {sorted(lost)}",
            )
        if len(set(read)) < len(read):
            raise Broken("a message is read once", str(read))
        if again := set(certain) & set(read):
            raise Broken("an acknowledged message is never delivered again", str(sorted(again)))


class Sockets(Fuzzer):
    """WebSockets of one real service."""

    name = "sockets"
    at_once = 25
    share = 3

    async def __aenter__(self) -> "Sockets":
        self._service = Service(
            Settings(
                port=0,
                mongo_uri=self.mongo_uri,
                mongo_database="fuzz_sockets",
                log_requests_per_s=0,
                allowed_hosts=("a",),
            )
        )
        await self._service.start()
        self._rounds = self._warm_kib = 0
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._service.stop()

    async def judge(self, cases: Sequence[Case]) -> list[Finding]:
        """Run these cases at the same time."""
        with errors_logged() as errors:
            found = await asyncio.gather(*(self._run(case) for case in cases))
            findings = [finding for each in found for finding in each]
            left = await self._left_behind()
        what = [("an error was logged", str(error)) for error in errors]
        what += [("the service holds nothing open", left)] if left else []
        if what and len(cases) > 1:
            # Any of the cases may be the cause. Run each alone; if none shows it, report the first.
            for case in cases:
                findings += await self.judge([case])
            if not findings:
                findings = [
                    Finding(cases[0], rule, f"of {len(cases)}: {seen}") for rule, seen in what
                ]
        else:
            findings += [Finding(cases[0], rule, seen) for rule, seen in what]
        self.tally["cases"] += len(cases)
        return findings

    async def _run(self, case: Case) -> list[Finding]:
        session = Session(case, self._service.port)
        try:
            await session.run()
        except Broken as broken:
            return [Finding(case, broken.rule, f"{broken.seen}\nafter {', '.join(session.done)}")]
        except Exception as error:
            seen = f"{type(error).__name__}: {error}\nafter {', '.join(session.done)}"
            return [Finding(case, "the frames of the service are valid", seen)]
        finally:
            self.tally.update(session.done)
        return []

    async def _left_behind(self) -> str:
        """Return what the service still holds after some time, or an empty string."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _PATIENCE_S
        while (held := held_open(self._service)) and loop.time() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        left = [f"{count} {what}" for what, count in held.items()]
        wire = await Wire.connect(self._service.port)
        await wire.send([b"GET /livez HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"])
        if not await wire.until_closed(_PATIENCE_S) or b" 200 OK" not in wire.received:
            left.append("/livez was not answered")
        self._rounds += 1
        # The peak memory; the current one does not show whether the allocator returned it.
        highest_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if self._rounds == _WARM_ROUNDS:
            self._warm_kib = highest_kib
        if self._rounds > _WARM_ROUNDS and highest_kib > self._warm_kib + _GROWTH_MAX_KIB:
            left.append(f"{highest_kib - self._warm_kib} KiB more than after the warm-up")
        return ", ".join(left)
