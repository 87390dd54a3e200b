"""One term for each concept: no file uses a word that docs/glossary.md replaces."""

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
    r"\bboards?\b": "dashboard",
    r"\balarms?\b": "alert",
    r"\breckon": "count resolved writes",
    r"\bunsettled\b": "unacknowledged",
    r"\bbur(?:y|ied|ies)\b": "merge exited processes",
    r"\berring\b": "faulty",
    r"\bthe unasked\b|_unasked\b": "speculative requests",
    r"\bhandovers?\b": "handoff",
    r"\b(?:database|MongoDB|it|which) (?:is|was|were) away\b": "unavailable",
    # A JavaScript Promise is called that.
    r"(?<!new )\bpromis(?:e|es|ed|ing)\b(?!\.(?:all|race|resolve)\()": "guarantee",
    r"\b(?:who|what|which)ever\b": "a noun",
    r"\bis nobody\b": "disposable",
    r"\bcould not be told\b": "could not be delivered",
    r"\bmend(?:s|ed|ing)?\b": "fix",
    r"\bwhere (?:it|there) is (?:none|one|there)\b": "if there is one",
    r"\b(?:colour|behaviour|favour|licence|catalogue|grey)": "American spelling",
}
#: Files that quote the retired words.
_EXEMPT = ("tests/unit/test_language.py", "docs/glossary.md")
#: Files that may use a word: a severity of alerts, the values of a label, and a type of AWS.
_ALLOWED = {
    r"\balarms?\b": ("deploy/ecs/chat.yaml", "tests/deploy/ecs/"),
    r"\btickets?\b": (
        "deploy/prometheus/",
        "deploy/helm/chat-inbox/files/",
        "docs/operations.md",
        "chat_service/web/runbook.html",
    ),
    r"\breckon": ("docs/operations.md", "workers/store/lifecycle.py"),
}


def written() -> Iterator[Path]:
    """Yield all files with text for people."""
    for pattern in (
        "*.md",
        "docs/**/*.md",
        "clients/**/*.md",
        "deploy/**/*",
        "examples/*",
        "scripts/*",
        "*.yml",
        "*.ini",
        "Dockerfile",
        ".ci/*",
        ".github/**/*",
    ):
        yield from (path for path in PROJECT_ROOT.glob(pattern) if path.is_file())
    for package in ("chat_service", "workers", "config", "tests", "clients"):
        for suffix in ("py", "js", "html", "css"):
            yield from (PROJECT_ROOT / package).rglob(f"*.{suffix}")


@pytest.mark.parametrize("word", RETIRED)
def test_a_retired_word_is_not_used(word: str) -> None:
    pattern = re.compile(word, re.IGNORECASE)
    found = []
    for path in written():
        name = path.relative_to(PROJECT_ROOT).as_posix()
        if name in _EXEMPT or name.startswith(_ALLOWED.get(word, ())):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if match := pattern.search(line):
                found.append(f"{name}:{number}: {match[0]!r} (use {RETIRED[word]})")
    assert not found, "\n".join(found)
