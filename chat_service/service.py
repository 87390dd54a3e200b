"""The composition root: makes the parts, wires them, starts, drains and stops them in order."""

import asyncio
import socket
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import structlog
from prometheus_client import CollectorRegistry

from chat_service.api.request_policy import host_rule, is_loopback_address
from chat_service.api.routing import Audience, Route, RouteTable
from chat_service.api.shared_answers import Shared
from chat_service.handlers.batch import BatchHandlers
from chat_service.handlers.dashboard import DashboardHandlers
from chat_service.handlers.health import HealthHandlers, Readiness
from chat_service.handlers.inbox import InboxHandlers
from chat_service.handlers.leases import LeaseHandlers
from chat_service.handlers.messages import MessageHandlers
from chat_service.handlers.pages import PageHandlers
from chat_service.handlers.stream import StreamHandlers
from chat_service.metrics.history import History
from chat_service.metrics.http import HttpMetrics
from chat_service.metrics.multiprocess import Exposition
from chat_service.metrics.sampler import series_groups_of
from chat_service.openapi import make_document
from chat_service.routes import Handlers, make_routes
from chat_service.server.body_budget import BodyBudget
from chat_service.server.connection import Server
from chat_service.server.exchange import ExchangeFactory
from chat_service.server.fast_path import FastPath
from chat_service.server.header_cache import HeaderCache
from chat_service.server.listener import OPS_NAMES, Listener, addresses_of, bind
from chat_service.server.request_tracker import RequestTracker
from chat_service.wiring import (
    access_log_of,
    connection_limits_of,
    message_limits_of,
    pool_limits_of,
    request_limits_of,
    store_options_of,
    terms_of,
    wait_limits_of,
)
from config import Settings
from workers.clock import DatabaseClock
from workers.errors import StoreUnavailable
from workers.metrics import WorkerMetrics
from workers.mongod.embedded import EmbeddedMongod
from workers.pool import WorkerPool
from workers.store.mongo import MongoStore
from workers.tracing import UNTRACED, Tracer

if TYPE_CHECKING:
    from chat_service.otlp import Telemetry

log = structlog.get_logger(__name__)

#: How often the database is asked for at start, and how late the loop is, in seconds.
_KNOCK_EVERY_S, _LAG_EVERY_S = 0.5, 1.0
#: It is given so long to answer, also where less is left of the wait for it, in seconds.
_KNOCK_MIN_S = 1.0
#: A connection that has just been answered may be about to send again: this long is waited.
_SETTLE_S = 0.05
#: What a connection that is closed leaves to be done takes no longer, in seconds.
_SETTLE_MAX_S = 1.0
#: How long the text of `/metrics` and the check of the database are kept for all who ask, in
#: seconds: either costs as much as ten posts.
METRICS_KEPT_S, CHECK_KEPT_S = 1.0, 0.5


class TelemetryUnusable(Exception):
    """Raised at start where telemetry is wanted and cannot be had; the message says what to do."""


class Service:
    """Everything that runs in one process. `start`, then `drain`, then `stop`."""

    def __init__(
        self,
        settings: Settings,
        sockets: Sequence[socket.socket] = (),
        ops_sockets: Sequence[socket.socket] = (),
        dropped_lines: Callable[[], int] = lambda: 0,
    ) -> None:
        """Listens on `sockets` where there are some, else on the addresses of the settings.

        `dropped_lines` says how many log lines were dropped so far.
        """
        self.settings = settings
        self.port = 0
        self._is_accepting = False
        #: Whether what is for operators is served beside all else; with `auto`, `start` decides.
        self._has_ops = settings.ops != "off"
        self._registry = CollectorRegistry()
        self._exposition = Exposition(self._registry)
        self._worker_metrics = WorkerMetrics(self._registry)
        self._http_metrics = HttpMetrics(self._registry)
        parts = series_groups_of(self._http_metrics, self._worker_metrics, settings.shards)
        self._history = History(parts, time.time())
        self._bodies = BodyBudget(settings.bodies_max_bytes)
        self._clock = DatabaseClock()
        self._mongod = (
            None if settings.mongo_uri else EmbeddedMongod(settings.data_dir, settings.mongod)
        )
        self._store: MongoStore | None = None
        self._pool: WorkerPool | None = None
        self._tracker: RequestTracker | None = None
        self._sockets, self._ops_sockets = sockets, ops_sockets
        self._server: Listener | None = None
        self._ops_tracker: RequestTracker | None = None
        self._ops_server: Server | None = None
        self._dropped_lines, self._dropped_counted = dropped_lines, 0
        self._lag: asyncio.Task[None] | None = None
        self._telemetry: Telemetry | None = None
        self._metrics_text = Shared(self._render_metrics, METRICS_KEPT_S)
        self._database_answers = Shared(self._ask_database, CHECK_KEPT_S)

    async def start(self) -> None:
        """Start every part, the listening socket last.

        Raises `TelemetryUnusable`, `PortTaken`, `workers.mongod.embedded.EmbeddedError`,
        `StoreUnavailable`, `StoreMisconfigured` or `IndexMismatch`; call `stop` then.
        """
        settings = self.settings
        if settings.telemetry == "otlp":
            self._telemetry = _start_telemetry(self._registry)
        sockets = self._sockets or bind(settings.host, settings.port)
        self.port = sockets[0].getsockname()[1]
        ops_sockets = self._ops_sockets
        try:
            if settings.ops_port and not ops_sockets:
                ops_sockets = bind(settings.ops_host, settings.ops_port, OPS_NAMES)
            uri = await self._mongod.start() if self._mongod else settings.mongo_uri
            self._store = self._make_store(uri)
            await self._open_store(self._store)
            self._pool = self._make_pool(self._store)
            await self._pool.start()
        except BaseException:
            for each in (*sockets, *ops_sockets):
                each.close()
            raise
        if settings.ops == "auto":
            self._has_ops = all(is_loopback_address(each) for each in addresses_of(sockets))
        handlers = self._make_handlers(self._pool)
        self._tracker = self._make_tracker(sockets)
        self._server = Listener(
            self._make_exchanges(self._make_routes(handlers), self._tracker),
            self._make_fast_path(self._tracker, handlers.inbox),
            self._http_metrics.handovers.inc,
            **connection_limits_of(settings),
        )
        self._tracker.on_takeover = self._server.count_connections
        self._server.add_sockets(sockets)
        if ops_sockets:
            alone = handlers._replace(pages=PageHandlers(absent=(b"./", b"docs")))
            ops_routes = make_routes(alone, 0, frozenset(), ("operators", "everyone"))
            self._ops_tracker = self._make_tracker(ops_sockets, is_ops=True)
            ops_exchanges = self._make_exchanges(ops_routes, self._ops_tracker)
            self._ops_server = Server(ops_exchanges, **connection_limits_of(settings))
            self._ops_server.add_sockets(ops_sockets)
        self._lag = asyncio.create_task(self._measure_lag(), name="loop-lag")
        self._sample()
        self._history.sample(time.time())
        self._is_accepting = True

    async def drain(self) -> bool:
        """Finish what was accepted, taking nothing new. False where time ran out.

        Order: not ready, a pause for balancers, no new connections, answer what is open, empty
        the queues.
        """
        self._is_accepting = False
        await asyncio.sleep(self.settings.drain_delay_s)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.settings.drain_timeout_s
        left = 0
        if self._server is not None and self._tracker is not None:
            self._server.accept_waiting()
            self._server.stop()
            self._server.end_keep_alive()
            if self._pool is not None:
                self._pool.end_waits()
            left = await self._settle(self._tracker, deadline)
        is_empty = self._pool is None or await self._pool.drain(max(deadline - loop.time(), 0.1))
        log.info("drained", unanswered=left, in_time=is_empty and not left)
        return is_empty and not left

    async def _settle(self, tracker: RequestTracker, deadline: float) -> int:
        """Wait until nothing is open and nobody has asked for a while; how much is left then."""
        loop = asyncio.get_running_loop()
        while True:
            answered = tracker.requests
            await asyncio.sleep(_SETTLE_S)
            left = await tracker.idle(max(deadline - loop.time(), 0))
            if tracker.requests == answered or loop.time() > deadline:
                return left

    async def stop(self) -> None:
        """Stop every part, the database last. Complete on return; safe twice."""
        self._is_accepting = False
        if self._lag is not None:
            self._lag.cancel()
            await asyncio.gather(self._lag, return_exceptions=True)
        # The operators' port was open until here: it told of the drain.
        for server in (self._server, self._ops_server):
            if server is not None:
                server.stop()
        if self._pool is not None:
            await self._pool.stop()
        if self._server is not None:
            await self._server.close_all_connections()
        if self._tracker is not None:
            # Those that served them have seen it.
            await self._tracker.idle(_SETTLE_MAX_S)
        if self._ops_server is not None and self._ops_tracker is not None:
            await self._ops_tracker.idle(_SETTLE_MAX_S)
            await self._ops_server.close_all_connections()
        await self._metrics_text.close()
        await self._database_answers.close()
        if self._store is not None:
            await self._store.close()
        if self._mongod is not None:
            await self._mongod.stop()
        if self._telemetry is not None:
            await self._telemetry.stop()

    async def _open_store(self, store: MongoStore) -> None:
        """Open the store, waiting for a database that is still starting."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.settings.mongo_wait_s
        reason = ""
        while True:
            left_s = deadline - loop.time()
            try:
                return await store.open(max(left_s, _KNOCK_MIN_S))
            except StoreUnavailable as error:
                if loop.time() > deadline:
                    raise
                if reason != (reason := str(error)[:200]):
                    log.warning("the database is not there yet", reason=reason)
            await asyncio.sleep(_KNOCK_EVERY_S)

    def _make_store(self, uri: str) -> MongoStore:
        options = store_options_of(self.settings)
        return MongoStore(uri, options, self._clock, self._worker_metrics, self._engine_tracer)

    def _make_pool(self, store: MongoStore) -> WorkerPool:
        limits = pool_limits_of(self.settings)
        return WorkerPool(store, self._clock, limits, self._worker_metrics, self._engine_tracer)

    def _make_handlers(self, pool: WorkerPool) -> Handlers:
        settings = self.settings
        rules, waits = message_limits_of(settings), wait_limits_of(settings)
        origins = frozenset(settings.allowed_origins)
        return Handlers(
            InboxHandlers(pool, rules, waits, self._worker_metrics.undelivered.inc),
            BatchHandlers(pool, rules, settings.max_batch_messages),
            LeaseHandlers(pool, rules, waits),
            StreamHandlers(pool, rules, origins, settings.write_timeout_s),
            MessageHandlers(pool),
            HealthHandlers(self._readiness, self._metrics_text.get),
            PageHandlers(absent=() if self._has_ops else (b"ops",)),
            DashboardHandlers(self._history.document),
        )

    def _make_fast_path(self, tracker: RequestTracker, inbox: InboxHandlers) -> FastPath:
        settings = self.settings
        header_cache = HeaderCache(tracker.max_body_bytes, tracker.host_rule)
        return FastPath(
            tracker,
            inbox,
            header_cache,
            header_max=settings.max_header_bytes,
            idle_timeout_s=settings.idle_timeout_s,
        )

    def _make_exchanges(self, routes: Sequence[Route], tracker: RequestTracker) -> ExchangeFactory:
        return ExchangeFactory(RouteTable(routes, tracker.max_body_bytes), tracker)

    def _make_tracker(
        self, sockets: Sequence[socket.socket], *, is_ops: bool = False
    ) -> RequestTracker:
        # Operators' machines ask by address.
        rule = host_rule(self.settings.allowed_hosts, addresses_of(sockets), has_addresses=is_ops)
        limits, access_log = request_limits_of(self.settings, rule), access_log_of(self.settings)
        on_undelivered = self._worker_metrics.undelivered.inc
        return RequestTracker(
            *(limits, self._http_metrics, access_log, on_undelivered, self._bodies),
            None if self._telemetry is None else self._telemetry.tracer,
        )

    @property
    def _engine_tracer(self) -> Tracer:
        return UNTRACED if self._telemetry is None else self._telemetry.tracer

    def _make_routes(self, handlers: Handlers) -> Sequence[Route]:
        settings = self.settings
        origins = frozenset(settings.allowed_origins)
        audiences: tuple[Audience, ...] = ("clients", "people", "everyone")
        if self._has_ops:
            audiences = (*audiences, "operators")
        routes = make_routes(handlers, settings.max_batch_bytes, origins, audiences)
        handlers.pages.publish(make_document(routes, terms_of(settings)))
        return routes

    async def _readiness(self) -> Readiness:
        database = await self._database_answers.get()
        # Asked of nobody else: a drain shows at once.
        indexes = self._store is not None and self._store.indexes.fault is None
        workers = self._pool is not None and self._pool.is_alive
        return Readiness(database, indexes, workers, self._is_accepting)

    async def _ask_database(self) -> bool:
        return self._pool is not None and await self._pool.database_answers()

    async def _measure_lag(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _LAG_EVERY_S
            await asyncio.sleep(_LAG_EVERY_S)
            self._http_metrics.loop_lag.set(max(loop.time() - due, 0))
            self._sample()
            self._history.sample(time.time())

    def _sample(self) -> None:
        """Set the gauges: those of other processes are read from files, at any time."""
        dropped = self._dropped_lines()
        self._http_metrics.log_dropped.inc(dropped - self._dropped_counted)
        self._dropped_counted = dropped
        if self._server is not None and self._tracker is not None and self._pool is not None:
            self._http_metrics.connections.set(self._server.open_connections)
            self._http_metrics.open.set(self._tracker.open_requests)
            self._pool.sample()

    async def _render_metrics(self) -> bytes:
        self._sample()
        return await self._exposition.text()


def _start_telemetry(registry: CollectorRegistry) -> "Telemetry":
    """Telemetry's packages are an extra: they are looked for only where it is wanted."""
    try:
        from chat_service.otlp import Telemetry
    except ImportError as error:
        raise TelemetryUnusable(
            "the setting telemetry is otlp, and OpenTelemetry is not installed: "
            "CHAT_TELEMETRY=otlp scripts/serve installs it, and so does "
            f"pip install -r requirements/otel.txt ({error})"
        ) from error
    try:
        telemetry = Telemetry(registry)
    except ValueError as error:
        raise TelemetryUnusable(str(error)) from error
    telemetry.start()
    return telemetry
