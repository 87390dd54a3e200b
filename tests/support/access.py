"""Access files and tokens for tests."""

import os
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

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


def entry(name: str, more: str = "") -> str:
    """Return the entry of a holder, with more lines."""
    digest = sha256(TOKENS[name].encode()).hexdigest()
    return f'[[token]]\nname = "{name}"\nsha256 = "{digest}"\n{RIGHTS[name]}\n{more}\n'


def everybody(**more: str) -> str:
    """Return a file with all holders; some have more lines."""
    return "".join(entry(name, more.get(name, "")) for name in RIGHTS)


def write(path: Path, text: str) -> None:
    """Replace a file in one step, as a careful operator does."""
    new = path.with_suffix(".new")
    new.write_text(text, encoding="utf-8")
    new.chmod(0o600)
    os.replace(new, path)


def bearer(name: str) -> bytes:
    """Return the header with a holder's token; none for the name ''."""
    return f"Authorization: Bearer {TOKENS[name]}".encode() if name else b"X-Nothing: 1"
