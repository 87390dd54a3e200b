"""Records the day of this node, and stores it so that it survives a restart.

Of the processes under a supervisor, one records. Another one takes over when it exits. The day is
in memory, or in a file of the metrics directory, so nothing is lost while the database is
unavailable. Made, started and stopped by `chat_service.service`.
"""

import asyncio
import random
import time
from collections.abc import Sequence
from typing import Protocol

import msgspec
import structlog

from chat_service.metrics.conditions import Severity
from chat_service.metrics.day import DAY_EVERY_S, Day
from chat_service.metrics.history import History
from chat_service.metrics.multiprocess import RecorderLock
from workers.cancellation import end_tasks
from workers.errors import ServiceError

log = structlog.get_logger(__name__)

#: The day is stored with every third row.
_SAVE_EVERY = 3
#: The state is judged this often, in seconds. If it has changed, and while something is wrong, the
#: day is stored at once: an operator needs the minutes of an incident, even if the node was
#: killed. A state that lasts longer than `_INCIDENT_S` is stored as rarely as any other.
_TURN_EVERY_S, _INCIDENT_S = DAY_EVERY_S / 4, 900.0
#: A turn begins this many seconds late. Otherwise all nodes would write at the same moment.
_LATE_S = (4.0, 28.0)
#: Longest time to store the day when the service stops, in seconds.
_LAST_SAVE_S = 2.0


class Archive(Protocol):
    """Stores days. `workers.store.node_history` does that; both raise `ServiceError`."""

    async def save_history(self, node: str, hour: int, content: bytes, at_ms: int) -> None:
        """Store what a node recorded in an hour."""
        ...

    async def load_history(self, node: str) -> list[bytes]:
        """Return what was stored for a node."""
        ...


class Recorder:
    """Records rows every two minutes, if no other process of the node does.

    During an incident, it records and stores twice a minute.
    """

    def __init__(self, history: History, archive: Archive) -> None:
        self._history = history
        self._archive = archive
        self._lock = None if history.directory is None else RecorderLock(history.directory)
        self._late_s = random.uniform(*_LATE_S)
        # None until this process records for the node.
        self._day: Day | None = None
        self._has_loaded = False
        # The times of the last row, and of the last one of earlier two minutes.
        self._recorded_at = self._since = time.time()
        # The conditions of the last turn, and when they changed.
        self._conditions: set[tuple[str, Severity]] = set()
        self._changed_at = 0.0
        self._has_recorded = False
        # How many rows are not stored yet, and their hours since 1970.
        self._rows = 0
        self._hours: set[int] = set()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to record."""
        self._task = asyncio.create_task(self._run(), name="recorder")

    async def stop(self) -> None:
        """Record and store what is not stored yet. Safe to call twice, and without a start."""
        task, self._task = self._task, None
        if task is not None:
            await end_tasks([task])
            await self._finish(time.time())
        if self._lock is not None:
            self._lock.free()

    async def _finish(self, now: float) -> None:
        # A run of less than two minutes leaves nothing, unless there was an incident.
        if self._day is None or not (self._has_recorded or self._hours):
            return
        # Without what is stored, this would replace it.
        if not self._has_loaded:
            return
        try:
            async with asyncio.timeout(_LAST_SAVE_S):
                await self._record(self._day, now)
                await self._save(self._day, now)
        except (TimeoutError, OSError, ServiceError) as error:
            log.warning("the last minutes of the dashboard were not stored", reason=str(error))

    async def _run(self) -> None:
        while True:
            try:
                await self.turn(time.time())
            except ServiceError as error:
                log.debug("the day of the dashboard is stored later", reason=str(error))
            except (OSError, msgspec.DecodeError) as error:
                log.warning("the day of the dashboard has a gap", reason=str(error))
            except Exception:
                # Otherwise the day would end here, and nobody would know.
                log.exception("the day of the dashboard has a gap")
            await asyncio.sleep(_TURN_EVERY_S - (time.time() - self._late_s) % _TURN_EVERY_S)

    async def turn(self, now: float) -> None:
        """Record a row if two minutes are over, and store the day if there are enough new ones.

        Does both at once during an incident.

        Raises `ServiceError` if the database does not answer, and `OSError` if the metrics
        directory cannot be used. Nothing is lost then: the next turn stores it.
        """
        if self._lock is not None and not self._lock.take():
            return
        if self._day is None:
            self._day = await asyncio.to_thread(self._history.read_day)
            # The process that recorded before may not have stored all of it.
            self._hours.update(sorted(self._day.dump())[-2:])
        is_incident = await asyncio.to_thread(self._is_incident, now)
        if is_incident or now // DAY_EVERY_S != self._recorded_at // DAY_EVERY_S:
            await self._record(self._day, now)
        # Without what is stored, this would replace the earlier rows of the same hour.
        if not self._has_loaded:
            stored = await self._archive.load_history(self._history.node.name)
            await asyncio.to_thread(self._merge, self._day, stored, now)
            self._has_loaded = True
        if is_incident or self._rows >= _SAVE_EVERY:
            await self._save(self._day, now)

    def _is_incident(self, now: float) -> bool:
        conditions = {(each.name, each.severity) for each in self._history.state(now).conditions}
        if conditions != self._conditions:
            self._conditions, self._changed_at = conditions, now
            return True
        return bool(conditions) and now - self._changed_at < _INCIDENT_S

    async def _record(self, day: Day, now: float) -> None:
        if now // DAY_EVERY_S != self._recorded_at // DAY_EVERY_S:
            self._since = self._recorded_at
        # It replaces an earlier row of the same two minutes, with the highest gauges of them all.
        self._hours.add(await asyncio.to_thread(self._add, day, self._since, now))
        self._recorded_at, self._has_recorded = now, True
        self._rows += 1

    def _add(self, day: Day, since: float, now: float) -> int:
        hour = day.add(self._history.sum_up(since, now), now)
        self._history.keep_day(day)
        return hour

    def _merge(self, day: Day, stored: Sequence[bytes], now: float) -> None:
        day.merge(stored, now)
        self._history.keep_day(day)

    async def _save(self, day: Day, now: float) -> None:
        hours = day.dump()
        for hour in sorted(self._hours):
            if hour in hours:
                name = self._history.node.name
                await self._archive.save_history(name, hour, hours[hour], int(now * 1000))
            self._hours.discard(hour)
        self._rows = 0
