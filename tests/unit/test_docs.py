"""Links between the documents work, and every code block is tested or says why not."""

import re
import subprocess
from collections import Counter
from fnmatch import fnmatch
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from config.settings import PROJECT_ROOT
from tests.support.blocks import blocks, documents

_FENCED = re.compile(r"^( *)```.*?^\1```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_IMAGE = re.compile(r"!\[([^\]]*)\]\(([^)\s]+)\)")
#: The files that commands create in the folder where they run.
_CREATED = re.compile(r"(?: > | -o |--add |-keyout |-out )([\w-][\w.-]*)(?=[\s)]|$)", re.MULTILINE)
_HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)


def prose(document: Path) -> str:
    """Return the text of a document without code."""
    return re.sub(r"`[^`]*`", "", _FENCED.sub("", document.read_text(encoding="utf-8")))


def anchors(document: Path) -> set[str]:
    """Return the anchors that forges make of headings; a repeated heading gets a number."""
    text = _FENCED.sub("", document.read_text(encoding="utf-8"))
    found: Counter[str] = Counter()
    made = set()
    for heading in _HEADING.findall(text):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        name = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        made.add(f"{name}-{found[name]}" if found[name] else name)
        found[name] += 1
    return made


NAMES = [path.relative_to(PROJECT_ROOT).as_posix() for path in documents()]


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_to_existing_files_and_headings(name: str) -> None:
    document = PROJECT_ROOT / name
    broken = []
    for link in _LINK.findall(prose(document)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


def is_complete(link: str) -> bool:
    """Return whether a link to another site has a scheme and the full name of a host."""
    try:
        parts = urlsplit(link)
        _ = parts.port
    except ValueError:
        return False
    host = parts.hostname or ""
    return parts.scheme in ("http", "https") and bool(re.fullmatch(r"[\w-]+(\.[\w-]+)+", host))


def test_links_to_other_sites_are_complete() -> None:
    links = [link for path in documents() for link in _LINK.findall(prose(path)) if ":" in link]
    assert links
    assert [link for link in links if not is_complete(link)] == []
    for wrong in ("https:/x.org", "https://", "http://x.org:port/", "https://x", "htps://x.org"):
        assert not is_complete(wrong)


def test_every_picture_has_a_description() -> None:
    pictures = [found for path in documents() for found in _IMAGE.findall(prose(path))]
    assert pictures
    assert [target for text, target in pictures if len(text) < 10] == []


def test_the_readme_leads_to_every_page() -> None:
    reached, ahead = set[Path](), [PROJECT_ROOT / "README.md"]
    while ahead:
        document = ahead.pop()
        if document.suffix == ".md" and document.exists() and document not in reached:
            reached.add(document)
            links = (link.partition("#")[0] for link in _LINK.findall(prose(document)))
            ahead += [(document.parent / link).resolve() for link in links if ":" not in link]
    assert set(documents()) <= reached


def test_the_readme_says_how_to_run_and_test_it() -> None:
    readme = (PROJECT_ROOT / "README.md").read_text(encoding="utf-8")
    assert "scripts/serve" in readme
    assert "scripts/test" in readme


def test_git_ignores_the_files_that_the_documents_create() -> None:
    lines = (PROJECT_ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    ignored = [line.removeprefix("/") for line in lines]
    found = [block for document in documents() for block in blocks(document)]
    created = {block.marks["file"] for block in found if "file" in block.marks}
    for block in found:
        if block.language != "python":
            created |= set(_CREATED.findall(block.text))
    assert {"access.toml", "worker.py", "ann.token", "mongo-uri", "answer.json"} <= created
    assert [name for name in created if not any(fnmatch(name, line) for line in ignored)] == []


def test_every_block_is_tested_or_says_why_not() -> None:
    found = [block for document in documents() for block in blocks(document)]
    left = Counter(block.marks["not run"] for block in found if "not run" in block.marks)
    run = len(found) - left.total()
    print(f"{len(found)} blocks, {run} of them run; not run:", *left.items())  # noqa: T201
    for block in found:
        if block.language == "python":
            compile(block.text, block.place, "exec", 0x2000)  # ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        elif block.language == "sh":
            subprocess.run(["bash", "-n"], input=block.text.encode(), check=True)
        elif "not run" not in block.marks:
            assert list(block.commands()), block.place
