"""Translates the settings into the options and limits of each part.

The parts do not know `Settings`. Called by `chat_service.service`, which makes the parts.
"""

import os
import socket
from collections.abc import Callable

from chat_service.access.buckets import Buckets, Rate
from chat_service.access.clients import TrustedProxies
from chat_service.access.control import AccessOptions
from chat_service.access.limits import ClientPolicy, ClientRates, RateLimiter, Waits
from chat_service.api.log_lines import NODE_KEY_VARIABLE, LogNames
from chat_service.api.request_options import WaitLimits
from chat_service.api.request_policy import HostRule, is_loopback_address, origin_of
from chat_service.api.validation import MessageLimits
from chat_service.handlers.resource import ProtectedResource
from chat_service.openapi import Terms
from chat_service.server.connection import ConnectionLimits
from chat_service.server.request_tracker import RequestLimits
from config import Settings
from config.settings import STORAGE_FREE_MIN_BYTES
from workers.dead_letters import DeadLetters
from workers.inbox_quotas import QuotaLimits
from workers.pool import PoolLimits
from workers.queue import QueueLimits
from workers.shard import ShardLimits
from workers.storage import StorageLimits
from workers.store.connection import StoreOptions

#: How much a bucket holds unless a setting says it, in seconds of its rate.
_BURST_S = 10
#: The part of all connections that can be long polls and streams. Others need the rest.
_WAITS_SHARE = 0.75


def access_options_of(settings: Settings) -> AccessOptions:
    """Return which tokens are taken, and where their rights and keys are."""
    return AccessOptions(
        settings.access,
        settings.access_file,
        settings.jwt_issuer,
        settings.jwt_audience,
        settings.jwt_keys,
        settings.mongo_wait_s,
        frozenset({origin_of(settings.public_url)} - {""}),
    )


def resource_of(settings: Settings) -> ProtectedResource:
    """Return the issuer of JSON Web Tokens, and the URL of the service."""
    scheme = "https" if settings.tls_certificate else "http"
    return ProtectedResource(settings.jwt_issuer, settings.public_url, scheme)


def is_local(settings: Settings) -> bool:
    """Return whether only programs on this machine can use the service."""
    return settings.host == "localhost" or is_loopback_address(settings.host)


def is_open_to_all(settings: Settings) -> bool:
    """Return whether other machines can use the service, and access control is off."""
    return settings.access == "off" and not is_local(settings)


def message_limits_of(settings: Settings) -> MessageLimits:
    """Return the limits of a message."""
    return MessageLimits(
        settings.max_username_chars,
        settings.max_text_bytes,
        settings.default_timeout_s,
        settings.max_timeout_s,
    )


def wait_limits_of(settings: Settings) -> WaitLimits:
    """Return how long a read may wait, and a lease last."""
    return WaitLimits(settings.max_wait_s, settings.max_lease_s)


def terms_of(settings: Settings) -> Terms:
    """Return the limits that the OpenAPI document states."""
    return Terms(
        message_limits_of(settings),
        wait_limits_of(settings),
        settings.max_body_bytes,
        settings.max_batch_messages,
        settings.max_batch_bytes,
        settings.receipt_keep_s,
        settings.access,
    )


def dead_letters_of(settings: Settings) -> DeadLetters:
    """Return when a message becomes a dead letter, and where."""
    return DeadLetters(
        settings.max_deliveries, settings.dead_letter_inbox, settings.max_username_chars
    )


def store_options_of(settings: Settings) -> StoreOptions:
    """Return how the store uses the database.

    Without a URI, this process has started the database for itself alone.
    """
    return StoreOptions(
        driver=settings.mongo_driver,
        database=settings.mongo_database,
        timeout_s=settings.mongo_timeout_s,
        purge_grace_s=settings.purge_grace_s,
        receipt_keep_s=settings.receipt_keep_s,
        node=f"{socket.gethostname()}/{os.getpid()}",
        dead_letters=dead_letters_of(settings),
        is_sole=not settings.mongo_uri,
    )


def pool_limits_of(settings: Settings) -> PoolLimits:
    """Return the limits of queues, batches and storage."""
    return PoolLimits(
        settings.shards,
        QueueLimits(settings.queue_max, settings.queue_max_bytes, settings.inbox_queue_max),
        ShardLimits(
            settings.batch_max, settings.batch_max_bytes, settings.slice_max, settings.deadline_s
        ),
        settings.deadline_s,
        settings.waiters_max,
        StorageLimits(
            settings.storage_free_min_bytes,
            # The default keeps at most a fifth of the disk free. Operators who set a limit know
            # their disk.
            0.2 if settings.storage_free_min_bytes == STORAGE_FREE_MIN_BYTES else 1.0,
            settings.storage_max_bytes,
        ),
        QuotaLimits(settings.inbox_messages_max, settings.inbox_bytes_max),
        settings.batch_interval_s,
    )


def request_limits_of(settings: Settings, host_rule: HostRule) -> RequestLimits:
    """Return the limits of a request and of writing its response."""
    return RequestLimits(settings.max_body_bytes, settings.write_timeout_s, host_rule)


def client_rates_of(settings: Settings) -> ClientRates | None:
    """Return the rates of each client, or None without any."""
    requests, size = settings.client_requests_per_s, float(settings.client_bytes_per_s)
    if not requests and not size:
        return None
    burst = settings.client_burst or max(requests * _BURST_S, 1)
    return ClientRates(Rate(requests, burst), Rate(size, size * _BURST_S))


def client_policy_of(
    settings: Settings, buckets: int, connections: int, on_limited: Callable[[str, str], None]
) -> ClientPolicy:
    """Return how clients are limited.

    `buckets` is the memory that processes share, or -1, and `connections` is how many connections
    there can be.
    """
    rates, limiter = client_rates_of(settings), None
    if rates is not None:
        limiter = RateLimiter(rates, Buckets(*rates, buckets), on_limited)
    return ClientPolicy(
        TrustedProxies(settings.trusted_proxies) if settings.trusted_proxies else None,
        limiter,
        Waits(settings.client_waiters_max, int(connections * _WAITS_SHARE), on_limited),
    )


def connection_limits_of(settings: Settings) -> ConnectionLimits:
    """Return the limits of every connection."""
    return ConnectionLimits(
        header_max_bytes=settings.max_header_bytes,
        idle_timeout_s=settings.idle_timeout_s,
        body_timeout_s=settings.body_timeout_s,
    )


def log_names_of(settings: Settings) -> LogNames:
    """Return how log lines name inboxes and clients."""
    key = settings.log_username_key or os.environ.get(NODE_KEY_VARIABLE, "")
    return LogNames(settings.log_usernames, settings.log_clients, key)
