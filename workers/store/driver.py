"""The interface to the MongoDB driver: PyMongo's async client, or Motor.

This is the only file that knows both. Motor is deprecated in favor of PyMongo's async client. It
mirrors PyMongo's API and runs it on threads, so the store is written once, with PyMongo's types.
"""

import asyncio
import inspect
import os
import random
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Literal, TypeAlias, cast

import pymongo
from bson.codec_options import CodecOptions, DatetimeConversion
from pymongo import AsyncMongoClient
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import NetworkTimeout, PyMongoError, ServerSelectionTimeoutError
from pymongo.monitoring import ConnectionPoolListener
from pymongo.server_description import ServerDescription

Document: TypeAlias = dict[str, Any]
Client: TypeAlias = AsyncMongoClient[Document]
Driver: TypeAlias = Literal["pymongo", "motor"]

#: The newest schema that this version knows. `workers.store.node_versions` finds nodes that know
#: only older ones by the name of their connections. Earlier versions have no schema in it.
SCHEMA_MAX = 2

#: Decodes times to milliseconds since 1970 in UTC. That costs less than a `datetime`, and no time
#: zone can slip in.
TIMES_IN_MS: CodecOptions[Document] = CodecOptions(
    datetime_conversion=DatetimeConversion.DATETIME_MS
)

Address: TypeAlias = tuple[str, int | None]

#: The server that gets the commands of the current task, or None for any.
_pinned: ContextVar[Address | None] = ContextVar("pinned", default=None)


class Progress:
    """How far the commands of a block have come; see `tracked`."""

    #: Whether a server was found for the last command.
    has_server = False
    #: Whether there was a connection for a command. It is written to it at once.
    may_be_sent = False


#: The progress of the current operation. Outside of `tracked`, nothing is known of it.
_progress: ContextVar[Progress | None] = ContextVar("progress", default=None)


class BadConnectionString(Exception):
    """Raised, with the reason, when the driver does not accept the connection string."""


def open_client(driver: Driver, uri: str) -> Client:
    """Return a client for the running event loop. It connects when it is first used.

    Its options override the connection string to keep the guarantees: writes are
    journaled and acknowledged by a majority, reads go to the primary. Raises `BadConnectionString`
    if the connection string is invalid, or names files that cannot be used.
    """
    options: dict[str, Any] = {
        "w": "majority",
        "journal": True,
        "retryWrites": True,
        "retryReads": True,
        "readPreference": "primary",
        # A request has only seconds, so find out quickly that there is no primary.
        "serverSelectionTimeoutMS": 2000,
        "connectTimeoutMS": 2000,
        "heartbeatFrequencyMS": 2000,
        "maxPoolSize": 16,
        "appname": f"chat/{SCHEMA_MAX}/{os.getpid()}",
        "server_selector": _choose,
        "event_listeners": [_Checkouts()],
    }
    with warnings.catch_warnings():
        # The driver would go on without the option: without TLS, for example, if `tls` has an
        # invalid value. Its other warnings are about its own code and about names that it replaces.
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", category=UserWarning, module="pymongo")
        try:
            return _make_client(driver, uri, options)
        except UserWarning as ignored:
            raise BadConnectionString(_reason(ignored)) from ignored
        except (PyMongoError, OSError, ValueError, LookupError, TypeError) as error:
            raise BadConnectionString(_reason(error)) from error


class _Tracking(AbstractContextManager[None]):
    """See `tracked`. A class, since a generator costs twice as many calls."""

    __slots__ = ("_outer", "_progress", "_token")

    def __enter__(self) -> None:
        self._outer, self._progress = _progress.get(), Progress()
        self._token = _progress.set(self._progress)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _progress.reset(self._token)
        if self._outer is not None:
            self._outer.may_be_sent |= self._progress.may_be_sent


def tracked() -> AbstractContextManager[None]:
    """Follow how far the commands of the block come, which run one after the other."""
    return _Tracking()


def may_be_sent() -> bool:
    """Return whether the current operation may have written a command to a connection.

    An error of the driver does not tell: it is the same for a connection that could not be made,
    and for one that was lost before the reply.
    """
    progress = _progress.get()
    return progress is None or progress.may_be_sent


def note_sent() -> None:
    """Note that the current operation may have written a command to a connection."""
    if (progress := _progress.get()) is not None:
        progress.may_be_sent = True


class _Checkouts(ConnectionPoolListener):
    """Notes when a command has found its server, and when it has a connection.

    The driver calls this in the context of the operation, and Motor's threads have a copy of it.
    """

    def connection_check_out_started(self, event: object) -> None:
        if (progress := _progress.get()) is not None:
            progress.has_server = True

    def connection_checked_out(self, event: object) -> None:
        note_sent()

    def _ignore(self, event: object) -> None:
        pass

    pool_created = pool_ready = pool_cleared = pool_closed = _ignore
    connection_created = connection_ready = connection_closed = _ignore
    connection_check_out_failed = connection_checked_in = _ignore


def any_mongos(client: Client) -> Address | None:
    """Return one mongos that the driver knows, by chance. None if it knows no mongos."""
    servers = client.topology_description.server_descriptions()
    routers = [address for address, each in servers.items() if each.server_type_name == "Mongos"]
    return random.choice(routers) if routers else None


@contextmanager
def pinned(address: Address | None) -> Iterator[None]:
    """Send the commands of the block to this server, or to any.

    Of several mongos, the driver chooses one for each command by chance, but only one of them
    knows a cursor. For its own cursors, the driver takes care of that; for raw commands, this does.
    """
    token = _pinned.set(address)
    try:
        yield
    finally:
        _pinned.reset(token)


def _choose(servers: Sequence[ServerDescription]) -> Sequence[ServerDescription]:
    address = _pinned.get()
    return servers if address is None else [each for each in servers if each.address == address]


def _make_client(driver: Driver, uri: str, options: dict[str, Any]) -> Client:
    if driver == "motor":
        from motor.motor_asyncio import AsyncIOMotorClient

        return cast(Client, AsyncIOMotorClient(uri, **options))
    return AsyncMongoClient(uri, **options)


def _reason(error: Exception) -> str:
    """Return what is wrong with a connection string, without anything that may be a password."""
    reason = str(error) or type(error).__name__
    if isinstance(error, OSError):
        file = f" {error.filename!r}" if error.filename else ""
        return f"a file that it names cannot be used:{file} {error.strerror or reason}"
    if isinstance(error, LookupError):
        return f"an option cannot have the value {reason}"
    if "@" in reason:
        return "a name or password in it must be percent-encoded, such as / as %2F and @ as %40"
    reason = reason.removesuffix(" Refer to docstring.")
    return reason.replace(", use urllib.parse.quote_plus", ": / as %2F, @ as %40")


async def hello(client: Client) -> Document:
    """Return the server's reply to `hello`; `localTime` is a `DatetimeMS`.

    Commands are decoded with the driver's default codec, regardless of the client's options. Its
    `datetime`s have no time zone, and Python would interpret them as local time.
    """
    answer: Document = await client.admin.command("hello", codec_options=TIMES_IN_MS)
    return answer


async def run(
    database: AsyncDatabase[Document], command: Document, deadline: float | None = None
) -> Document:
    """Send a command to the primary, and return its reply; times in it are `DatetimeMS`.

    Changes `command`. After the deadline, in seconds of `time.monotonic`, this raises
    `ServerSelectionTimeoutError` if no primary was found, and otherwise `NetworkTimeout`. Without a
    deadline, the limit of `pymongo.timeout` applies.
    """
    if deadline is None:
        return await database.command(command, codec_options=TIMES_IN_MS)
    within_s = max(deadline - time.monotonic(), 0.001)
    if not isinstance(database.client, AsyncMongoClient):
        # Only the driver itself can stop one of Motor's threads.
        with pymongo.timeout(within_s):
            return await database.command(command, codec_options=TIMES_IN_MS)
    command["maxTimeMS"] = int(within_s * 1000)
    if (progress := _progress.get()) is not None:
        progress.has_server = False
    try:
        async with asyncio.timeout(within_s):
            return await database.command(command, codec_options=TIMES_IN_MS)
    except TimeoutError as error:
        # The deadline may be earlier than the driver's own limit.
        if progress is not None and not progress.has_server:
            raise ServerSelectionTimeoutError("there was no primary in time") from error
        raise NetworkTimeout("the command took too long") from error


async def aggregate(
    collection: AsyncCollection[Document], pipeline: list[Document], hint: str | None = None
) -> list[Document]:
    """Return all results of a pipeline. `aggregate` is a coroutine in PyMongo, but not in Motor."""
    options: dict[str, Any] = {} if hint is None else {"hint": hint}
    cursor: Any = collection.aggregate(pipeline, **options)
    if inspect.isawaitable(cursor):
        cursor = await cursor
    results: list[Document] = await cursor.to_list(None)
    return results


async def start_session(client: Client) -> AsyncClientSession:
    """Return a new session. `start_session` is a coroutine in Motor, but not in PyMongo."""
    session: Any = client.start_session()
    if inspect.isawaitable(session):
        session = await session
    return cast(AsyncClientSession, session)


async def close_client(client: Client) -> None:
    """Close all connections. Motor's `close` blocks, since it joins its threads."""
    if isinstance(client, AsyncMongoClient):
        await client.close()
    else:
        await asyncio.to_thread(client.close)
