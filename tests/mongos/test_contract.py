"""The tests of every store, through the emulated router, with an orphan of each posted message.

An update that reaches an orphan changes a count or a state, so these tests notice it. The router
refuses all write statements that are not targeted.
"""

import inspect
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from tests.mongos.router import Router
from tests.store import (
    test_concurrent_moves,
    test_contract,
    test_dead_letters,
    test_delayed_releases,
    test_interrupted_moves,
    test_leases,
    test_lifecycle,
)

#: What needs a mongod, and not just a store.
_OWN = {"mongo", "mongo_uri", "tmp_path"}


def _tests_of(*modules: ModuleType) -> Iterator[tuple[str, Any]]:
    for module in modules:
        for name, test in vars(module).items():
            if name.startswith("test_") and not _OWN & inspect.signature(test).parameters.keys():
                yield name, test


globals().update(
    _tests_of(
        test_contract,
        test_dead_letters,
        test_interrupted_moves,
        test_concurrent_moves,
        test_leases,
        test_lifecycle,
        test_delayed_releases,
    )
)


@pytest.fixture(autouse=True)
def orphans(router: Router) -> Iterator[None]:
    """Leave an orphan of each message, and check at the end that all writes were targeted."""
    router.leaves_orphans = True
    yield
    assert [str(each) for each in router.untargeted() if each.is_write] == []
