"""Checks of who may use a service, and of the limits of each client."""

import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from chat_inbox.credentials import is_loopback
from chat_service.access.token_file import TokenFileInvalid, parse
from workers.store.finding import Finding

#: A token that ends sooner is a warning, in seconds.
_SOON_S = 14 * 86400.0
#: The most names in one line.
_NAMED_MAX = 5


def check_open(host: str) -> Finding:
    """Check a service without access control: only this machine should reach it."""
    if is_loopback(host):
        return Finding("access", "ok", f"off, and only this machine reaches {host}")
    detail = (
        f"off: everyone who reaches {host} can read and send all messages; set access=tokens and "
        "access_file, or listen on 127.0.0.1"
    )
    return Finding("access", "warn", detail)


def check_file(path: Path) -> Iterator[Finding]:
    """Check that a service can use an access file, who can read it, and which tokens end soon."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            mode = os.fstat(file.fileno()).st_mode
            grants = parse(file.read())
    except OSError as error:
        yield Finding("access", "fail", f"{path} cannot be read: {error.strerror}")
        return
    except UnicodeDecodeError:
        yield Finding("access", "fail", f"{path} is not UTF-8, as TOML must be")
        return
    except TokenFileInvalid as error:
        yield Finding("access", "fail", f"{path}: {error}")
        return
    if mode & stat.S_IWOTH:
        detail = f"every user of this machine can change {path}; run: chmod o= {path}"
        yield Finding("access", "warn", detail)
    elif mode & stat.S_IROTH:
        detail = f"every user of this machine can read {path}; run: chmod o= {path}"
        yield Finding("access", "warn", detail)
    else:
        yield Finding("access", "ok", f"{len(grants.tokens)} tokens in {path}")
    now = time.time()
    ends = {each.subject: each.until for each in grants.tokens.values() if each.until}
    expired = [name for name, until in ends.items() if until <= now]
    soon = [name for name, until in ends.items() if now < until <= now + _SOON_S]
    if expired:
        detail = f"expired: {_listed(expired)}; delete them, or make new ones (chat token new)"
        yield Finding("tokens", "warn", detail)
    if soon:
        days = int((min(ends[name] for name in soon) - now) // 86400)
        detail = f"expire soon, the first in {days} days: {_listed(soon)}; make new ones in time"
        yield Finding("tokens", "warn", detail)
    if not (expired or soon):
        yield Finding("tokens", "ok", "none expires within 14 days")


def check_limits(limited: bool, host: str, public_url: str, has_proxies: bool) -> Iterator[Finding]:
    """Check that the limits of a client count clients, and not the proxy before them.

    `limited` tells whether any is set.
    """
    if not limited:
        return
    if not has_proxies and (public_url or is_loopback(host)):
        detail = (
            "clients behind a proxy share the limits of one, because their addresses are unknown; "
            "set trusted_proxies to the proxy's address"
        )
        yield Finding("limits", "warn", detail)
    else:
        yield Finding("limits", "ok", "each client is counted by its token or address")


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:_NAMED_MAX])
    more = len(names) - _NAMED_MAX
    return f"{shown} and {more} more" if more > 0 else shown
