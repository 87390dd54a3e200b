"""The embedded MongoDB: a mongod that the service starts if it was given no database.

It is a real mongod, a replica set of one, that listens only on a unix socket. It keeps its data
between runs, and is restarted if it dies or its socket is deleted. It never outlives its server:
`die_with_parent` ties it to the server. It holds the lock of the data directory while it runs, so a
new server waits until an old mongod has ended.
"""

import asyncio
import fcntl
import os
import platform
import re
import shlex
import shutil
import signal
import stat
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from errno import EACCES, EPERM
from pathlib import Path
from urllib.parse import quote

import structlog
from pymongo import AsyncMongoClient
from pymongo.errors import OperationFailure, PyMongoError

from workers.backoff import Backoff
from workers.mongod import die_with_parent
from workers.mongod.ballast import Ballast
from workers.mongod.exit_reason import ExitReason
from workers.ticks import until_next

log = structlog.get_logger(__name__)

#: Longest times in seconds: to become primary, to stop, and to wait for the lock.
START_S, STOP_S, LOCK_S = 60.0, 15.0, 20.0
#: The first and the longest pause before a dead mongod is restarted, in seconds; see `Backoff`.
RESTART_AFTER_S = (0.1, 2.0)
#: How often the socket and the disk of a running mongod are checked, in seconds.
CHECK_EVERY_S = 1.0
#: A unix socket's path has at most 107 bytes, and mongod appends some of its own.
_SOCKET_PATH_MAX = 100
#: Characters that a socket's path may have. mongod treats some others, such as `,` and `:`, as
#: separators.
_SOCKET_PATH = re.compile(r"[A-Za-z0-9_./+=@~ -]+")
#: If the data directory's path cannot hold a socket, this file in it has the socket's directory.
_SOCKET_PLACE = "socket-place"
_LOG_BYTES_MAX = 16 << 20
#: The oplog gets 1/20 of the disk, within these limits in MiB.
_OPLOG_SHARE, _OPLOG_MIB = 20, (64, 512)
_SMALL_DISK_BYTES = 5 << 30
#: A directory that was used before contains one of these files.
_OUR_FILES = frozenset({"lock", "WiredTiger", "mongod.sock"})
#: Files that file systems, desktops and version control create in otherwise empty directories.
_OF_OTHERS = frozenset(
    {"lost+found", ".gitkeep", ".gitignore", ".keep", ".DS_Store", ".snapshot", ".snapshots"}
)
#: Looks for the socket of a new mongod, ten a second, that find none before it counts as deleted.
_GONE_LOOKS = 30
_NOT_YET_INITIALIZED, _INVALID_CONFIG = 94, 93


#: Only this kind of machine has a package with a mongod.
_WITH_MONGOD = (
    ", or install the service with one: uv tool install 'chat-inbox[embedded]'"
    if (sys.platform, platform.machine()) == ("linux", "x86_64")
    else ""
)

#: How much of the cache may have changed before mongod writes pages, in percent; by default 5 and
#: 20. Among many stored messages, each inbox in use has a page of the index to itself, since routes
#: are random. A thousand of them are 40 MB, which mongod would write over and over again. With more
#: than this, the index gathers entries of claimed messages, which slow down searches.
_DIRTY = "eviction_dirty_target=15,eviction_dirty_trigger=25"
#: Free bytes that mongod needs to start with data; without data on a small and on a large disk.
START_BYTES, _FIRST_START_BYTES = 16 << 20, (64 << 20, 320 << 20)


def first_start_bytes(disk_bytes: int) -> int:
    """Return how many free bytes a first start needs on a disk of this size."""
    return _FIRST_START_BYTES[disk_bytes >= _SMALL_DISK_BYTES]


class EmbeddedError(Exception):
    """Raised when the embedded MongoDB cannot be started. The message says what to do."""


class DataDirectoryUnusable(EmbeddedError):
    """Raised when the data directory belongs to another user, has other files, or is in use."""


class _SharedDirectory(PermissionError):
    """Raised for a directory in which every user may create files, such as /tmp."""


def find_mongod(named: str) -> str:
    """Return the mongod to run: `named`, else the one on the PATH, else the bundled one.

    Raises `EmbeddedError` with the possible solutions.
    """
    if named:
        if not os.access(named, os.X_OK):
            raise EmbeddedError(f"the setting mongod names {named}, which cannot be executed")
        return named
    if on_path := shutil.which("mongod"):
        return on_path
    for folder in sys.path:
        bundled = Path(folder, "fiftyone", "db", "bin", "mongod")
        if bundled.is_file():
            return str(bundled)
    raise EmbeddedError(
        "no database: --mongo-uri is not set and there is no mongod to start. Name a database with "
        "--mongo-uri, or install MongoDB so that mongod is on the PATH" + _WITH_MONGOD
    )


def socket_path(data_dir: Path) -> Path:
    """Return the socket of this data directory's mongod: in the directory, or where a file points.

    Before the first start, nothing exists at the returned path.
    """
    path = data_dir / "mongod.sock"
    if _can_be_socket(path):
        return path
    with suppress(OSError, ValueError):
        noted = (data_dir / _SOCKET_PLACE).read_text(encoding="utf-8")
        return Path(noted, "mongod.sock")
    return path


def uri_of(data_dir: Path) -> str:
    """Return the connection string of this data directory's mongod."""
    return _uri(socket_path(data_dir))


def _uri(socket: Path) -> str:
    # It is never deposed, so there is nothing that it had to report at once. By default, the driver
    # keeps a request open for that, and asks for the time of a round trip on another connection.
    options = "directConnection=true&serverMonitoringMode=poll"
    return f"mongodb://{quote(str(socket), safe='')}/?{options}"


def _can_be_socket(path: Path) -> bool:
    is_short = len(os.fsencode(path)) <= _SOCKET_PATH_MAX
    return is_short and _SOCKET_PATH.fullmatch(str(path)) is not None


def _make_socket_place(data_dir: Path) -> Path:
    """Create a private directory for the socket, and record it in the data directory.

    Its name is random, since other users could create a predictable one first.
    """
    for parent in (tempfile.gettempdir(), "/tmp"):
        if _can_be_socket(Path(parent, "chat-XXXXXXXX", "mongod.sock")):
            place = tempfile.mkdtemp(prefix="chat-", dir=parent)
            (data_dir / _SOCKET_PLACE).write_text(place, encoding="utf-8")
            return Path(place)
    raise EmbeddedError(
        f"there is no place for mongod's socket: the paths of {data_dir} and of the temporary "
        "directory are unsuitable; set TMPDIR to a short path"
    )


def owner_of(data_dir: Path) -> str | None:
    """Return the id of the process that uses this data directory, or None. Changes nothing.

    Raises `DataDirectoryUnusable` if no mongod could use it.
    """
    try:
        _check_private(data_dir)
        lock = os.open(data_dir / "lock", os.O_RDWR)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unusable(data_dir, error) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.read(lock, 20).decode("ascii", "replace").strip()
    finally:
        os.close(lock)
    return None


class EmbeddedMongod:
    """One mongod on one data directory. Call `start` from the main thread."""

    def __init__(
        self, data_dir: Path, mongod: str, on_restart: Callable[[], None] = lambda: None
    ) -> None:
        """`on_restart` is called each time that a mongod that ended unexpectedly serves again."""
        self._on_restart = on_restart
        self._data_dir = data_dir.absolute()
        self._socket = self._data_dir / "mongod.sock"
        self._ballast = Ballast(self._data_dir)
        self._mongod = mongod
        self._lock: int | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._monitor: asyncio.Task[None] | None = None

    async def start(self) -> str:
        """Start mongod, and return its connection string once it accepts writes.

        Raises `EmbeddedError` if it does not start.
        """
        program = find_mongod(self._mongod)
        try:
            _make_private(self._data_dir)
        except OSError as error:
            raise _unusable(self._data_dir, error) from error
        self._lock = await self._take_lock()
        try:
            if not _can_be_socket(self._socket):
                self._socket = _make_socket_place(self._data_dir) / "mongod.sock"
            self._ballast.fit()
            await self._launch(program)
        except BaseException:
            await self.stop()
            raise
        self._monitor = asyncio.create_task(self._keep_alive(program), name="mongod")
        return _uri(self._socket)

    async def stop(self) -> None:
        """Stop mongod cleanly and wait for its end. Safe to call twice, and before `start`."""
        if self._monitor is not None:
            self._monitor.cancel()
            await asyncio.gather(self._monitor, return_exceptions=True)
            self._monitor = None
        if self._process is not None:
            await _terminate(self._process)
            self._process = None
        if self._lock is not None:
            if self._socket.parent != self._data_dir:
                shutil.rmtree(self._socket.parent, ignore_errors=True)
                (self._data_dir / _SOCKET_PLACE).unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = None

    async def _take_lock(self) -> int:
        """Lock the data directory. Waits for the mongod of a server that was killed."""
        path = self._data_dir / "lock"
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        deadline = asyncio.get_running_loop().time() + LOCK_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                owner = path.read_text(encoding="ascii").strip()
                late = asyncio.get_running_loop().time() > deadline
                if late or (owner.isdigit() and _is_running(int(owner))):
                    os.close(lock)
                    raise DataDirectoryUnusable(
                        f"the data directory {self._data_dir} is in use by process {owner}; "
                        "stop it, or name another directory with --data-dir"
                    ) from None
            await asyncio.sleep(0.05)
        os.ftruncate(lock, 0)
        os.pwrite(lock, b"%d\n" % os.getpid(), 0)
        return lock

    async def _launch(self, program: str) -> None:
        """Start the process, and wait until it is primary."""
        assert self._lock is not None
        self._socket.unlink(missing_ok=True)
        log_file = self._data_dir / "mongod.log"
        if log_file.exists() and log_file.stat().st_size > _LOG_BYTES_MAX:
            log_file.replace(log_file.with_suffix(".log.1"))
        said = self._exit_reason = ExitReason(program, log_file)
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", die_with_parent.__file__, str(os.getpid()), program),
            *("--dbpath", str(self._data_dir), "--replSet", "chat"),
            # Otherwise it also creates /tmp/mongodb-27017.sock, and deletes that of another mongod.
            *("--bind_ip", str(self._socket), "--nounixsocket", "--filePermissions", "0600"),
            # zlib compression can leak memory to clients (CVE-2025-14847).
            *("--networkMessageCompressors", "disabled"),
            *("--wiredTigerCacheSizeGB", "0.25", *self._storage_options()),
            *("--setParameter", "diagnosticDataCollectionEnabled=false"),
            # No old snapshots are read. Otherwise each claim keeps the old version for 5 minutes.
            *("--setParameter", "minSnapshotHistoryWindowInSeconds=0"),
            # Who waits for the journal has it flushed at once. This is for those who do not wait.
            *("--journalCommitInterval", "500"),
            # Nobody uses JavaScript, and its engine wakes up each second.
            "--noscripting",
            *("--logpath", str(log_file), "--logappend", "--quiet"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=(self._lock,),
            # Ctrl-C is sent to the whole process group, but mongod must outlast the drain.
            start_new_session=True,
        )
        assert self._process.stderr is not None
        said.listen(self._process.stderr)
        # The context closes the client even if a cancellation interrupts the cleanup in `finally`.
        async with AsyncMongoClient[dict[str, object]](
            _uri(self._socket), serverSelectionTimeoutMS=500
        ) as client:
            exited = asyncio.create_task(self._process.wait())
            primary = asyncio.create_task(self._await_primary(client))
            deleted = asyncio.create_task(self._await_deletion())
            ends = (exited, primary, deleted)
            try:
                async with asyncio.timeout(START_S):
                    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                if exited.done() and not primary.done():
                    code = self._process.returncode
                    raise EmbeddedError(f"mongod did not start: {await said.reason(code)}")
                if not primary.done():
                    raise EmbeddedError("the socket of mongod was deleted while it started")
                primary.result()
            except TimeoutError:
                raise EmbeddedError(
                    f"mongod did not become primary in {START_S:.0f} s (see {log_file})"
                ) from None
            finally:
                for each in ends:
                    each.cancel()
                await asyncio.gather(*ends, return_exceptions=True)

    async def _await_primary(self, client: AsyncMongoClient[dict[str, object]]) -> None:
        """Wait for the socket, create the replica set if necessary, and wait for its primary."""
        while True:
            try:
                hello = await client.admin.command("hello")
                if hello.get("isWritablePrimary"):
                    return
                if "setName" not in hello:
                    await self._configure(client)
            except PyMongoError:
                # A driver may turn a cancellation into an error of its own.
                if (task := asyncio.current_task()) is not None and task.cancelling():
                    raise
            await asyncio.sleep(0.02)

    async def _await_deletion(self) -> None:
        """Wait until the socket of a new mongod was deleted, which mongod does not create again."""
        while not self._socket.exists():  # noqa: ASYNC110 - mongod creates it
            await asyncio.sleep(0.02)
        gone = 0
        # A mongod that ends deletes its socket first. Its own reason comes within seconds.
        while gone < _GONE_LOOKS:
            gone = 0 if self._socket.exists() else gone + 1
            await asyncio.sleep(0.1)

    async def _configure(self, client: AsyncMongoClient[dict[str, object]]) -> None:
        host = str(self._socket)
        try:
            await client.admin.command("replSetGetStatus")
        except OperationFailure as error:
            if error.code == _NOT_YET_INITIALIZED:
                members = [{"_id": 0, "host": host}]
                await client.admin.command("replSetInitiate", {"_id": "chat", "members": members})
            elif error.code == _INVALID_CONFIG:
                # The data directory was moved. The path of its socket is the member's host name.
                config = await client.local["system.replset"].find_one()
                if config is not None:
                    config["members"] = [{"_id": 0, "host": host}]
                    config["version"] = int(str(config["version"])) + 1
                    await client.admin.command("replSetReconfig", config, force=True)

    async def _keep_alive(self, program: str) -> None:
        """Restart mongod if it ends or can no longer be reached."""
        backoff = Backoff(*RESTART_AFTER_S)
        loop = asyncio.get_running_loop()
        while True:
            assert self._process is not None
            began = loop.time()
            code = await self._watch(self._process)
            reason = await self._exit_reason.reason(code)
            backoff.observe_lifetime(loop.time() - began)
            log.error("mongod ended and will be restarted", reason=reason, pause_s=backoff.pause_s)
            await backoff.wait()
            self._ballast.fit()
            try:
                await self._launch(program)
            except (EmbeddedError, OSError) as error:
                log.error("mongod could not be restarted", reason=str(error))
                await _terminate(self._process)
            else:
                log.info("mongod is running again")
                self._on_restart()

    async def _watch(self, process: asyncio.subprocess.Process) -> int:
        """Wait for the end of mongod, and return its exit code.

        If its socket was deleted, nobody can reach it, so it is terminated.
        """
        ended = asyncio.create_task(process.wait())
        try:
            while not ended.done():
                await asyncio.wait((ended,), timeout=until_next(CHECK_EVERY_S))
                # Neither check waits for the disk: both read directory entries and counters.
                self._ballast.fit()
                if not ended.done() and not self._socket.exists():
                    log.error("the socket of mongod was deleted; mongod will be restarted")
                    await _terminate(process)
            return ended.result()
        finally:
            ended.cancel()

    def _storage_options(self) -> tuple[str, ...]:
        """Return options that limit a new oplog and the journal, which would fill a small disk."""
        disk = os.statvfs(self._data_dir)
        disk_bytes = disk.f_blocks * disk.f_frsize
        least, most = _OPLOG_MIB
        oplog_mib = max(least, min(disk_bytes // _OPLOG_SHARE >> 20, most))
        oplog = ("--oplogSize", str(oplog_mib))
        # mongod refuses a second option of this name.
        engine = "--wiredTigerEngineConfigString"
        if disk_bytes >= _SMALL_DISK_BYTES:
            return (*oplog, engine, _DIRTY)
        # The default is three files of 100 MB, and more until the next checkpoint every 60 s.
        return (*oplog, engine, f"log=(file_max=16MB),{_DIRTY}", "--syncdelay", "15")


def _make_private(directory: Path) -> None:
    """Create a directory that only this user can access, or use an existing one.

    Raises OSError, and changes nothing, if it is shared, belongs to another user, or has other
    files.
    """
    try:
        directory.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        if _check_private(directory):
            directory.chmod(0o700)


def _check_private(directory: Path) -> bool:
    """Raise OSError if a directory does not exist or is unsuitable for `_make_private`.

    Returns True if it belongs to this user. False means that it is a volume that belongs to root
    and to a group of this user, as with Kubernetes' `fsGroup`.
    """
    found = directory.stat()
    is_ours = found.st_uid == os.getuid()
    if found.st_mode & stat.S_ISVTX:
        raise _SharedDirectory(EPERM, "it is shared with other users")
    if not is_ours:
        groups = {os.getegid(), *os.getgroups()}
        if found.st_mode & stat.S_IWOTH:
            raise PermissionError(EPERM, "it belongs to another user and everybody may write to it")
        if found.st_uid != 0 or found.st_gid not in groups:
            raise PermissionError(EPERM, "it belongs to another user")
    if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
        raise PermissionError(EACCES, "this user may not write to it")
    names = set(os.listdir(directory)) - _OF_OTHERS
    if names and not names & _OUR_FILES:
        example = ascii(min(names)[:64])
        raise PermissionError(
            EPERM, f"it has files that do not belong to a database, such as {example}"
        )
    return is_ours


def _unusable(data_dir: Path, error: OSError) -> DataDirectoryUnusable:
    advice = "name another directory with --data-dir"
    if isinstance(error, _SharedDirectory):
        # Some programs mount disks like that.
        advice = f"name a directory in it with --data-dir, such as {data_dir / 'chat'}; "
        advice += f"or, if nobody else needs it, run: chmod 700 {shlex.quote(str(data_dir))}"
    return DataDirectoryUnusable(
        f"the data directory {data_dir} cannot be used: {error.strerror}; {advice}"
    )


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


async def _terminate(process: asyncio.subprocess.Process) -> None:
    """Send SIGTERM, then SIGKILL if necessary. Acknowledged writes are in the journal."""
    if process.returncode is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        async with asyncio.timeout(STOP_S):
            await process.wait()
    except TimeoutError:
        log.warning("mongod did not stop in time and will be killed", waited_s=STOP_S)
        process.kill()
        await process.wait()
