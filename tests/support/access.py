"""Access files and tokens for tests."""

import os
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from urllib.parse import quote

from chat_service.service import Service
from tests.support.raw import Answer, Wire, get, message, post

#: Each path that a request can take, and the header that sends it there.
PATHS: Mapping[str, bytes] = {"fast": b"X-Path: fast", "tornado": b"TE: trailers"}
#: Tokens by the names of their holders, in the form that the service makes them.
TOKENS = {
    name: "cht_" + (name * 43)[:43]
    for name in ("alice", "bob", "eve", "team", "root", "idle", "nobody")
}
#: Rights by holder. `nobody` has a token that no file lists.
RIGHTS: Mapping[str, str] = {
    "alice": 'send = ["*"]\nread = ["{sub}"]',
    "bob": 'send = ["*"]\nread = ["{sub}"]',
    "eve": 'send = ["eve", "eve-*"]\nread = ["{sub}"]',
    "team": 'send = ["team-*"]\nread = ["team-*"]',
    "root": 'send = ["*"]\nread = ["*"]\nops = true',
    "idle": "",
}


def digest(name: str) -> str:
    """Return the digest of a holder's token, as the file has it."""
    return sha256(TOKENS[name].encode()).hexdigest()


def entry(name: str, rights: str) -> str:
    """Return the entry of a holder with these rights."""
    return f'[[token]]\nname = "{name}"\nsha256 = "{digest(name)}"\n{rights}\n'


def everybody(**changed: str) -> str:
    """Return a file with all holders; some have other rights, or no entry if these are `-`."""
    rights = {**RIGHTS, **changed}
    return "".join(entry(name, its) for name, its in rights.items() if its != "-")


def write(path: Path, text: str) -> None:
    """Replace a file in one step, as a careful operator does."""
    new = path.with_suffix(".new")
    new.write_text(text, encoding="utf-8")
    new.chmod(0o600)
    os.replace(new, path)


def bearer(name: str) -> bytes:
    """Return the header with a holder's token; none for the name ''."""
    return f"Authorization: Bearer {TOKENS[name]}".encode() if name else b"X-Nothing: 1"


def asked(name: str) -> Mapping[str, str]:
    """Return the headers of a holder for clients that take a mapping."""
    return {"Authorization": f"Bearer {TOKENS[name]}"}


def read(name: str, *headers: bytes, query: str = "") -> bytes:
    """Return a read of an inbox."""
    return get(f"/chat/{quote(name, safe='%')}{query}".encode(), *headers)


def send(name: str, *headers: bytes) -> bytes:
    """Return a post to an inbox."""
    return post(message(name, "hi"), *headers)


async def ask(service: Service, *sent: bytes) -> Answer:
    """Send requests on one connection. Return the last answer."""
    wire = Wire(service.port)
    connection = await wire.connect()
    for each in sent:
        answer = await connection.ask(each)
    await wire.close()
    return answer
