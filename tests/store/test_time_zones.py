"""The database's clock is read correctly in every time zone."""

import time
from collections.abc import Iterator

import pytest

from tests.conftest import OpenStore
from workers.clock import DatabaseClock
from workers.store.diagnostics import examine
from workers.store.driver import Driver

#: POSIX rules, so that they hold also on a machine without a zone database.
ZONES = ("CET-1CEST,M3.5.0,M10.5.0/3", "PST8PDT,M3.2.0,M11.1.0", "<+0545>-5:45", "UTC0")


@pytest.fixture(params=ZONES)
def zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The process's local time zone."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", request.param)
        time.tzset()
        yield request.param
    time.tzset()


@pytest.mark.usefixtures("zone")
async def test_the_clock_offset_is_independent_of_the_time_zone(
    open_store: OpenStore, clock: DatabaseClock
) -> None:
    store = await open_store()
    assert abs(clock.offset_ms) < 60_000
    await store.measure_clock()
    assert abs(clock.offset_ms) < 60_000


@pytest.mark.usefixtures("zone")
async def test_doctor_checks_the_clock_in_every_time_zone(
    mongo_uri: str, database: str, driver: Driver
) -> None:
    findings = {it.what: it async for it in examine(mongo_uri, driver, database, 5.0)}
    assert findings["clock"].state == "ok", findings["clock"]
