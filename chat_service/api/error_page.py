"""Errors as HTML, for people who open an address in a browser. All other clients get JSON.

The page has the styles of the others, and no script. Called by `chat_service.server.exchange`.
"""

import re
from collections.abc import Collection
from html import escape

from chat_service.api.problems import Problem
from chat_service.api.types import BodyChunk, Response

#: The pages that it links if they are served on its port. The first one is the home page.
_PAGES = {"/": "Chat inbox", "/docs": "API", "/ops": "Dashboard"}
_HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "same-origin",
}
_INBOX = re.compile(r"/chat/([^/]+)")
#: The deepest path whose links are relative, so that they also work below the path of a proxy.
_DEPTH_MAX = 16

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title} · Chat inbox</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="{root}assets/favicon.svg" type="image/svg+xml">
<link rel="stylesheet" href="{root}assets/base.css">
</head>
<body>
<header class="site">
  <div>
    <a class="brand" href="{home}">
      <img src="{root}assets/favicon.svg" alt="" width="26" height="26"> Chat inbox</a>
    <nav aria-label="Pages">{links}</nav>
  </div>
</header>
<main class="page stack">
  <h1>{title}</h1>
  <p>{detail}</p>
  <p><a class="button primary" href="{target}">{action}</a></p>
  <p class="muted small">Status {status}, request <span class="id">{id}</span></p>
</main>
</body>
</html>
"""


def error_page(problem: Problem, request_id: str, path: str, paths: Collection[str]) -> Response:
    """Return the page about a problem with the request for `path`.

    `paths` are those of the routes of its port.
    """
    depth = path.count("/") - 1
    root = ("../" * depth or "./") if depth <= _DEPTH_MAX else "/"
    pages = {page: f"{root}{page[1:]}" for page in _PAGES if page in paths}
    home = next(iter(pages.values()), root)
    links = " ".join(
        f'<a href="{address}">{_PAGES[page]}</a>' for page, address in pages.items() if page != "/"
    )
    target, action = home, "Open the web UI" if "/" in pages else "Open the dashboard"
    title, detail = problem.title, problem.detail[:1].upper() + problem.detail[1:]
    inbox = _INBOX.match(path)
    if inbox is not None and "/" in pages:
        target, action = f"{home}#inbox={escape(inbox[1])}", "Open this inbox"
        if problem.status in (401, 403):
            # People type the address of an inbox. What a program lacks would say nothing to them.
            title, detail = "This address is for programs", "Nothing was read or lost"
    body = _PAGE.format(
        title=escape(title),
        detail=f"{escape(detail)}.",
        status=problem.status,
        id=escape(request_id),
        root=root,
        home=home,
        links=links,
        target=target,
        action=action,
    )
    headers = {**_HEADERS, **problem.headers}
    return Response(problem.status, headers, BodyChunk(body.encode(), 0))
