"""The documentation site of scripts/docs-site: it is complete, and all its links work offline."""

import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import async_playwright

from config.settings import PROJECT_ROOT
from tests.support.blocks import documents

#: Elements that a browser loads without being asked.
_LOADED = {"img", "script", "link", "source", "iframe"}


class Page(HTMLParser):
    """What a page of the site refers to, and what others can refer to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids.add(given.get("id", ""))
        for address in (given.get("href"), given.get("src")):
            if address is not None:
                (self.loaded if tag in _LOADED else self.links).append(address)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site. The build fails if a link in the Markdown is broken."""
    folder = tmp_path_factory.mktemp("site")
    command = [str(PROJECT_ROOT / "scripts" / "docs-site"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    """Parse all pages of the site."""
    found = site.rglob("*.html")
    return {path.resolve(): Page(path.read_text(encoding="utf-8")) for path in found}


def broken(pages: dict[Path, Page]) -> Iterator[str]:
    """Yield each link to a file or an anchor that does not exist."""
    for path, page in pages.items():
        for link in page.links + page.loaded:
            parts = urlsplit(link)
            if parts.scheme:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchor = unquote(parts.fragment)
            if not target.is_file() or (anchor and anchor not in pages[target].ids):
                yield f"{path.name}: {link}"


def test_every_document_is_a_page(site: Path) -> None:
    for document in documents():
        name = document.relative_to(PROJECT_ROOT).with_suffix(".html")
        assert (site / name).is_file(), name
    assert (site / "index.html").read_bytes() == (site / "README.html").read_bytes()


def test_every_link_and_anchor_of_the_site_exists(pages: dict[Path, Page]) -> None:
    assert not list(broken(pages))
    path, page = next(iter(pages.items()))
    for wrong in ("nowhere.html", "#nowhere"):
        page.links.append(wrong)
        assert list(broken(pages)) == [f"{path.name}: {wrong}"]
        page.links.remove(wrong)


def test_the_site_loads_nothing_from_elsewhere(site: Path, pages: dict[Path, Page]) -> None:
    for page in pages.values():
        assert not [address for address in page.loaded if urlsplit(address).netloc]
    for style in site.rglob("*.css"):
        text = style.read_text(encoding="utf-8")
        assert "@import" not in text, style
        assert not [
            part for part in text.split("url(")[1:] if part.lstrip("'\"").startswith("http")
        ]


def test_the_site_has_a_search(site: Path, pages: dict[Path, Page]) -> None:
    index = (site / "searchindex.js").read_text(encoding="utf-8")
    assert all(f'"{word}"' in index or f"{word}:" in index for word in ("docs/tutorial", "lease"))
    assert any(address.endswith("searchtools.js") for address in pages[site / "search.html"].loaded)


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_the_site_is_accessible_and_fits_a_phone(
    site: Path, scheme: Literal["light", "dark"]
) -> None:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox"]
        )
        phone = await browser.new_context(
            viewport={"width": 375, "height": 667}, color_scheme=scheme
        )
        page = await phone.new_page()
        for name in ("index.html", "docs/comparison.html", "search.html?q=lease"):
            await page.goto(f"file://{site}/{name}")
            await page.locator("h1").first.wait_for()
            assert (await Axe().run(page)).response["violations"] == [], name
            assert await page.evaluate("document.documentElement.scrollWidth") == 375
        await page.get_by_role("link", name="Leases").first.wait_for()
        await browser.close()


def test_a_link_to_a_missing_heading_fails_the_build(site: Path, tmp_path: Path) -> None:
    for name in ("docs/site", "scripts", "requirements"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / ".tox").symlink_to(PROJECT_ROOT / ".tox")
    for name in ("docs/site/conf.py", "scripts/docs-site", "scripts/setup-venv"):
        (tmp_path / name).write_bytes((PROJECT_ROOT / name).read_bytes())
        (tmp_path / name).chmod(0o755)
    pins = PROJECT_ROOT / "requirements" / "site.txt"
    (tmp_path / "requirements" / "site.txt").write_bytes(pins.read_bytes())
    (tmp_path / "README.md").write_text("# Here\n\n[there](#there)\n", encoding="utf-8")
    command = [str(tmp_path / "scripts" / "docs-site"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode != 0
    assert "'there'" in done.stderr
