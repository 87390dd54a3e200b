"""Indexes are created, kept and checked at startup; an unsuitable database is refused."""

from typing import Any

import pytest

from tests.conftest import OpenStore
from tests.store.conftest import Messages
from workers.store.layout import NEWEST
from workers.store.schema import COLLECTION, IndexMismatch, indexes_of


async def test_the_indexes_are_created_and_kept(open_store: OpenStore, mongo: Messages) -> None:
    await open_store()
    await open_store()
    indexes = mongo.index_information()
    assert indexes.keys() == {"_id_", *indexes_of(NEWEST)[COLLECTION]}
    assert indexes["purge"]["expireAfterSeconds"] == 0
    assert indexes[NEWEST.inbox_index]["partialFilterExpression"] == {"unread": True}


@pytest.mark.parametrize(
    ("keys", "options"),
    [
        ([("purge_at", 1)], {"name": "purge", "expireAfterSeconds": 3600}),
        ([("purge_at", 1)], {"name": "other", "expireAfterSeconds": 0}),
        ([("purge_at", 1)], {"name": "purge"}),
        ([("username", 1)], {"name": "inbox"}),
        ([("username", 1), ("_id", 1)], {"name": "inbox"}),
    ],
)
async def test_a_different_index_is_reported_with_a_solution(
    open_store: OpenStore, mongo: Messages, keys: Any, options: Any
) -> None:
    mongo.create_index(keys, **options)
    with pytest.raises(IndexMismatch, match=rf"dropIndex\('{options['name']}'\)"):
        await open_store()
