"""The entries of the runbook in docs/operations.md, to which other parts of the service lead."""

import re
from collections.abc import Mapping
from typing import Final

from config.settings import PROJECT_ROOT

DOCUMENT: Final = PROJECT_ROOT / "docs/operations.md"
_SECTION: Final = re.compile(r"^## Runbook\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
_ENTRY: Final = re.compile(r"^### ([^\n]+)\n(.*?)(?=^### |\Z)", re.MULTILINE | re.DOTALL)


def slug(heading: str) -> str:
    """Return the anchor that forges make of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def section_of(document: str) -> str:
    """Return the section "Runbook" of a document, without its heading."""
    found = _SECTION.search(document)
    assert found is not None, "there is no section Runbook"
    return found[1]


def _entries() -> Mapping[str, str]:
    section = section_of(DOCUMENT.read_text(encoding="utf-8"))
    return {slug(heading): text for heading, text in _ENTRY.findall(section)}


#: The text of each entry, by its anchor.
ENTRIES: Final = _entries()
