"""Fixtures for tests of access."""

from pathlib import Path

import pytest
from tornado.ioloop import IOLoop

from chat_service.service import Service
from tests.conftest import StartService
from tests.support.access import PATHS, everybody, write


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest) -> bytes:
    """The header that selects a path."""
    return PATHS[request.param]


@pytest.fixture
def access_file(tmp_path: Path) -> Path:
    """The access file, with all holders and without anonymous requests."""
    file = tmp_path / "access.toml"
    write(file, everybody())
    return file


@pytest.fixture
def guarded(io_loop: IOLoop, start_service: StartService, access_file: Path) -> Service:
    """A service that takes tokens."""

    async def start() -> Service:
        return await start_service(access="tokens", access_file=str(access_file))

    service: Service = io_loop.run_sync(start, timeout=120)
    return service
