"""Access files, tokens and the sign-in form of the pages, for their tests."""

import hashlib
import json
import secrets
from pathlib import Path
from typing import Any

from playwright.async_api import Locator, Page, expect

from tests.pages.inbox import button


class Tokens:
    """An access file with tokens. The service reads it again after each change."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries: dict[str, str] = {}
        self._anonymous = ""
        self._write()

    def add(self, name: str, **rights: Any) -> str:
        """Add a token with these rights and return it."""
        token = f"cht_{secrets.token_urlsafe(32)}"
        digest = hashlib.sha256(token.encode()).hexdigest()
        lines = [f"name = {json.dumps(name)}", f'sha256 = "{digest}"', *_assignments(rights)]
        self._entries[name] = "\n".join(("[[token]]", *lines))
        self._write()
        return token

    def remove(self, name: str) -> None:
        """Remove a token."""
        del self._entries[name]
        self._write()

    def allow_anonymous(self, **rights: Any) -> None:
        """Set what requests without a token may do."""
        self._anonymous = "\n".join(("[anonymous]", *_assignments(rights)))
        self._write()

    def _write(self) -> None:
        new = self.path.with_suffix(".new")
        new.write_text("\n".join((self._anonymous, *self._entries.values())), encoding="utf-8")
        new.chmod(0o600)
        new.replace(self.path)


def _assignments(rights: dict[str, Any]) -> list[str]:
    # A time is written as it is; all other values look the same in JSON and in TOML.
    return [
        f"{key} = {value if key == 'until' else json.dumps(value)}" for key, value in rights.items()
    ]


def panel(page: Page) -> Locator:
    """Return the part of a page that says who uses it."""
    return page.locator("#access")


async def sign_in(page: Page, token: str, name: str, *, keep: bool = False) -> None:
    """Sign in with a token, and wait until the page says so."""
    await page.get_by_label("Token").fill(token)
    await page.get_by_label("Stay signed in on this device").set_checked(keep)
    await button(page, "Sign in").click()
    await expect(panel(page).get_by_role("heading")).to_have_text(f"Signed in as {name}")
