"""The table of settings in README.md, made from their types: `scripts/settings-table` writes it."""

import sys
from pathlib import Path
from typing import Any, get_args, get_origin

import msgspec

from config.load import plain_type
from config.settings import PROJECT_ROOT, Settings

_BEGIN, _END = "<!-- settings: begin -->\n", "<!-- settings: end -->"


def markdown_table() -> str:
    """A row for each setting: its name, type with bounds, default, and meaning."""
    rows = ["| setting | value | default | meaning |", "| --- | --- | --- | --- |"]
    for field in msgspec.structs.fields(Settings):
        meta = field.type.__metadata__[0]
        rows.append(
            f"| `{field.name}` | {_value(field.name, meta)} | {_default(field.default)} "
            f"| {meta.description} |"
        )
    return "\n".join(rows) + "\n"


def refresh(readme: Path) -> None:
    """Write the table between its marks in a file."""
    text = readme.read_text(encoding="utf-8")
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    readme.write_text(before + _BEGIN + markdown_table() + _END + after, encoding="utf-8")


def _value(name: str, meta: msgspec.Meta) -> str:
    kind: Any = plain_type(name)
    if get_origin(kind) is tuple:
        return "comma-separated list"
    if choices := get_args(kind):
        return ", ".join(f"`{choice}`" for choice in choices)
    word = {int: "integer", float: "number", str: "text", Path: "path"}[kind]
    if meta.gt is not None:
        word += f" above {meta.gt}"
    elif meta.ge is not None:
        word += f" from {meta.ge}"
    return f"{word} to {meta.le}" if meta.le is not None else word


def _default(value: Any) -> str:
    if isinstance(value, Path):
        value = value.relative_to(PROJECT_ROOT).as_posix()
    return f"`{value}`" if value not in ("", ()) else "none"


if __name__ == "__main__":
    refresh(PROJECT_ROOT / "README.md")
    sys.exit()
