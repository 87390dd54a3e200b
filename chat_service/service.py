"""The composition root: makes all parts, and starts, drains and stops them in order."""

import asyncio
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, ExitStack
from typing import TYPE_CHECKING

import structlog
from prometheus_client import CollectorRegistry

from chat_service.access.audit import AuditLog
from chat_service.access.control import AccessControl
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
from chat_service.handlers.resource import ResourceHandlers
from chat_service.handlers.sessions import SessionHandlers
from chat_service.handlers.stream import StreamHandlers
from chat_service.metrics.conditions import Database
from chat_service.metrics.history import History
from chat_service.metrics.http import HttpMetrics, TlsMetrics
from chat_service.metrics.multiprocess import Exposition
from chat_service.metrics.recorder import Recorder
from chat_service.metrics.sampler import series_groups_of
from chat_service.openapi import make_document
from chat_service.routes import Handlers, make_routes
from chat_service.server.access_log import AccessLog
from chat_service.server.body_budget import BodyBudget
from chat_service.server.connection import Server
from chat_service.server.connection_counter import ConnectionCounter
from chat_service.server.exchange import ExchangeFactory
from chat_service.server.listener import OPS_NAMES, Listener, addresses_of, bind, connections_max
from chat_service.server.request_tracker import RequestTracker
from chat_service.server.tls import Files, Tls
from chat_service.wiring import (
    access_options_of,
    client_policy_of,
    connection_limits_of,
    dead_letters_of,
    log_names_of,
    message_limits_of,
    pool_limits_of,
    request_limits_of,
    resource_of,
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
from workers.ticks import until_next
from workers.tracing import UNTRACED, Tracer

if TYPE_CHECKING:
    from chat_service.otlp import Telemetry
    from chat_service.otlp.tracing import RequestTracer

log = structlog.get_logger(__name__)

#: How often the start tries the database, and how often the loop's lag is measured, in seconds.
_KNOCK_EVERY_S, _LAG_EVERY_S = 0.5, 1.0
#: The shortest time that the database has to answer at the start, in seconds.
_KNOCK_MIN_S = 1.0
#: A drain ends once no request has arrived for this long, in seconds. The client of a connection
#: that is idle may be about to send one: on a busy machine that takes it far longer than a pause.
_SETTLE_S = 0.25
#: The longest time to wait for the tasks of closed connections, in seconds.
_SETTLE_MAX_S = 1.0
#: How long the text of `/metrics` and the check of the database are reused, in seconds. Each costs
#: as much as ten posts.
METRICS_KEPT_S, CHECK_KEPT_S = 1.0, 0.5


class TelemetryUnusable(Exception):
    """Raised at the start if telemetry cannot be used. The message says what to do."""


class Service:
    """Everything that runs in one process. `start`, then `drain`, then `stop`."""

    # Made by `start`.
    _store: MongoStore
    _pool: WorkerPool
    _tracker: RequestTracker
    _listener: Listener
    _lag: asyncio.Task[None]
    _recorder: Recorder

    def __init__(
        self,
        settings: Settings,
        sockets: Sequence[socket.socket] = (),
        ops_sockets: Sequence[socket.socket] = (),
        dropped_lines: Callable[[], int] = lambda: 0,
        buckets: int = -1,
    ) -> None:
        """Listen on `sockets` if there are any, else on the addresses in the settings.

        `buckets` is the memory of clients' rates that processes share, or -1.
        `dropped_lines` returns how many log lines were dropped so far.
        """
        self.settings = settings
        self.port = 0
        #: What the service does, in words.
        self.status = "starting"
        self._is_accepting = False
        #: Whether the main port serves the routes for operators. `start` decides it for `auto`.
        self._has_ops = settings.ops != "off"
        self._registry = CollectorRegistry()
        self._exposition = Exposition(self._registry)
        self._worker_metrics = WorkerMetrics(self._registry)
        self._http_metrics = HttpMetrics(self._registry)
        parts = series_groups_of(self._http_metrics, self._worker_metrics, settings.shards)
        self._history = History(parts, time.time())
        self._bodies = BodyBudget(settings.bodies_max_bytes)
        self._clock = DatabaseClock()
        self._log_names = log_names_of(settings)
        self._audit = AuditLog(self._log_names)
        self._access = AccessControl(
            access_options_of(settings),
            self._audit,
            self._on_access_changed,
            self._on_access_file,
        )
        #: Those of both ports.
        self._trackers: list[RequestTracker] = []
        self._client_policy = client_policy_of(
            settings, buckets, connections_max(), self._on_limited
        )
        self._sockets, self._ops_sockets = sockets, ops_sockets
        self._dropped_lines, self._dropped_counted = dropped_lines, 0
        self._tracer: RequestTracer | None = None
        self._tls: Tls | None = None
        self._tls_metrics: TlsMetrics | None = None
        #: The steps of `stop`, pushed in the order of the start. The last one runs first.
        self._cleanup = AsyncExitStack()
        self._metrics_text = Shared(self._render_metrics, METRICS_KEPT_S)
        self._database_answers = Shared(self._ask_database, CHECK_KEPT_S)

    async def start(self) -> None:
        """Start every part, and accept connections last.

        Raises `AccessUnusable`, `TelemetryUnusable`, `TlsUnusable`, `PortTaken`,
        `workers.mongod.embedded.EmbeddedError`, `StoreUnavailable`, `StoreMisconfigured` or
        `IndexMismatch`. Call `stop` then, too.
        """
        settings = self.settings
        self._cleanup.push_async_callback(self._access.stop)
        await self._access.start()
        if settings.telemetry == "otlp":
            telemetry = _start_telemetry(self._registry)
            self._cleanup.push_async_callback(telemetry.stop)
            self._tracer = telemetry.tracer
        if settings.tls_certificate:
            files = Files(settings.tls_certificate, settings.tls_key)
            self._tls_metrics = TlsMetrics(self._registry)
            self._tls = Tls(files, self._tls_metrics.loaded)
            watch = asyncio.create_task(self._tls.watch(), name="tls-files")
            self._cleanup.push_async_callback(_cancel, watch)
        # If the start fails, close the sockets at once, so that clients do not wait for nothing.
        with ExitStack() as unserved:
            sockets = self._sockets or bind(settings.host, settings.port)
            for each in sockets:
                unserved.enter_context(each)
            self.port = sockets[0].getsockname()[1]
            ops_sockets = self._ops_sockets
            if settings.ops_port and not ops_sockets:
                ops_sockets = bind(settings.ops_host, settings.ops_port, OPS_NAMES)
            for each in ops_sockets:
                unserved.enter_context(each)
            self._history.node.name = f"{socket.gethostname()}:{self.port}"
            await self._start_store()
            servers = self._make_servers(sockets, ops_sockets)
            self._cleanup.push_async_callback(self._pool.stop)
            await self._pool.start()
            unserved.pop_all()
        for server, its_sockets in servers:
            self._cleanup.callback(server.stop)
            server.add_sockets(its_sockets)
        self._lag = asyncio.create_task(self._measure_lag(), name="loop-lag")
        self._cleanup.push_async_callback(_cancel, self._lag)
        self._sample()
        self._history.sample(time.time())
        self._recorder = Recorder(self._history, self._store)
        self._cleanup.push_async_callback(self._recorder.stop)
        self._recorder.start()
        self._cleanup.callback(self._take_last_sample)
        self._is_accepting = True
        self.status = "serving"

    def _on_access_changed(self) -> None:
        """Have open requests and cached heads notice that tokens have changed or ended."""
        # There is no listener yet while the start waits for the database.
        if self._trackers:
            self._listener.forget_ended()
        for tracker in self._trackers:
            tracker.recheck()

    def _on_access_file(self, is_usable: bool) -> None:
        self._http_metrics.access_file_broken.set(not is_usable)

    async def _start_store(self) -> None:
        """Start the embedded MongoDB if it is needed, and open the store."""
        settings, uri = self.settings, self.settings.mongo_uri
        if not uri:
            mongod = EmbeddedMongod(settings.data_dir, settings.mongod, self._count_mongod_restart)
            self._cleanup.push_async_callback(mongod.stop)
            uri = await mongod.start()
        options = store_options_of(settings)
        self._store = MongoStore(
            uri, options, self._clock, self._worker_metrics, self._engine_tracer
        )
        self._cleanup.push_async_callback(self._store.close)
        await self._open_store(self._store)
        if settings.log_usernames == "hashed" and not settings.log_username_key:
            await self._share_log_key(self._store)

    def _count_mongod_restart(self) -> None:
        self._worker_metrics.mongod_restarts.inc()
        self._history.mongod_restarted(time.time())

    def _make_servers(
        self, sockets: Sequence[socket.socket], ops_sockets: Sequence[socket.socket]
    ) -> list[tuple[Server, Sequence[socket.socket]]]:
        """Make the pool, and a server for each port, which does not listen yet."""
        settings, limits = self.settings, connection_limits_of(self.settings)
        if settings.ops == "auto":
            self._has_ops = all(is_loopback_address(each) for each in addresses_of(sockets))
        self._pool = WorkerPool(
            self._store,
            self._clock,
            pool_limits_of(settings),
            self._worker_metrics,
            self._engine_tracer,
        )
        handlers = self._make_handlers(self._pool)
        self._cleanup.push_async_callback(self._database_answers.close)
        self._cleanup.push_async_callback(self._metrics_text.close)
        servers: list[tuple[Server, Sequence[socket.socket]]] = []
        if ops_sockets:
            alone = handlers._replace(pages=PageHandlers(absent=(b"./", b"docs")))
            ops_routes = make_routes(alone, 0, frozenset(), ("operators", "everyone"))
            ops_tracker = self._make_tracker(ops_sockets, is_ops=True)
            self._trackers.append(ops_tracker)
            ops_server = Server(_make_exchanges(ops_routes, ops_tracker), limits, self._tls)
            self._cleanup.push_async_callback(ops_server.close_all_connections)
            self._cleanup.push_async_callback(ops_tracker.idle, _SETTLE_MAX_S)
            servers.append((ops_server, ops_sockets))
        self._tracker = self._make_tracker(sockets)
        self._trackers.append(self._tracker)
        self._listener = Listener(
            _make_exchanges(self._make_routes(handlers), self._tracker),
            self._tracker,
            handlers.inbox,
            self._http_metrics.handoffs.inc,
            limits,
            self._tls,
        )
        # Once its connections are closed, the tasks that serve them notice it and end.
        self._cleanup.push_async_callback(self._tracker.idle, _SETTLE_MAX_S)
        self._cleanup.push_async_callback(self._listener.close_all_connections)
        servers.append((self._listener, sockets))
        return servers

    async def drain(self) -> bool:
        """Finish the accepted requests, and accept no more. Return False if time ran out.

        In this order: report not ready, wait for load balancers to notice, accept no more
        connections, answer the open requests, and empty the queues.
        """
        self._is_accepting = False
        self.status = "draining"
        await asyncio.sleep(self.settings.drain_delay_s)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.settings.drain_timeout_s
        self._listener.accept_waiting()
        self._listener.stop()
        self._listener.end_keep_alive()
        self._pool.end_waits()
        left = await self._settle(deadline)
        is_empty = await self._pool.drain(max(deadline - loop.time(), 0.1))
        log.info("drained", unanswered=left, in_time=is_empty and not left)
        return is_empty and not left

    async def _settle(self, deadline: float) -> int:
        """Wait until no request is open, and no request or TLS handshake was begun for a while.

        Return how many requests are still open at the deadline.
        """
        loop, tracker = asyncio.get_running_loop(), self._tracker
        while True:
            answered = tracker.requests, self._listener.handshake_steps
            await asyncio.sleep(_SETTLE_S)
            left = await tracker.idle(max(deadline - loop.time(), 0))
            now = tracker.requests, self._listener.handshake_steps
            if now == answered or loop.time() > deadline:
                return left

    async def stop(self) -> None:
        """Stop every part, the database last.

        Everything has stopped when it returns. Safe to call twice, and after a failed `start`.
        """
        self._is_accepting = False
        await self._cleanup.aclose()

    async def _open_store(self, store: MongoStore) -> None:
        """Open the store. Wait for a database that is still starting."""
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
                    log.warning("waiting for the database", reason=reason)
                    self.status = f"waiting for the database: {reason}"
            await asyncio.sleep(_KNOCK_EVERY_S)

    async def _share_log_key(self, store: MongoStore) -> None:
        """Hash inboxes in the log as all nodes do, and as `chat inspect` does."""
        try:
            key = await store.log_key()
        except StoreUnavailable as error:
            log.warning("inboxes have hashes of their own in this log", reason=str(error)[:200])
            return
        if key is not None:
            self._log_names.share_inboxes(key)

    def _make_handlers(self, pool: WorkerPool) -> Handlers:
        settings = self.settings
        rules, waits = message_limits_of(settings), wait_limits_of(settings)
        origins = frozenset(settings.allowed_origins)
        return Handlers(
            InboxHandlers(
                pool,
                rules,
                waits,
                self._worker_metrics.undelivered.inc,
                dead_letters_of(settings).inbox_of,
            ),
            BatchHandlers(
                pool,
                rules,
                settings.max_batch_messages,
                self._audit.failed,
                self._client_policy.limiter,
            ),
            LeaseHandlers(pool, rules, waits),
            StreamHandlers(pool, rules, origins, settings.write_timeout_s),
            MessageHandlers(pool),
            SessionHandlers(self._access.gate, self._audit),
            ResourceHandlers(resource_of(settings)),
            HealthHandlers(self._readiness, self._metrics_text.get),
            PageHandlers(absent=() if self._has_ops else (b"ops",)),
            DashboardHandlers(self._history.document),
        )

    def _make_tracker(
        self, sockets: Sequence[socket.socket], *, is_ops: bool = False
    ) -> RequestTracker:
        # Monitoring addresses the operators' port by IP address.
        rule = host_rule(self.settings.allowed_hosts, addresses_of(sockets), has_addresses=is_ops)
        limits = request_limits_of(self.settings, rule)
        access_log = AccessLog(self.settings.log_requests_per_s, self._log_names)
        return RequestTracker(
            limits,
            self._http_metrics,
            access_log,
            self._worker_metrics.undelivered.inc,
            self._bodies,
            self._make_counter(is_ops),
            self._access.gate,
            self._audit,
            self._client_policy,
            self._tracer,
        )

    def _make_counter(self, is_ops: bool) -> ConnectionCounter:
        if is_ops:
            return ConnectionCounter()
        each_max = self.settings.client_connections_max
        return ConnectionCounter(each_max, self._client_policy.proxies, self._on_limited)

    def _on_limited(self, client: str, limit: str) -> None:
        self._http_metrics.limited.labels(limit).inc()
        self._audit.limited(client, limit)

    @property
    def _engine_tracer(self) -> Tracer:
        return UNTRACED if self._tracer is None else self._tracer

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
        has_indexes = self._store.indexes.fault is None
        return Readiness(database, has_indexes, self._pool.is_alive, self._is_accepting)

    async def _ask_database(self) -> bool:
        return await self._pool.database_answers()

    async def _measure_lag(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            wait_s = until_next(_LAG_EVERY_S)
            due = loop.time() + wait_s
            await asyncio.sleep(wait_s)
            self._http_metrics.loop_lag.set(max(loop.time() - due, 0))
            self._sample()
            self._history.sample(time.time())

    def _sample(self) -> None:
        """Set the gauges, because other processes may read them from files at any time."""
        dropped = self._dropped_lines()
        self._http_metrics.log_dropped.inc(dropped - self._dropped_counted)
        self._dropped_counted = dropped
        self._http_metrics.connections.set(self._tracker.connections.open)
        self._http_metrics.open.set(self._tracker.open_requests)
        self._http_metrics.jwt_keys_broken.set(bool(self._access.keys_fault))
        self._pool.sample()
        store, is_available = self._store, self._pool.is_database_available
        database = Database(
            "available" if is_available else "unavailable",
            "mongos" if store.is_routed else "replica set",
            store.version,
            store.members,
        )
        self._history.node.observe(self._pool, database, self._tls_metrics)
        if (limiter := self._client_policy.limiter) is not None:
            self._http_metrics.forgotten.set(limiter.forgotten)

    def _take_last_sample(self) -> None:
        self._sample()
        self._history.sample(time.time(), is_last=True)

    async def _render_metrics(self) -> bytes:
        self._sample()
        return await self._exposition.text()


def _make_exchanges(routes: Sequence[Route], tracker: RequestTracker) -> ExchangeFactory:
    table = RouteTable(routes, tracker.max_body_bytes, tracker.gate.own_origins)
    return ExchangeFactory(table, tracker)


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _start_telemetry(registry: CollectorRegistry) -> "Telemetry":
    """Start telemetry. Its packages are optional, so they are imported only here."""
    try:
        from chat_service.otlp import Telemetry
    except ImportError as error:
        raise TelemetryUnusable(
            "telemetry is set to otlp, but OpenTelemetry is not installed: "
            "CHAT_TELEMETRY=otlp scripts/serve installs it in a checkout; elsewhere, install "
            f"chat-inbox[otel] ({error})"
        ) from error
    try:
        telemetry = Telemetry(registry)
    except ValueError as error:
        raise TelemetryUnusable(str(error)) from error
    telemetry.start()
    return telemetry
