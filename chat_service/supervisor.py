"""Starts, watches and replaces several processes of the service behind one listening socket.

The supervisor binds the socket and every process inherits it. So if a process stops or dies, the
others accept the waiting connections. Each process is a new `python -m chat_service process`:
nothing is forked from a running loop. It writes `ready` to its standard output, and drains when its
standard input ends, as it does when the supervisor dies. If systemd watches the supervisor, the
supervisor watches the processes: each writes `turning` again and again while its event loop turns,
and is killed if it does not.

The supervisor runs the embedded MongoDB. Made by `chat_service.cli.commands.serve` for
`--processes`.
"""

import asyncio
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import structlog

from chat_service.access.buckets import share_memory
from chat_service.api.log_lines import NODE_KEY_VARIABLE
from chat_service.metrics.multiprocess import DIRECTORY_VARIABLE, ExitedProcesses
from chat_service.server.listener import OPS_NAMES, bind
from chat_service.server.tls import Files, load_context
from config import Settings
from workers.backoff import Backoff
from workers.mongod.embedded import EmbeddedMongod

log = structlog.get_logger(__name__)

#: A process writes this to its standard output once it accepts requests.
READY = b"ready\n"
#: A process writes this again and again while its event loop turns, if it is watched.
BEAT = b"turning\n"
#: In the time after which a silent process is killed, a process writes `BEAT` this often, and the
#: supervisor waits this often. It waits twice, because after a pause of the whole machine the first
#: wait may end before what was written is seen.
_BEATS, _WAITS = 4, 2
#: Time for a stuck process to write where it is stuck, in seconds. A busy machine needs some.
_ABORT_S = 3.0
#: The shortest and the longest pause before a dead process is restarted, in seconds. The pause
#: doubles each time. It is the shortest again for a process that lived longer than the longest.
_RESTART_AFTER_S = (0.05, 1.0)
#: The time after which a draining process is killed, beyond its own drain time, in seconds.
_OVERTIME_S = 5.0


class ProcessFailed(Exception):
    """Raised if a process exits before it is ready. `code` is its exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(f"a process exited with {code} before it was ready; see its own message")
        self.code = code


class Supervisor:
    """All processes of one server. `start`, then `drain`, then `stop`, like `Service`."""

    def __init__(
        self, settings: Settings, arguments: Sequence[str], watchdog_s: float = 0.0
    ) -> None:
        """`arguments` are those of the command line. Every process parses them itself.

        A process whose event loop is stuck for `watchdog_s` seconds is killed; with 0, none is.
        """
        self.settings = settings
        self.port = 0
        #: What the service does, in words.
        self.status = "starting"
        self._watchdog_s = watchdog_s
        self._arguments = arguments
        self._count = settings.processes or len(os.sched_getaffinity(0))
        self._sockets: list[socket.socket] = []
        self._ops_sockets: list[socket.socket] = []
        #: The memory of clients' rates, which all processes share; -1 without rates.
        self._buckets = -1
        self._environ = dict(os.environ)
        # One random key for all processes: an address then has the same hash in all their lines.
        self._environ[NODE_KEY_VARIABLE] = secrets.token_hex(16)
        self._mongod = (
            None
            if settings.mongo_uri
            else EmbeddedMongod(settings.data_dir, settings.mongod, self._count_mongod_restart)
        )
        self._directory: Path | None = None
        self._dead: ExitedProcesses
        self._members: list[_Member] = []
        self._endings: dict[asyncio.Task[None], asyncio.subprocess.Process] = {}
        self._has_killed = False
        self._roll: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the database and every process.

        The first process starts alone, because it creates the indexes.

        Raises `TlsUnusable`, `PortTaken`, `workers.mongod.embedded.EmbeddedError` or
        `ProcessFailed`; call `stop` then.
        """
        settings = self.settings
        if settings.tls_certificate:
            load_context(Files(settings.tls_certificate, settings.tls_key))
        self._sockets = bind(settings.host, settings.port)
        self.port = self._sockets[0].getsockname()[1]
        if settings.ops_port:
            self._ops_sockets = bind(settings.ops_host, settings.ops_port, OPS_NAMES)
        if self._mongod is not None:
            self._environ["CHAT_MONGO_URI"] = await self._mongod.start()
        # In memory if possible: metrics must not fail when the disk is full.
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self._directory = Path(tempfile.mkdtemp(prefix="chat-metrics-", dir=memory))
        self._environ[DIRECTORY_VARIABLE] = str(self._directory)
        self._dead = ExitedProcesses(self._directory)
        if settings.client_requests_per_s or settings.client_bytes_per_s:
            self._buckets = share_memory()
        self._members = [_Member(self) for _ in range(self._count)]
        await self._members[0].start()
        await asyncio.gather(*(member.start() for member in self._members[1:]))
        self._serves()

    def _serves(self) -> None:
        self.status = f"serving with {self._count} processes"

    def roll(self) -> asyncio.Task[None]:
        """Replace every process, one after the other, each once its successor is ready.

        Returns the task that does this. If a rolling restart is running, returns its task.
        """
        if self._roll is None or self._roll.done():
            self._roll = asyncio.create_task(self._replace_all(), name="rolling restart")
        return self._roll

    async def drain(self) -> bool:
        """Let every process finish its accepted requests.

        Return False if a process had to be killed.
        """
        if self._roll is not None:
            self._roll.cancel()
            await asyncio.gather(self._roll, return_exceptions=True)
        self.status = "draining"
        # The last process that closes the socket accepts the connections that still wait.
        self._close_sockets()
        await asyncio.gather(*(member.stop() for member in self._members))
        await asyncio.gather(*self._endings)
        return not self._has_killed

    async def stop(self) -> None:
        """Stop every process, then the database.

        Everything has stopped when it returns. Safe to call twice.
        """
        self._close_sockets()
        self.abort()
        await asyncio.gather(*(member.stop() for member in self._members))
        await asyncio.gather(*self._endings)
        if self._mongod is not None:
            await self._mongod.stop()
        if self._buckets != -1:
            os.close(self._buckets)
            self._buckets = -1
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)

    def _close_sockets(self) -> None:
        for each in (*self._sockets, *self._ops_sockets):
            each.close()

    def abort(self) -> None:
        """Kill every process at once. All acknowledged messages are on disk."""
        for member in self._members:
            member.kill()
        for process in self._endings.values():
            if process.returncode is None:
                process.kill()

    async def launch(self) -> asyncio.subprocess.Process:
        """Start one process and wait until it accepts requests. Raises `ProcessFailed`."""
        descriptors = [each.fileno() for each in self._sockets]
        ops_descriptors = [each.fileno() for each in self._ops_sockets]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "chat_service", "process"),
            *("--sockets", ",".join(map(str, descriptors))),
            *("--ops-sockets", ",".join(map(str, ops_descriptors))),
            *("--buckets", str(self._buckets)),
            *("--beat-every", str(self._watchdog_s / _BEATS), *self._arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=self._environ,
            pass_fds=[
                each for each in (*descriptors, *ops_descriptors, self._buckets) if each >= 0
            ],
            # Ctrl-C signals the whole process group. The supervisor decides what to pass on.
            start_new_session=True,
        )
        try:
            assert process.stdout is not None
            if await process.stdout.readline() != READY:
                raise ProcessFailed(await process.wait())
        except BaseException:
            if process.returncode is None:
                process.kill()
                await process.wait()
            self._merge_exited(process)
            raise
        return process

    async def end(self, process: asyncio.subprocess.Process) -> None:
        """Let one process drain and exit. If this is cancelled, `drain` and `stop` wait for it."""
        ending = asyncio.create_task(self._end(process), name="ending")
        self._endings[ending] = process
        ending.add_done_callback(self._endings.pop)
        await asyncio.shield(ending)

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        if process.returncode is None:
            process.terminate()
        try:
            settings = self.settings
            async with asyncio.timeout(
                settings.drain_delay_s + settings.drain_timeout_s + _OVERTIME_S
            ):
                await process.wait()
        except TimeoutError:
            self._has_killed = True
            process.kill()
            await process.wait()
        self._merge_exited(process)

    async def watch(self, process: asyncio.subprocess.Process) -> None:
        """Return once the process has exited. Kill it if it is watched, and its loop is stuck."""
        assert process.stdout is not None
        silent = 0
        while self._watchdog_s and silent < _WAITS:
            try:
                async with asyncio.timeout(self._watchdog_s / _WAITS):
                    if not await process.stdout.readline():
                        break
                silent = 0
            except TimeoutError:
                silent += 1
        if silent == _WAITS and process.returncode is None:
            log.error("the event loop of a process is stuck; killing it", pid=process.pid)
            # With PYTHONFAULTHANDLER=1, it writes where it is stuck. A stopped process does not.
            process.send_signal(signal.SIGABRT)
            with suppress(TimeoutError):
                async with asyncio.timeout(_ABORT_S):
                    await process.wait()
            if process.returncode is None:
                process.kill()
        await process.wait()

    def died(self, process: asyncio.subprocess.Process, pause_s: float) -> None:
        """Log and count a process that exited by itself."""
        log.error(
            "a process died and will be restarted",
            pid=process.pid,
            code=process.returncode,
            pause_s=pause_s,
        )
        self._merge_exited(process)

    async def launch_again(self) -> asyncio.subprocess.Process:
        """Start a process in place of one that died. Raises `ProcessFailed`.

        The restart is counted even if it fails.
        """
        self._dead.restarted("process")
        return await self.launch()

    def _count_mongod_restart(self) -> None:
        try:
            self._dead.restarted("mongod")
        except Exception:
            # The metrics directory may be full. mongod must be restarted all the same.
            log.exception("a restart of mongod was not counted")

    def _merge_exited(self, process: asyncio.subprocess.Process) -> None:
        try:
            self._dead.merge_exited(process.pid)
        except Exception:
            # A killed process may leave a damaged file. It must be replaced all the same.
            log.exception("the metrics of a process were lost", pid=process.pid)

    async def _replace_all(self) -> None:
        log.info("rolling restart")
        self.status = "replacing the processes"
        try:
            await self._replace_each()
        finally:
            self._serves()

    async def _replace_each(self) -> None:
        for member in self._members:
            try:
                await member.replace()
            except (ProcessFailed, OSError) as error:
                log.error(
                    "rolling restart aborted; the old processes keep running", reason=str(error)
                )
                return
        log.info("rolling restart done")


class _Member:
    """The place of one process, which is filled again when the process dies."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the process, and keep it running."""
        self._process = await self._supervisor.launch()
        self._keeper = asyncio.create_task(self._keep(), name="keeper")

    async def replace(self) -> None:
        """Start a successor. Let the old process drain and exit once that is ready."""
        successor = await self._supervisor.launch()
        old, self._process = self._process, successor
        if self._keeper is not None:
            self._keeper.cancel()
        self._keeper = asyncio.create_task(self._keep(), name="keeper")
        if old is not None:
            await self._supervisor.end(old)

    async def stop(self) -> None:
        """Let the process drain and exit. Safe to call twice."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
            self._keeper = None
        process, self._process = self._process, None
        if process is not None:
            await self._supervisor.end(process)

    def kill(self) -> None:
        """Kill the process at once."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGKILL)

    async def _keep(self) -> None:
        """Restart the process each time it dies."""
        backoff = Backoff(*_RESTART_AFTER_S)
        loop = asyncio.get_running_loop()
        while True:
            assert self._process is not None
            began = loop.time()
            await self._supervisor.watch(self._process)
            backoff.observe_lifetime(loop.time() - began)
            self._supervisor.died(self._process, backoff.pause_s)
            while True:
                await backoff.wait()
                try:
                    self._process = await self._supervisor.launch_again()
                    break
                except (ProcessFailed, OSError) as error:
                    log.error("a process could not be restarted", reason=str(error))
