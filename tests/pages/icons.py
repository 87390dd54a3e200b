"""Makes the PNG icons of the installed web UI from its favicon: `python -m tests.pages.icons`.

Home screens take no SVG. They may cut an icon to any shape: `icon-maskable.png` and
`apple-touch-icon.png` therefore fill their whole square and keep the drawing within the middle.
"""

import asyncio
import re
from pathlib import Path
from typing import NamedTuple

from playwright.async_api import Browser, async_playwright

from chat_service.handlers.pages import WEB

#: The colors of `base.css`: --accent and --on-accent in light mode.
_TEAL, _WHITE = "#0a6270", "#fff"


class Icon(NamedTuple):
    """A file, its width and height in pixels, and whether it fills its whole square."""

    name: str
    size: int
    is_full: bool


ICONS = (
    Icon("icon-192.png", 192, is_full=False),
    Icon("icon-512.png", 512, is_full=False),
    Icon("icon-maskable.png", 512, is_full=True),
    Icon("apple-touch-icon.png", 180, is_full=True),
)


def _drawing(icon: Icon) -> str:
    """Return the page that shows an icon."""
    drawing = (WEB / "favicon.svg").read_text(encoding="utf-8")
    ground, part = "transparent", 1.0
    if icon.is_full:
        # White on teal. The part that is always shown is a circle of 0.8: the drawing fits into it.
        swapped = {_TEAL: _WHITE, _WHITE: _TEAL}
        drawing = re.sub(r'(?<=")#\w+(?=")', lambda color: swapped[color[0]], drawing)
        ground, part = _TEAL, 0.66
    side = icon.size * part
    margin = (icon.size - side) / 2
    return (
        f'<body style="margin: 0; background: {ground}">'
        f'<div style="padding: {margin}px; width: {side}px; height: {side}px">{drawing}</div>'
    )


async def draw(chromium: Browser, icon: Icon, folder: Path) -> None:
    """Draw an icon into its file in a folder."""
    page = await chromium.new_page(viewport={"width": icon.size, "height": icon.size})
    await page.set_content(_drawing(icon))
    await page.screenshot(path=folder / icon.name, omit_background=True)
    await page.close()


async def _main() -> None:
    async with async_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu"]
        chromium = await playwright.chromium.launch(executable_path="/usr/bin/chromium", args=flags)
        for icon in ICONS:
            await draw(chromium, icon, WEB)
        await chromium.close()


if __name__ == "__main__":
    asyncio.run(_main())
