"""The commands and programs in the documents: fenced blocks of `sh`, `console` and `python`.

A comment directly above a block describes how to run it:

- `<!-- not run: REASON -->`: it cannot be run as it is;
- `<!-- first: COMMAND -->`: run this command first; the document does not show it;
- `<!-- until Ctrl-C -->`: it runs until it is interrupted, after it has printed the shown output;
- `<!-- meanwhile -->`: it continues while the next block runs, and is checked after that;
- `<!-- service -->`: it starts a service, which later blocks use until the next such block;
- `<!-- file: NAME -->`: do not run it, but save it under this name for later blocks.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from config.settings import PROJECT_ROOT

LANGUAGES = ("sh", "console", "python")
_MARK = re.compile(r"<!-- (not run|first|until Ctrl-C|meanwhile|service|file)(?:: (.+))? -->")
_FENCE = re.compile(r"^( *)```(\w*)$")


@dataclass
class Block:
    """One block: the number of its first line, its text, and its marks."""

    document: Path
    line: int
    language: str
    text: str
    first: list[str] = field(default_factory=list)
    marks: dict[str, str] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """Its location, for people."""
        return f"{os.path.relpath(self.document, PROJECT_ROOT)}:{self.line}"

    def commands(self) -> Iterator[tuple[str, str]]:
        """Yield each command of a console with its output."""
        parts = re.split(r"^\$ ", self.text, flags=re.MULTILINE)
        assert not parts[0], f"{self.place}: a console begins with a command"
        for part in parts[1:]:
            lines = part.splitlines()
            end = next(n for n, line in enumerate(lines) if not line.endswith("\\"))
            yield "\n".join(lines[: end + 1]), "\n".join(lines[end + 1 :])


def documents() -> list[Path]:
    """Return all documents for people."""
    patterns = ("*.md", "docs/**/*.md", "examples/*.md")
    return sorted(path for pattern in patterns for path in PROJECT_ROOT.glob(pattern))


def blocks(document: Path) -> list[Block]:
    """Return a document's blocks in these languages, in order. Raise AssertionError for invalid
    marks.
    """
    found: list[Block] = []
    lines = document.read_text(encoding="utf-8").splitlines()
    number = 0
    while number < len(lines):
        fence = _FENCE.match(lines[number])
        if fence is None:
            number += 1
            continue
        end = next(n for n in range(number + 1, len(lines)) if lines[n].strip() == "```")
        if fence[2] in LANGUAGES:
            indent = len(fence[1])
            text = "".join(f"{line[indent:]}\n" for line in lines[number + 1 : end])
            block = Block(document, number + 2, fence[2], text)
            _read_marks(block, lines[:number])
            found.append(block)
        number = end + 1
    return found


def _read_marks(block: Block, above: list[str]) -> None:
    while above and above[-1].strip().startswith("<!--"):
        mark = _MARK.fullmatch(above.pop().strip())
        assert mark is not None, f"{block.place}: the comment above it is not a valid mark"
        kind, value = mark[1], mark[2] or ""
        assert bool(value) == (kind in ("not run", "first", "file")), f"{block.place}: {kind}"
        if kind == "first":
            block.first.insert(0, value)
        else:
            block.marks[kind] = value
