"""Errors of the database: which of them mean that nothing was done, and how to fix the cause."""

from typing import Any

import pytest
from pymongo.errors import (
    AutoReconnect,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
)

from tests.conftest import OpenStore
from workers.errors import IndexMissing, OutcomeUnknown, ServiceError, StoreUnavailable
from workers.store import connection
from workers.store.base import Storage
from workers.store.connection import StoreMisconfigured
from workers.store.driver import Client, Document
from workers.store.driver_errors import (
    StoreRefused,
    explain_refusal,
    read_errors,
    short_reason,
    write_errors,
)

LACKS_RIGHT = 'not authorized on chat to execute command { insert: "messages", text: "secret" }'
NO_INDEX = "error processing query: hint provided does not correspond to an existing index"


def refusal(code: int, errmsg: str) -> OperationFailure:
    """Return the error of the driver for a command that the database refuses."""
    return OperationFailure(errmsg, code, {"errmsg": errmsg, "code": code})


@pytest.mark.parametrize(
    ("error", "of_read", "of_write"),
    [
        (refusal(2, NO_INDEX), IndexMissing, IndexMissing),
        (refusal(13, LACKS_RIGHT), StoreRefused, OutcomeUnknown),
        (refusal(11601, "interrupted"), StoreUnavailable, OutcomeUnknown),
        (AutoReconnect("reset"), StoreUnavailable, OutcomeUnknown),
        (ServerSelectionTimeoutError("none"), StoreUnavailable, StoreUnavailable),
    ],
    ids=["no index", "no right", "interrupted", "connection reset", "no primary"],
)
def test_each_error_has_one_meaning(
    error: PyMongoError, of_read: type[ServiceError], of_write: type[ServiceError]
) -> None:
    with pytest.raises(ServiceError) as read, read_errors():
        raise error
    with pytest.raises(ServiceError) as written, write_errors():
        raise error
    assert (type(read.value), type(written.value)) == (of_read, of_write)
    assert "secret" not in f"{read.value} {written.value}"


def test_only_a_missing_primary_counts_as_unavailable() -> None:
    for error, is_unavailable in (
        (ServerSelectionTimeoutError("none"), True),
        (AutoReconnect("reset"), False),
    ):
        with pytest.raises(StoreUnavailable) as raised, read_errors():
            raise error
        assert raised.value.is_unavailable is is_unavailable


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (refusal(13, LACKS_RIGHT), "allow this user to insert in chat: grant the user the role"),
        (refusal(13, "command find requires authentication"), "requires a user: name one in"),
        (refusal(18, "Authentication failed."), "check name, password and authSource"),
    ],
    ids=["no right", "no user", "wrong password"],
)
def test_a_refusal_says_how_to_fix_it(error: OperationFailure, advice: str) -> None:
    assert advice in explain_refusal(error)


#: What the drivers add to each reason.
TIMEOUTS = " (configured timeouts: connectTimeoutMS: 2000.0ms), Timeout: 4.0s, Topology Descr..."
CLOSED = "the server closed the connection"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("db:1: connection closed", f"db:1: {CLOSED}; if it requires TLS, add tls=true to"),
        ("db:1: connection is already closed", f"db:1: {CLOSED}; if it requires TLS, add tls=true"),
        ("db:1: [Errno 104] Connection reset by peer", f"db:1: {CLOSED}; if it requires TLS"),
        ("a:1: connection closed,b:1: connection closed", f"a:1: {CLOSED},b:1: {CLOSED}; if it"),
        ("SSL handshake failed: db:1: ", f"failed: db:1: {CLOSED}; if it does not use TLS, remove"),
        (
            "SSL handshake failed: db:1: [SSL: UNEXPECTED_EOF_WHILE_READING] EOF occurred in "
            "violation of protocol (_ssl.c:1006)",
            f"failed: db:1: {CLOSED}; if it does not use TLS, remove tls=true from",
        ),
    ],
    ids=["closed", "closed before", "reset", "two servers", "handshake", "handshake in a thread"],
)
def test_a_closed_connection_has_one_advice(words: str, reason: str) -> None:
    assert reason in short_reason(ServerSelectionTimeoutError(words + TIMEOUTS))


def test_a_connection_lost_later_is_not_about_tls() -> None:
    assert short_reason(AutoReconnect(f"db:1: connection closed{TIMEOUTS}")) == f"db:1: {CLOSED}"


async def test_an_invalid_string_is_a_misconfiguration(open_store: OpenStore) -> None:
    with pytest.raises(StoreMisconfigured, match=r"correct --mongo-uri \(CHAT_MONGO_URI\)"):
        await open_store(uri="mongodb://db:port")


@pytest.mark.parametrize(
    ("server", "reason"),
    [({}, "without a replica set"), (refusal(13, LACKS_RIGHT), "grant the user the role")],
    ids=["a single mongod", "a user without a role"],
)
async def test_an_unsuitable_database_is_a_misconfiguration(
    open_store: OpenStore,
    monkeypatch: pytest.MonkeyPatch,
    server: Document | PyMongoError,
    reason: str,
) -> None:
    async def hello(client: Client) -> Document:
        if isinstance(server, PyMongoError):
            raise server
        return server

    monkeypatch.setattr(connection, "hello", hello)
    with pytest.raises(StoreMisconfigured, match=reason):
        await open_store()


async def test_hidden_free_space_refuses_no_post(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = await open_store()
    answer: Document | PyMongoError = refusal(13, "not authorized")

    class Database:
        async def command(self, command: Document) -> Document:
            if isinstance(answer, PyMongoError):
                raise answer
            return answer

    real: Any = store._client
    monkeypatch.setattr(store, "_client", {store._options.database: Database()})
    try:
        assert await store.measure_storage() is None
        assert await store.measure_storage() is None
        assert capsys.readouterr().out.count("does not report its free space") == 1
        answer = AutoReconnect("reset")
        with pytest.raises(StoreUnavailable):
            await store.measure_storage()
        answer = {"fsTotalSize": 0, "fsUsedSize": 0}
        # Some hosted databases do not report their disk.
        assert await store.measure_storage() == Storage(0, 0, 0, 0)
        answer = {"fsTotalSize": 100.0, "fsUsedSize": 60.0, "totalFreeStorageSize": 7}
        assert await store.measure_storage() == Storage(100, 40, 7, 0)
        answer |= {"dataSize": 50.0, "storageSize": 30, "indexSize": 9}
        assert await store.measure_storage() == Storage(100, 40, 7, 59)
        answer |= {"storageSize": 90}
        assert await store.measure_storage() == Storage(100, 40, 7, 92)
    finally:
        monkeypatch.setattr(store, "_client", real)
