"""One term for each concept: the words that docs/glossary.md replaces are not used."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from config.settings import PROJECT_ROOT

#: Each retired word, as a regular expression, and the term to use instead.
RETIRED = {
    r"\bon loan\b": "leased",
    r"\blen[dt]s?\b|\bborrow": "lease",
    r"\bchores?\b": "maintenance",
    r"\berrands?\b": "single-call command",
    r"\btickets?\b": "work item",
    r"\btether": "die with the parent",
    r"\bdirect way\b": "fast path",
    r"\bprivate (?:MongoDB|mongod)\b": "embedded MongoDB",
    r"\bthe board\b": "the dashboard",
    r"\b(?:database|MongoDB|it|which) (?:is|was|were) away\b": "unavailable",
    r"\bpromis(?:e|es|ed|ing)\b": "guarantee",
    r"\b(?:who|what|which|where|when)ever\b": "a noun",
    r"\bis nobody\b": "disposable",
    r"\bcould not be told\b": "could not be delivered",
    r"\bmend(?:s|ed|ing)?\b": "fix",
    r"\bwhere (?:it|there) is (?:none|one|there)\b": "if there is one",
    r"\b(?:colour|behaviour|favour|licence|catalogue|grey)": "American spelling",
}
#: Lines that quote a retired word, or mean another thing by it.
_EXEMPT = ("tests/unit/test_language.py", "docs/glossary.md")


def written() -> Iterator[Path]:
    """Everything that a person wrote to be read."""
    for pattern in (
        "*.md",
        "docs/**/*.md",
        "deploy/**/*",
        "scripts/*",
        "*.yml",
        "*.ini",
        "Dockerfile",
    ):
        yield from (path for path in PROJECT_ROOT.glob(pattern) if path.is_file())
    for package in ("chat_service", "workers", "config", "tests"):
        for suffix in ("py", "js", "html", "css"):
            yield from (PROJECT_ROOT / package).rglob(f"*.{suffix}")


@pytest.mark.parametrize("word", RETIRED)
def test_a_retired_word_is_not_used(word: str) -> None:
    pattern = re.compile(word, re.IGNORECASE)
    found = []
    for path in written():
        name = path.relative_to(PROJECT_ROOT).as_posix()
        if name in _EXEMPT:
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if match := pattern.search(line):
                found.append(f"{name}:{number}: {match[0]!r} (use {RETIRED[word]})")
    assert not found, "\n".join(found)
