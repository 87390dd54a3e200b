"""Generates the table of settings in docs/settings.md. Run by `scripts/settings-table`."""

import sys
from pathlib import Path
from typing import Any

import msgspec

from config.load import in_words
from config.settings import PROJECT_ROOT, Settings

_BEGIN, _END = "<!-- settings: begin -->\n", "<!-- settings: end -->"


def markdown_table() -> str:
    """Return the table: the name, type and bounds, default and meaning of each setting."""
    rows = ["| setting | value | default | meaning |", "| --- | --- | --- | --- |"]
    for field in msgspec.structs.fields(Settings):
        meta = field.type.__metadata__[0]
        rows.append(
            f"| `{field.name}` | {in_words(field.name)} | {_default(field.default)} "
            f"| {meta.description} |"
        )
    return "\n".join(rows) + "\n"


def refresh(document: Path) -> None:
    """Replace the table between the marks in a file."""
    text = document.read_text(encoding="utf-8")
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    document.write_text(before + _BEGIN + markdown_table() + _END + after, encoding="utf-8")


def _default(value: Any) -> str:
    if isinstance(value, Path):
        value = value.relative_to(PROJECT_ROOT).as_posix()
    return f"`{value}`" if value not in ("", ()) else "none"


if __name__ == "__main__":
    refresh(PROJECT_ROOT / "docs" / "settings.md")
    sys.exit()
