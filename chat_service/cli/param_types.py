"""What a user may write for a time, an address, and the like: click's types for our options."""

import math
import os
import re
from typing import Any
from urllib.parse import urlsplit

import click

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"(\d+(?:\.\d+)?|\.\d+)([smhd]?)", re.ASCII)


class Duration(click.ParamType[float]):
    """A time: `30`, `30s`, `1.5m`, `2h`, `7d`; in seconds. Where `whole`, to the second."""

    name = "duration"

    def __init__(self, *, whole: bool = False) -> None:
        self._is_whole = whole

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        if isinstance(value, float | int):
            return value
        match = _DURATION.fullmatch(value.strip())
        if match is None:
            self.fail(f"{value!r} is no time such as 30s, 10m, 2h or 7d.", param, ctx)
        seconds = float(match[1]) * _UNITS[match[2]]
        if not math.isfinite(seconds):
            self.fail(f"{value!r} is too long.", param, ctx)
        if not self._is_whole:
            return seconds
        if not seconds.is_integer():
            self.fail(f"{value!r} is not a whole number of seconds.", param, ctx)
        return int(seconds)


class Text(click.ParamType[str]):
    """Text as the service takes it: UTF-8."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            str(value).encode()
            return str(value)
        except UnicodeEncodeError:
            # Python could not decode it; in a locale of ASCII it does not try UTF-8.
            pass
        try:
            return os.fsencode(value).decode()
        except UnicodeDecodeError:
            self.fail(f"{value!r} is not UTF-8.", param, ctx)


class NotEmpty(Text):
    """A name or a key. The service has the rules, but an empty one says nothing to it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not value:
            self.fail("it is empty.", param, ctx)
        return super().convert(value, param, ctx)


class Url(click.ParamType[str]):
    """Where a service is."""

    name = "url"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            parts = urlsplit(value)
            is_url = parts.scheme in ("http", "https") and bool(parts.hostname)
            is_url = is_url and parts.port != 0
            # Names with labels that are empty or too long, and bytes that are not UTF-8.
            (parts.hostname or "").encode("idna")
            value.encode()
        except ValueError:
            is_url = False
        if not is_url or parts.query or parts.fragment:
            self.fail(f"{value!r} is no address such as http://127.0.0.1:8080.", param, ctx)
        return str(value)
