"""Writes REFERENCE.md from the docstrings of `chat_inbox`.

usage: PYTHONPATH=clients/python python clients/python/write_reference.py
"""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chat_inbox

FILE = Path(__file__).with_name("REFERENCE.md")
#: Sections, each with the names that it describes.
SECTIONS = {
    "The asyncio client": ("ChatClient", "Lease", "LeaseRequest", "Stream"),
    "The client for threads": ("SyncChatClient", "SyncLease", "SyncStream"),
    "Messages": ("Draft", "Posted", "Message", "Delivered", "Origin", "Status", "MessageStatus"),
    "Errors": (
        *("ChatError", "ProblemError", "FieldError", "Unauthorized", "Forbidden", "RateLimited"),
        *("InboxFull", "LeaseOver", "ServiceUnavailable", "OutcomeUnknown", "TokenUnavailable"),
        *("PlainHttpRefused", "ClientClosed"),
    ),
    "Constants and types": ("COUNT_MAX", "TokenSource", "AsyncTokenSource"),
}
#: Classes whose objects a user creates, or that have no more than their fields.
_CREATED = (
    *("ChatClient", "SyncChatClient", "Draft", "Posted", "Message", "Delivered", "Origin"),
    *("Status", "FieldError"),
)
_SPECIAL = ("__aiter__", "__iter__", "__anext__", "__next__")


def reference() -> str:
    """Return the page."""
    assert {*chat_inbox.__all__} == {"__version__"}.union(*SECTIONS.values())
    parts = ["# Reference of chat_inbox", "<!-- written by write_reference.py -->"]
    parts += [text(inspect.getdoc(chat_inbox.asynchronous)).partition("\n\n")[2]]
    for section, names in SECTIONS.items():
        parts.append(f"## {section}")
        for name in names:
            parts += about(name, getattr(chat_inbox, name))
    return "\n\n".join(parts) + "\n"


def about(name: str, thing: Any) -> Iterator[str]:
    """Yield the paragraphs about one name."""
    yield f"### {name}"
    if not inspect.isclass(thing):
        yield f"```python\n{name} = {shown(repr(thing)).replace(chr(39), chr(34))}\n```"
        return
    base = thing.__mro__[1].__name__
    if name in _CREATED:
        yield f"```python\n{name}{signature(thing).removesuffix(' -> None')}\n```"
    elif base != "object":
        yield f"```python\nclass {name}({base})\n```"
    yield text(inspect.getdoc(thing))
    for member, value in vars(thing).items():
        if member.startswith("_") and member not in _SPECIAL:
            continue
        doc = inspect.getdoc(value)
        if isinstance(value, property):
            yield f"#### {name}.{member}"
            yield text(doc)
        elif inspect.isfunction(value) and value.__doc__ and not value.__doc__.startswith("See `c"):
            word = "async def" if inspect.iscoroutinefunction(value) else "def"
            yield f"#### {name}.{member}"
            yield f"```python\n{word} {member}{signature(value)}\n```"
            yield text(doc)


def signature(thing: Any) -> str:
    """Return the parameters and the result of a function or a class."""
    try:
        found = inspect.signature(thing)
    except ValueError:
        return "()"
    parameters = [each for each in found.parameters.values() if each.name != "self"]
    plain = shown(str(found.replace(parameters=parameters)))
    if len(plain) < 80:
        return plain
    head, _, result = plain.rpartition(") -> ") if ") -> " in plain else (plain[:-1], "", "")
    # Commas between parameters are outside of brackets.
    fields = re.split(r", (?![^\[]*\])", head[1:])
    return "(\n    " + ",\n    ".join(fields) + ",\n)" + (f" -> {result}" if result else "")


def shown(code: str) -> str:
    """Return code without quotes around types and without module names."""
    code = re.sub(r"(?:chat_inbox\.\w+|collections\.abc|typing)\.", "", code)
    code = re.sub(r"ForwardRef\('([^']+)'\)", r"\1", code)
    return re.sub(r"(: |-> )'([^']+)'", r"\1\2", code)


def text(doc: str | None) -> str:
    """Return a docstring as Markdown."""
    return (doc or "").strip()


if __name__ == "__main__":
    FILE.write_text(reference(), encoding="utf-8")
