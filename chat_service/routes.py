"""The route table: one description per route.

A new route needs a handler, an entry here, an entry in `chat_service.openapi`, a test, and a
section in docs/api.md. Used by `chat_service.service`.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from chat_service.api.request_options import LEASE_PARAMETERS, POST_PARAMETERS, READ_PARAMETERS
from chat_service.api.routing import INBOX_PATH, POST_PATH, STREAM_PATH, Audience, Route
from chat_service.handlers.batch import BatchHandlers
from chat_service.handlers.dashboard import DashboardHandlers
from chat_service.handlers.health import HealthHandlers
from chat_service.handlers.inbox import InboxHandlers
from chat_service.handlers.leases import LeaseHandlers
from chat_service.handlers.messages import MessageHandlers
from chat_service.handlers.pages import PageHandlers
from chat_service.handlers.resource import ResourceHandlers
from chat_service.handlers.sessions import SessionHandlers
from chat_service.handlers.stream import StreamHandlers


class Handlers(NamedTuple):
    """The handlers of all parts of the API."""

    inbox: InboxHandlers
    batch: BatchHandlers
    leases: LeaseHandlers
    stream: StreamHandlers
    messages: MessageHandlers
    sessions: SessionHandlers
    resource: ResourceHandlers
    health: HealthHandlers
    pages: PageHandlers
    dashboard: DashboardHandlers


def make_routes(
    handlers: Handlers,
    max_batch_bytes: int,
    allowed_origins: frozenset[str],
    audiences: Collection[Audience],
) -> Sequence[Route]:
    """Return the routes for these audiences.

    A username is one whole segment, and no name is reserved. If several routes fit a path, the
    first one that has the method is used: a POST to `/chat/batch` stores a batch, and a GET reads
    the inbox named `batch`. A path whose methods need different rights has several routes.
    """
    inbox, batch, leases, stream, messages, sessions, resource, health, pages, dashboard = handlers
    routes = (
        Route(POST_PATH, {"POST": inbox.post}, effect="stored", right="send"),
        Route(
            "/chat/batch",
            {"POST": batch.post},
            effect="stored",
            max_body_bytes=max_batch_bytes,
            is_charged_by_handler=True,
            right="send",
        ),
        Route(
            INBOX_PATH,
            {"GET": inbox.read, "HEAD": inbox.count},
            can_wait=True,
            parameters=READ_PARAMETERS,
            right="read",
        ),
        Route(
            INBOX_PATH,
            {"POST": inbox.post_text},
            effect="stored",
            parameters=POST_PARAMETERS,
            right="send",
        ),
        Route(
            "/chat/:username/read",
            {"POST": inbox.read},
            can_wait=True,
            parameters=READ_PARAMETERS,
            right="read",
        ),
        Route(
            "/chat/:username/lease",
            {"POST": leases.take},
            can_wait=True,
            parameters=LEASE_PARAMETERS,
            right="read",
        ),
        Route(
            "/chat/:username/ack",
            {"POST": leases.acknowledge},
            "changed",
            parameters=(),
            right="read",
            frees_work=True,
        ),
        Route(
            "/chat/:username/release",
            {"POST": leases.release},
            "changed",
            parameters=(),
            right="read",
            frees_work=True,
        ),
        Route(
            "/chat/:username/extend",
            {"POST": leases.extend},
            "changed",
            parameters=(),
            right="read",
            frees_work=True,
        ),
        Route(
            STREAM_PATH,
            {"GET": stream.stream},
            parameters=(),
            right="read",
            allowed_origins=allowed_origins,
            takes_websockets=True,
            is_stream=True,
        ),
        Route("/messages/:id", {"DELETE": messages.revoke}, "changed", right="any"),
        Route("/messages/:id/status", {"GET": messages.status}, "changed", right="any"),
        Route(
            "/session",
            {"GET": sessions.show, "POST": sessions.begin, "DELETE": sessions.end},
            "changed",
        ),
        Route("/.well-known/oauth-protected-resource", {"GET": resource.metadata}),
        Route("/", {"GET": pages.inbox, "HEAD": pages.inbox}),
        Route("/docs", {"GET": pages.docs, "HEAD": pages.docs}),
        Route("/openapi.json", {"GET": pages.openapi, "HEAD": pages.openapi}),
        Route(
            "/livez",
            {"GET": health.live, "HEAD": health.live},
            is_probe=True,
            takes_any_host=True,
        ),
        Route(
            "/readyz",
            {"GET": health.ready, "HEAD": health.ready},
            is_probe=True,
            takes_any_host=True,
        ),
        Route("/assets/:file", {"GET": pages.asset, "HEAD": pages.asset}),
        Route("/ops", {"GET": pages.dashboard, "HEAD": pages.dashboard}),
        Route("/ops/runbook", {"GET": pages.runbook, "HEAD": pages.runbook}),
        Route(
            "/ops/history",
            {"GET": dashboard.history, "HEAD": dashboard.history},
            right="ops",
        ),
        Route(
            "/metrics",
            {"GET": health.metrics, "HEAD": health.metrics},
            right="ops",
            is_probe=True,
        ),
    )
    return tuple(route for route in routes if route.audience in audiences)
