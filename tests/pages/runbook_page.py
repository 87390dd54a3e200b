"""Makes the page `/ops/runbook` from docs/operations.md: `python -m tests.pages.runbook_page`.

It is the section "Runbook". A heading of that section becomes an entry with an anchor, the same as
on a forge. The sections of this and of other documents to which entries lead are below them, since
the page must be enough at night. Links from there to yet other sections become text.
"""

import html
import re
from collections.abc import Iterator, Mapping, Sequence
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
_BACKGROUND: Final = """\
<h2>What the entries refer to</h2>
<p>These are parts of the documentation. Names such as docs/api.md are files of the source code;
<code>scripts/docs-site</code> makes a website of them.</p>
"""
#: Links to parts of the documentation that the service has as pages of its own.
_PAGES: Final = {"#the-dashboard": "../ops", "#runbook": "#symptoms"}
_UP: Final = '<p class="small"><a href="#symptoms">All symptoms</a></p>\n'


def make_page(document: str) -> str:
    """Return the page for the section in the text of a document."""
    tokens = _PARSER.parse(_COMMENT.sub("", section_of(document)))
    headings = [
        tokens[position + 1].content
        for position, token in enumerate(tokens)
        if token.type == "heading_open" and token.tag == "h3"
    ]
    entries = {f"#{slug(heading)}" for heading in headings}
    anchors = {href: href for href in entries} | _PAGES
    sections = [href for href in dict.fromkeys(_hrefs(tokens)) if href not in anchors]
    anchors |= {href: _anchor(href) for href in sections}
    _rewrite(tokens, anchors)
    body = "".join([*_entries(tokens, headings), *_background(sections, anchors)])
    return f"{_HEAD}{body}{_TAIL}"


def _hrefs(tokens: Sequence[Token]) -> Iterator[str]:
    for token in tokens:
        for child in token.children or []:
            if child.type == "link_open":
                yield str(child.attrGet("href"))


def _anchor(href: str) -> str:
    """Return the anchor on the page of a section that an entry leads to."""
    name, _, anchor = href.partition("#")
    return f"#{(name or DOCUMENT.name).removesuffix('.md')}-{anchor}"


def _background(sections: Sequence[str], anchors: Mapping[str, str]) -> Iterator[str]:
    """Yield the sections of the documents, each with the name of its document.

    A section that is part of another one is shown there only.
    """
    yield _BACKGROUND
    found = {href: _section(href) for href in sections}
    parts = {part for href, (_, tokens) in found.items() for part, _ in _parts(href, tokens)}
    for href, (heading, tokens) in found.items():
        if href in parts:
            continue
        for part, token in _parts(href, tokens):
            if part in anchors:
                token.attrSet("id", anchors[part][1:])
        path = _path_of(href)
        # Links in another document are relative to it.
        known = {_relative(each, path.name): target for each, target in anchors.items()}
        _rewrite(tokens, known, path)
        place = path.relative_to(PROJECT_ROOT).as_posix()
        yield (
            f'<section class="card" id="{anchors[href][1:]}">\n'
            f"<h3>{html.escape(heading)}</h3>\n"
            f'<p class="small">From {place}</p>\n{_render(tokens)}{_UP}</section>\n'
        )


def _path_of(href: str) -> Path:
    return DOCUMENT.parent / (href.partition("#")[0] or DOCUMENT.name)


def _section(href: str) -> tuple[str, list[Token]]:
    """Return the heading of a section of a document and what is below it."""
    text = _path_of(href).read_text(encoding="utf-8")
    return _cut(_PARSER.parse(_COMMENT.sub("", text)), href.partition("#")[2])


def _parts(href: str, tokens: Sequence[Token]) -> Iterator[tuple[str, Token]]:
    """Yield the lesser headings of a section: the link to each, and its token."""
    for position, token in enumerate(tokens):
        if token.type == "heading_open":
            yield f"{href.partition('#')[0]}#{slug(tokens[position + 1].content)}", token


def _cut(tokens: list[Token], anchor: str) -> tuple[str, list[Token]]:
    """Return the heading of a section and what is below it, with lesser headings as lines."""
    start = next(
        position
        for position, token in enumerate(tokens)
        if token.type == "heading_open" and slug(tokens[position + 1].content) == anchor
    )
    level = tokens[start].tag
    following = range(start + 3, len(tokens))
    ends = (n for n in following if tokens[n].type == "heading_open" and tokens[n].tag <= level)
    body = tokens[start + 3 : next(ends, len(tokens))]
    for token in body:
        # The alignment of a column would be a style, which the page's policy forbids.
        token.attrs.pop("style", None)
        if token.type in ("heading_open", "heading_close"):
            token.tag = "h4"
    return tokens[start + 1].content, body


def _relative(href: str, name: str) -> str:
    """Return how the document with a name writes a link that operations.md writes as `href`."""
    document, _, anchor = href.partition("#")
    document = document or DOCUMENT.name
    return f"{'' if document == name else document}#{anchor}"


def _entries(tokens: Sequence[Token], headings: Sequence[str]) -> Iterator[str]:
    """Yield the introduction, the table of all entries, and each entry."""
    starts = [
        position
        for position, token in enumerate(tokens)
        if token.type == "heading_open" and token.tag == "h3"
    ]
    # A reader with a symptom looks for it first.
    first = next(n for n, token in enumerate(tokens) if token.type == "table_open")
    end = next(n for n, token in enumerate(tokens) if token.type == "table_close") + 1
    yield _render(tokens[:first])
    table = _render(tokens[first:end])
    yield f'<nav id="symptoms" aria-label="Symptoms">\n{table}</nav>\n'
    yield _render(tokens[end : starts[0]])
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


def _rewrite(
    tokens: Sequence[Token], anchors: Mapping[str, str], document: Path = DOCUMENT
) -> None:
    """Lead links to anchors of the page. Turn others into text that names their document."""
    for token in tokens:
        children = token.children or []
        target: str | None = None
        for child in children:
            if child.type == "link_open":
                href = str(child.attrGet("href"))
                if href in anchors:
                    child.attrSet("href", anchors[href])
                elif not href.startswith("https:"):
                    target = href.partition("#")[0] or document.name
                    child.type, child.tag, child.nesting, child.content = "text", "", 0, ""
            elif child.type == "link_close" and target is not None:
                path = (document.parent / target).resolve().relative_to(PROJECT_ROOT.resolve())
                child.type, child.tag, child.nesting = "text", "", 0
                child.content = f" ({path.as_posix()})"
                target = None


def main(page: Path = PAGE) -> None:
    """Write the page."""
    page.write_text(make_page(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
