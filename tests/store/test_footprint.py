"""The bytes in the model of `chat capacity` are those of this code and this database."""

import pytest

from chat_service.capacity.coefficients import MEASURED
from tests.bench import footprint
from tests.conftest import OpenStore
from workers.store.driver import open_client

MESSAGES, TEXT_BYTES = 4000, 100


async def test_oplog_and_indexes_have_the_bytes_that_are_claimed(
    open_store: OpenStore, mongo_uri: str, database: str
) -> None:
    store = await open_store()
    async with open_client("pymongo", mongo_uri) as client:
        counted = await footprint.measure(store, client, database, MESSAGES, TEXT_BYTES)
    for name in ("oplog_insert", "oplog_claim", "oplog_delete"):
        assert getattr(counted, name) == pytest.approx(getattr(MEASURED, name), rel=0.05), name
    # Pages are filled to different degrees.
    for name in ("index_unread", "index_claimed"):
        assert getattr(counted, name) == pytest.approx(getattr(MEASURED, name), rel=0.3), name
