"""Makes the page `/ops/runbook` from docs/operations.md: `python -m tests.pages.runbook_page`.

It is the section "Runbook". A heading of that section becomes an entry with an anchor, the same as
on a forge. Links to other sections and documents become text, because the service does not serve
these.
"""

import html
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from markdown_it import MarkdownIt
from markdown_it.token import Token

from config.settings import PROJECT_ROOT
from tests.support.runbook import DOCUMENT, section_of, slug

PAGE: Final = PROJECT_ROOT / "chat_service/web/runbook.html"
_PARSER: Final = MarkdownIt("commonmark", {"html": False}).enable("table")
_COMMENT: Final = re.compile(r"^ *<!-- .* -->\n", re.MULTILINE)
_HEAD: Final = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Runbook · Chat inbox</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="../assets/favicon.svg" type="image/svg+xml">
<link rel="stylesheet" href="../assets/base.css">
<link rel="stylesheet" href="../assets/runbook.css">
</head>
<!-- Made from docs/operations.md by tests/pages/runbook_page.py. -->
<body>
<a class="skip" href="#main">Skip to the content</a>
<header class="site">
  <div>
    <a class="brand" href=".././">
      <img src="../assets/favicon.svg" alt="" width="26" height="26"> Chat inbox</a>
    <nav aria-label="Pages"><a href="../docs">API</a> <a href="../ops">Dashboard</a></nav>
  </div>
</header>
<main id="main" class="page runbook" tabindex="-1">
<h1>Runbook</h1>
"""
_TAIL: Final = "</main>\n</body>\n</html>\n"
_UP: Final = '<p class="small"><a href="#symptoms">All symptoms</a></p>\n'


def make_page(document: str) -> str:
    """Return the page for the section in the text of a document."""
    tokens = _PARSER.parse(_COMMENT.sub("", section_of(document)))
    headings = [
        tokens[position + 1].content
        for position, token in enumerate(tokens)
        if token.type == "heading_open" and token.tag == "h3"
    ]
    _rewrite(tokens, {f"#{slug(heading)}" for heading in headings})
    entries = "".join(_entries(tokens, headings))
    return f"{_HEAD}{entries}{_TAIL}"


def _entries(tokens: Sequence[Token], headings: Sequence[str]) -> Iterator[str]:
    """Yield the introduction, the list of all entries, and each entry."""
    starts = [
        position
        for position, token in enumerate(tokens)
        if token.type == "heading_open" and token.tag == "h3"
    ]
    # A reader with a symptom looks for it first.
    first = next(n for n, token in enumerate(tokens) if token.type == "paragraph_close") + 1
    yield _render(tokens[:first])
    links = (f'<li><a href="#{slug(each)}">{html.escape(each)}</a></li>\n' for each in headings)
    yield f'<nav id="symptoms" aria-label="Symptoms"><ul>\n{"".join(links)}</ul></nav>\n'
    yield _render(tokens[first : starts[0]])
    for heading, start, end in zip(headings, starts, [*starts[1:], len(tokens)], strict=True):
        body = _render(tokens[start + 3 : end])
        anchor = slug(heading)
        yield (
            f'<section class="card" aria-labelledby="{anchor}">\n'
            f'<h2 id="{anchor}">{html.escape(heading)}</h2>\n{body}{_UP}</section>\n'
        )


def _render(tokens: Sequence[Token]) -> str:
    # What does not fit on the screen can be scrolled, also with the keyboard.
    return (
        str(_PARSER.renderer.render(tokens, _PARSER.options, {}))
        .replace("<pre>", '<pre tabindex="0">')
        .replace(
            "<table>", '<div class="wide" tabindex="0" role="group" aria-label="Table"><table>'
        )
        .replace("</table>", "</table></div>")
    )


def _rewrite(tokens: Sequence[Token], anchors: set[str]) -> None:
    """Turn links that lead out of the section into text that names the document."""
    for token in tokens:
        children = token.children or []
        target: str | None = None
        for child in children:
            if child.type == "link_open":
                href = str(child.attrGet("href"))
                if href not in anchors:
                    target = href.partition("#")[0] or DOCUMENT.name
                    child.type, child.tag, child.nesting, child.content = "text", "", 0, ""
            elif child.type == "link_close" and target is not None:
                path = (DOCUMENT.parent / target).resolve().relative_to(PROJECT_ROOT.resolve())
                child.type, child.tag, child.nesting = "text", "", 0
                child.content = f" ({path.as_posix()})"
                target = None


def main(page: Path = PAGE) -> None:
    """Write the page."""
    page.write_text(make_page(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
