"""click parameter types: durations, text and addresses."""

import math
import os
import re
import time
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import click

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"(\d+(?:\.\d+)?|\.\d+)([smhd]?)", re.ASCII)
_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)


class Duration(click.ParamType[float]):
    """A duration such as `30`, `30s`, `1.5m`, `2h` or `7d`, converted to seconds.

    With `whole`, it must be a whole number of seconds.
    """

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
            self.fail(f"{value!r} is not a duration such as 30s, 10m, 2h or 7d.", param, ctx)
        seconds = float(match[1]) * _UNITS[match[2]]
        if not math.isfinite(seconds):
            self.fail(f"{value!r} is too long.", param, ctx)
        if not self._is_whole:
            return seconds
        if not seconds.is_integer():
            self.fail(f"{value!r} is not a whole number of seconds.", param, ctx)
        return int(seconds)


class Moment(click.ParamType[datetime]):
    """A time in the future: `2027-01-01` (in UTC), `2027-01-01T12:00:00Z`, or a duration from now.

    Rounded down to a second. A duration has a unit, since `2027` is meant as a year.
    """

    name = "moment"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        try:
            if (match := _DURATION.fullmatch(value)) and match[2]:
                seconds = Duration().convert(value, param, ctx)
                moment = datetime.now(UTC) + timedelta(seconds=seconds)
            else:
                moment = datetime.fromisoformat(value)
                if _DATE.fullmatch(value):
                    moment = moment.replace(tzinfo=UTC)
        except (ValueError, OverflowError):
            self.fail(
                f"{value!r} is not a date such as 2027-01-01, or a duration such as 90d.",
                param,
                ctx,
            )
        if moment.tzinfo is None:
            self.fail(f"{value!r} has no time zone; for UTC, add Z.", param, ctx)
        if moment <= datetime.now(UTC):
            self.fail(f"{value!r} is in the past.", param, ctx)
        return moment.replace(microsecond=0)


class LocalTime(click.ParamType[datetime]):
    """A time in the future, such as `2026-12-01T09:00`: local time unless it has an offset or a Z.

    A local time that does not exist, or exists twice, is refused, because clocks are changed then.
    """

    name = "time"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        try:
            moment = datetime.fromisoformat(value)
            if moment.tzinfo is None:
                moment = self._local(moment, value, param, ctx)
            is_past = moment.timestamp() <= time.time()
        except (ValueError, OverflowError, OSError):
            self.fail(f"{value!r} is not a time such as 2026-12-01T09:00.", param, ctx)
        if _DATE.fullmatch(value):
            self.fail(f"{value!r} has no time of day; add one, such as {value}T09:00.", param, ctx)
        if is_past:
            self.fail(f"{value!r} is in the past.", param, ctx)
        return moment

    def _local(
        self,
        moment: datetime,
        value: str,
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> datetime:
        """Return a time without an offset with that of the time zone of this machine."""
        first, second = (moment.replace(fold=fold).astimezone() for fold in (0, 1))
        if first.timestamp() == second.timestamp():
            return first
        # Around a change of the clocks, a time that exists is the same after both conversions.
        if first.replace(tzinfo=None, fold=0) != moment.replace(fold=0):
            self.fail(
                f"{value!r} does not exist here, because clocks go forward then; "
                f"add an offset, as in {second.isoformat()} or {first.isoformat()}.",
                param,
                ctx,
            )
        return self.fail(
            f"{value!r} is twice here, because clocks go back then; "
            f"write {first.isoformat()} or {second.isoformat()}.",
            param,
            ctx,
        )


class Text(click.ParamType[str]):
    """Text that can be encoded as UTF-8, as the service requires."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            str(value).encode()
            return str(value)
        except UnicodeEncodeError:
            # Python did not decode the argument: with an ASCII locale, it does not try UTF-8.
            pass
        try:
            return os.fsencode(value).decode()
        except UnicodeDecodeError:
            self.fail(f"{value!r} is not UTF-8.", param, ctx)


class NonEmptyText(Text):
    """A name or a key. The service checks the other rules, but treats an empty one as absent."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not value:
            self.fail("must not be empty.", param, ctx)
        return super().convert(value, param, ctx)


class Url(click.ParamType[str]):
    """The address of a service."""

    name = "url"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            parts = urlsplit(value)
            is_url = parts.scheme in ("http", "https") and bool(parts.hostname)
            is_url = is_url and parts.port != 0
            # These reject empty and overlong labels, and bytes that are not UTF-8.
            (parts.hostname or "").encode("idna")
            value.encode()
        except ValueError:
            is_url = False
        if not is_url or parts.query or parts.fragment:
            self.fail(f"{value!r} is not an address such as http://127.0.0.1:8080.", param, ctx)
        return str(value)
