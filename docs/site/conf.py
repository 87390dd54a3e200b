"""Builds the documentation site from the Markdown files of this repository: `scripts/docs-site`.

The files are the ones that people read in the repository. What a site needs in addition, a table of
contents, is added here.
"""

from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx

project = "Chat inbox"
html_title = "Chat inbox"
root_doc = "README"
include_patterns = ["*.md", "docs/**.md", "examples/*.md", "clients/python/*.md"]
exclude_patterns = [".*", "build", "data", "**/node_modules"]

extensions = ["myst_parser"]
# GitHub's anchors: links are written for both readers.
myst_heading_anchors = 6
myst_heading_slug_func = "github"

html_theme = "furo"
html_favicon = "../../chat_service/web/favicon.svg"
html_theme_options = {
    "navigation_with_keys": False,
    # The accent colors of the web UI.
    "light_css_variables": {
        "color-brand-primary": "#0a6270",
        "color-brand-content": "#0a6270",
        "color-brand-visited": "#413fa6",
    },
    "dark_css_variables": {
        "color-brand-primary": "#6cc5d1",
        "color-brand-content": "#6cc5d1",
        "color-brand-visited": "#a9a7f5",
    },
}
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_show_copyright = False
# Names of files, options and code stay as they are written.
smartquotes = False

#: The sidebar: each caption with its pages. A page that it lacks fails the build.
SECTIONS = {
    "Start": {
        "Documentation by task": "docs/README",
        "Tutorial": "docs/tutorial",
        "Examples": "examples/README",
        "Comparison": "docs/comparison",
    },
    "Use": {
        "API reference": "docs/api",
        "Python client": "clients/python/README",
        "Python client reference": "clients/python/REFERENCE",
        "Command line": "docs/command-line",
        "Web UI": "docs/web-ui",
    },
    "Run": {
        "Installation": "docs/install",
        "Operations": "docs/operations",
        "Settings": "docs/settings",
        "Database": "docs/database",
        "Access": "docs/access",
        "Upgrades": "docs/upgrades",
        "Security": "docs/security",
        "Containers": "docs/containers",
        "Deployment": "docs/deployment",
        "Sharded clusters": "docs/sharding",
        "Observability": "docs/observability",
        "Capacity": "docs/capacity",
    },
    "Trust": {
        "Reliability": "docs/reliability",
        "Performance": "docs/performance",
        "Reporting vulnerabilities": "SECURITY",
        "Changelog": "CHANGELOG",
        "Changelog of the Python client": "clients/python/CHANGELOG",
    },
    "Change": {
        "Contributing": "CONTRIBUTING",
        "Architecture": "docs/architecture",
        "Glossary": "docs/glossary",
        "Releasing": "docs/releasing",
        "Decisions": "docs/decisions/README",
    },
}


def add_contents(app: Sphinx, name: str, source: list[str]) -> None:
    """Append the table of contents to the front page, and the decisions to their index."""
    if name == root_doc:
        for caption, pages in SECTIONS.items():
            entries = "\n".join(f"{title} </{page}>" for title, page in pages.items())
            source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{entries}\n```\n"
    elif name == "docs/decisions/README":
        source[0] += "\n```{toctree}\n:hidden:\n:glob:\n\n0*\n```\n"


#: Flaws of the theme's HTML for screen readers and keyboards, and what replaces them.
REPAIRS = {
    'class="caption" role="heading"': 'class="caption" role="heading" aria-level="2"',
    '<aside class="sidebar-drawer">': '<aside class="sidebar-drawer" aria-label="Pages">',
    '<aside class="toc-drawer': '<aside aria-label="On this page" class="toc-drawer',
    '<th class="head"><p></p></th>': '<td class="head"></td>',
    '<div class="table-wrapper': '<div tabindex="0" class="table-wrapper',
    "<pre>": '<pre tabindex="0">',
    '<div id="search-results">': '<h1>Search</h1><div id="search-results">',
}


def repair(app: Sphinx, error: Exception | None) -> None:
    """Repair the pages of a complete site."""
    if error is None:
        for page in app.outdir.rglob("*.html"):
            text = page.read_text(encoding="utf-8")
            for flawed, better in REPAIRS.items():
                text = text.replace(flawed, better)
            page.write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> None:
    """Let Sphinx call what this file adds."""
    app.connect("source-read", add_contents)
    app.connect("build-finished", repair)
    # Pygments does not know this language, which GitHub does.
    app.add_lexer("haproxy", TextLexer)
