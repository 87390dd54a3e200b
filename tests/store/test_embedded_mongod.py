"""The embedded MongoDB within one process: its directory, socket, restarts and errors."""

import asyncio
import os
import shutil
import signal
import stat
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from pymongo import AsyncMongoClient
from pymongo.errors import AutoReconnect, PyMongoError

from tests.support.server import mongods_on
from tests.support.waiting import eventually
from workers.mongod import embedded
from workers.mongod.embedded import (
    DataDirectoryUnusable,
    EmbeddedError,
    EmbeddedMongod,
    find_mongod,
    first_start_bytes,
    owner_of,
    socket_path,
    uri_of,
)

pytestmark = pytest.mark.usefixtures("io_loop")


@asynccontextmanager
async def running(
    data_dir: Path, program: str = "", on_restart: Callable[[], None] = lambda: None
) -> AsyncIterator[str]:
    """Run a mongod on a data directory, and yield its connection string."""
    mongod = EmbeddedMongod(data_dir, program, on_restart)
    try:
        yield await mongod.start()
    finally:
        await mongod.stop()


async def stored(uri: str) -> list[int]:
    """Return the numbers in a database."""
    async with AsyncMongoClient[dict[str, int]](uri) as client:
        found = await client.test.numbers.find().sort("_id", 1).to_list(None)
    return [document["_id"] for document in found]


async def await_data(uri: str, numbers: list[int]) -> None:
    """Wait until a restarted mongod serves these numbers."""

    async def is_back() -> bool:
        with suppress(PyMongoError):
            return await stored(uri) == numbers
        return False

    await eventually(is_back, 30)


async def store(uri: str, number: int) -> None:
    """Store a number in a database."""
    async with AsyncMongoClient[dict[str, int]](uri) as client:
        await client.test.numbers.insert_one({"_id": number})


def script(folder: Path, body: str) -> str:
    """Write a shell script that takes the place of mongod. Return its path."""
    program = folder / "mongod"
    program.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    program.chmod(0o755)
    return str(program)


async def test_data_survives_a_stop_and_a_move(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    async with running(data_dir) as uri:
        await store(uri, 1)
        assert uri == uri_of(data_dir)
        assert owner_of(data_dir) == str(os.getpid())
        assert stat.S_IMODE(data_dir.stat().st_mode) == 0o700
    assert mongods_on(data_dir) == []
    assert owner_of(data_dir) is None
    moved = tmp_path / ("long-" * 20)
    data_dir.rename(moved)
    async with running(moved) as uri:
        assert await stored(uri) == [1]
        socket = socket_path(moved)
        assert socket.parent != moved, "the path is too long for a socket"
        assert socket.exists()
        assert uri == uri_of(moved)
    assert not socket.parent.exists()
    assert not (moved / "socket-place").exists()


async def test_a_dead_mongod_or_a_lost_socket_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "CHECK_EVERY_S", 0.05)
    data_dir = tmp_path / "data"
    async with running(data_dir) as uri:
        await store(uri, 1)
        (killed,) = mongods_on(data_dir)
        os.kill(killed, signal.SIGKILL)

        async def is_replaced() -> bool:
            return socket_path(data_dir).exists() and killed not in mongods_on(data_dir)

        await eventually(is_replaced, 30)
        await await_data(uri, [1])
        (unreachable,) = mongods_on(data_dir)
        socket_path(data_dir).unlink()

        async def is_reachable() -> bool:
            return socket_path(data_dir).exists() and unreachable not in mongods_on(data_dir)

        await eventually(is_reachable, 30)
        await await_data(uri, [1])


async def test_a_second_server_is_refused_with_the_first_named(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    async with running(data_dir):
        with pytest.raises(DataDirectoryUnusable, match=f"in use by process {os.getpid()};"):
            await EmbeddedMongod(data_dir, "").start()


async def test_the_lock_of_a_dead_server_is_awaited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "LOCK_S", 0.1)
    data_dir = tmp_path / "data"
    async with running(data_dir):
        # No process has this id, as if the server were dead and its mongod still running.
        (data_dir / "lock").write_text(f"{1 << 30}\n", encoding="ascii")
        with pytest.raises(DataDirectoryUnusable, match="in use by process"):
            await EmbeddedMongod(data_dir, "").start()


async def test_a_program_that_ends_is_reported(tmp_path: Path) -> None:
    program = script(tmp_path, "echo 'no such option' >&2; exit 2")
    mongod = EmbeddedMongod(tmp_path / "data", program)
    with pytest.raises(EmbeddedError, match="did not start: it ended with 2: no such option"):
        await mongod.start()
    assert owner_of(tmp_path / "data") is None, "the lock is released"


class Converting:
    """A client that turns a cancellation into an error of its own, as PyMongo sometimes does."""

    @property
    def admin(self) -> "Converting":
        return self

    async def command(self, name: str) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise AutoReconnect("operation cancelled") from None


async def test_a_cancellation_that_became_an_error_ends_the_start(tmp_path: Path) -> None:
    mongod = EmbeddedMongod(tmp_path, "")
    client: Any = Converting()
    waiting = asyncio.create_task(mongod._await_primary(client))
    await asyncio.sleep(0.01)
    waiting.cancel()
    done, _ = await asyncio.wait((waiting,), timeout=30)
    waiting.cancel()
    assert done, "it waits for no further answer"


async def test_a_program_that_never_listens_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "START_S", 0.5)
    monkeypatch.setattr(embedded, "STOP_S", 0.1)
    # It ignores SIGTERM, and would run for a minute.
    program = script(tmp_path, f"trap '' TERM; echo $$ > {tmp_path}/pid; exec sleep 60")
    with pytest.raises(EmbeddedError, match="did not become primary in"):
        await EmbeddedMongod(tmp_path / "data", program).start()
    pid = int((tmp_path / "pid").read_text(encoding="ascii"))
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_socket_that_is_deleted_during_a_start_ends_it(tmp_path: Path) -> None:
    socket = tmp_path / "data" / "mongod.sock"
    program = script(tmp_path, f"touch {socket}; sleep 0.3; rm {socket}; exec sleep 600")
    with pytest.raises(EmbeddedError, match="socket of mongod was deleted while it started"):
        await EmbeddedMongod(tmp_path / "data", program).start()


async def test_a_restart_that_fails_is_repeated_and_counts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "CHECK_EVERY_S", 0.05)
    data_dir, broken = tmp_path / "data", tmp_path / "broken"
    real = find_mongod("")
    program = script(
        tmp_path,
        f"if [ -e {broken}/2 ]; then rm {broken}/2; exit 3; fi\n"
        f"if [ -e {broken}/1 ]; then rm {broken}/1; exit 3; fi\n"
        f'exec {real} "$@"',
    )
    broken.mkdir()
    counted: list[list[str]] = []
    async with running(data_dir, program, lambda: counted.append(os.listdir(broken))) as uri:
        await store(uri, 1)
        for name in ("1", "2"):
            (broken / name).touch()
        os.kill(mongods_on(data_dir)[0], signal.SIGKILL)

        async def runs_again() -> bool:
            return bool(counted) and not os.listdir(broken)

        await eventually(runs_again, 30)
        await await_data(uri, [1])
        # Once, and only when it served again.
        assert counted == [[]]


async def test_a_long_log_is_rotated_at_a_start(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    (data_dir / "WiredTiger").touch()
    with (data_dir / "mongod.log").open("wb") as log:
        log.truncate((16 << 20) + 1)
    with pytest.raises(EmbeddedError):
        await EmbeddedMongod(data_dir, script(tmp_path, "exit 1")).start()
    assert (data_dir / "mongod.log.1").stat().st_size == (16 << 20) + 1
    assert not (data_dir / "mongod.log").exists()


async def test_stop_is_harmless_before_a_start(tmp_path: Path) -> None:
    mongod = EmbeddedMongod(tmp_path / "data", "")
    await mongod.stop()
    await mongod.stop()
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("disk_bytes", "oplog_mib", "has_small_journal"),
    [
        (100 << 30, "512", False),
        (6 << 30, "307", False),
        (4 << 30, "204", True),
        (1 << 30, "64", True),
    ],
)
def test_oplog_and_journal_fit_the_disk(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    disk_bytes: int,
    oplog_mib: str,
    has_small_journal: bool,
) -> None:
    blocks = disk_bytes >> 12
    disk = os.statvfs_result((4096, 4096, blocks, blocks, blocks, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda path: disk)
    options = EmbeddedMongod(tmp_path, "")._storage_options()
    values = dict(zip(options[::2], options[1::2], strict=True))
    # mongod does not start if an option is given twice.
    assert 2 * len(values) == len(options)
    assert values["--oplogSize"] == oplog_mib
    engine = values["--wiredTigerEngineConfigString"]
    assert ("log=(file_max=16MB)" in engine) is has_small_journal


def test_a_first_start_needs_less_on_a_small_disk() -> None:
    assert first_start_bytes(1 << 30) < first_start_bytes(100 << 30)


def test_a_foreign_or_shared_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataDirectoryUnusable, match=r"not belong to a database, such as 'notes"):
        owner_of(tmp_path)
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    with pytest.raises(DataDirectoryUnusable, match="shared with other users; name a directory in"):
        owner_of(shared)


@pytest.mark.parametrize(
    ("uid", "gid", "mode", "reason"),
    [
        (0, 4711, 0o770, None),
        (0, 4711, 0o777, "everybody may write to it"),
        (0, 4712, 0o770, "belongs to another user"),
        (4713, 4711, 0o770, "belongs to another user"),
    ],
)
def test_a_volume_of_a_group_is_accepted(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uid: int,
    gid: int,
    mode: int,
    reason: str | None,
) -> None:
    fields = (stat.S_IFDIR | mode, 1, 1, 1, uid, gid, 0, 0, 0, 0)
    monkeypatch.setattr(Path, "stat", lambda path: os.stat_result(fields))
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    monkeypatch.setattr(os, "getgroups", lambda: [4711])
    if reason is None:
        assert owner_of(tmp_path) is None
        return
    with pytest.raises(DataDirectoryUnusable, match=reason):
        owner_of(tmp_path)


def test_a_directory_without_access_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(DataDirectoryUnusable, match="this user may not write to it"):
        owner_of(tmp_path)


def test_mongod_is_found_by_name_path_and_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = script(tmp_path, "exit 0")
    assert find_mongod(program) == program
    with pytest.raises(EmbeddedError, match="cannot be executed"):
        find_mongod(str(tmp_path / "none"))
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert find_mongod("") == "/usr/bin/mongod"
    monkeypatch.setattr(shutil, "which", lambda name: None)
    bundled = tmp_path / "fiftyone" / "db" / "bin" / "mongod"
    bundled.parent.mkdir(parents=True)
    bundled.touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert find_mongod("") == str(bundled)
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(EmbeddedError, match=r"install 'chat-inbox\[embedded\]'"):
        find_mongod("")


def test_no_place_for_a_socket_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert socket_path(tmp_path / "x,y") == tmp_path / "x,y" / "mongod.sock", "before its start"
    monkeypatch.setattr(embedded, "_can_be_socket", lambda path: False)
    with pytest.raises(EmbeddedError, match="set TMPDIR to a short path"):
        embedded._make_socket_place(tmp_path)
