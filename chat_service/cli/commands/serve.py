"""`chat serve`: runs the service until a signal stops it.

`chat_service.supervisor` starts `process`, one of several processes that share a socket.
"""

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable

import click
import structlog
import uvloop

from chat_service import __version__
from chat_service.access.control import AccessUnusable
from chat_service.cli.commands.notify import Beats, Notifier
from chat_service.cli.exit_codes import CommandError, ExitCode
from chat_service.cli.options import EPILOG, options_given, with_settings
from chat_service.server.listener import PortTaken, inherited
from chat_service.server.tls import TlsUnusable
from chat_service.service import Service, TelemetryUnusable
from chat_service.supervisor import ProcessFailed, Supervisor
from chat_service.wiring import is_local, is_open_to_all
from config import Settings
from config.environment import unknown_variables
from config.log import configure_logging, divert_output
from config.outlet import Outlet
from workers.errors import StoreUnavailable
from workers.mongod.embedded import DataDirectoryUnusable, EmbeddedError
from workers.store.connection import StoreMisconfigured
from workers.store.schema import IndexMismatch

log = structlog.get_logger(__name__)

#: After a second signal, time to write the last log lines, in seconds.
_LOG_FLUSH_S = 0.2
#: The longest start, beyond the time that it may wait for the database, in seconds. An embedded
#: mongod that recovers takes most of it.
_START_MAX_S = 120.0
#: How many more objects than now there must be before those that are new are searched for cycles.
_CYCLES_AFTER = 10_000


@click.command(epilog=EPILOG)
@with_settings
def serve(settings: Settings) -> int:
    """Run the service until SIGTERM or SIGINT.

    Without --mongo-uri, it starts an embedded MongoDB in the data directory.

    \b
    Examples:
      chat serve
      chat serve --port 9000 --data-dir /var/lib/chat
      chat serve --mongo-uri 'mongodb://db1,db2,db3/?replicaSet=rs0' --processes 0
    """
    stderr = divert_output()
    notifier = Notifier.from_environment(os.environ)
    options = options_given(click.get_current_context())
    server = (
        Service(settings, dropped_lines=lambda: stderr.dropped)
        if settings.processes == 1
        else Supervisor(settings, options, notifier.watchdog_s)
    )
    return _run(server, stderr, notifier, is_supervised=False)


@click.command(hidden=True)
@click.option("--sockets", required=True)
@click.option("--ops-sockets", required=True)
@click.option("--buckets", required=True, type=int)
@click.option("--beat-every", required=True, type=float)
@with_settings
def process(
    settings: Settings, sockets: str, ops_sockets: str, buckets: int, beat_every: float
) -> int:
    """Serve on inherited sockets until standard input is closed."""
    stderr = divert_output()
    listening = inherited(sockets), inherited(ops_sockets)
    service = Service(settings, *listening, lambda: stderr.dropped, buckets)
    return _run(service, stderr, Beats(beat_every), is_supervised=True)


def _run(
    server: Service | Supervisor, stderr: Outlet, notifier: Notifier | Beats, is_supervised: bool
) -> int:
    configure_logging(server.settings.log_level, server.settings.log_format)
    if not is_supervised:
        for line in unknown_variables(os.environ):
            log.warning(line)
        if not server.settings.mongo_uri:
            # The database has no other node, so it is no news that this one leads.
            logging.getLogger("workers.leadership").setLevel(logging.WARNING)
            log.info("starting the embedded MongoDB", data_dir=str(server.settings.data_dir))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(server, stderr, notifier, is_supervised))


async def _serve(
    server: Service | Supervisor, stderr: Outlet, notifier: Notifier | Beats, is_supervised: bool
) -> int:
    """Serve until the first signal, then drain and return the exit code.

    A second signal exits at once. A process of a supervisor ignores it, because a service manager
    signals the whole process group and only the supervisor may end a draining process early. Such a
    process also drains when its standard input is closed.
    """
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        if stopping.is_set() and not is_supervised:
            # Confirmed messages are on disk, and an embedded mongod dies with its parent.
            if isinstance(server, Supervisor):
                server.abort()
            stderr.flush(_LOG_FLUSH_S)
            os._exit(ExitCode.INTERRUPTED)
        stopping.set()

    def on_orphaned() -> None:
        loop.remove_reader(sys.stdin)
        stopping.set()

    def on_reloaded(_: asyncio.Task[None]) -> None:
        if not stopping.is_set():
            notifier.ready(server.status)

    def on_reload() -> None:
        assert isinstance(server, Supervisor)
        assert isinstance(notifier, Notifier)
        notifier.reloading()
        server.roll().add_done_callback(on_reloaded)

    _handle_signals(loop, on_signal, on_reload if isinstance(server, Supervisor) else None)
    if is_supervised:
        loop.add_reader(sys.stdin, on_orphaned)
    # The first process of a supervisor waits for the database, then the others do.
    start_max_s = 2 * server.settings.mongo_wait_s + _START_MAX_S
    telling = asyncio.create_task(
        notifier.keep(lambda: server.status, start_max_s), name="notifier"
    )
    try:
        started = asyncio.create_task(server.start())
        stopped = asyncio.create_task(stopping.wait())
        await asyncio.wait((started, stopped), return_when=asyncio.FIRST_COMPLETED)
        if not started.done():
            started.cancel()
            await asyncio.gather(started, return_exceptions=True)
            return ExitCode.DONE
        started.result()
        if not is_supervised:
            _announce(server)
        _search_cycles_rarely()
        log.info("started", version=__version__, port=server.port, pid=os.getpid())
        notifier.ready(server.status)
        await stopped
        log.info("stopping")
        notifier.stopping()
        await server.drain()
        return ExitCode.DONE
    except ProcessFailed as error:
        return error.code
    except (AccessUnusable, TelemetryUnusable, TlsUnusable) as error:
        raise CommandError(ExitCode.REFUSED, str(error)) from None
    except (PortTaken, EmbeddedError, StoreUnavailable, StoreMisconfigured, IndexMismatch) as error:
        reason = _describe_unreachable(error) if isinstance(error, StoreUnavailable) else str(error)
        raise CommandError(_exit_code_of(error), f"{reason}{_entry_of(error)}") from None
    finally:
        await server.stop()
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)


def _search_cycles_rarely() -> None:
    """Spare the garbage collector the objects that exist by now, and let it run less often.

    A full search took 20 ms with them, in which no request was served. Requests make no cycles: the
    objects that a search looks at belong to requests in progress.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_CYCLES_AFTER, *gc.get_threshold()[1:])


def _handle_signals(
    loop: asyncio.AbstractEventLoop,
    on_stop: Callable[[], None],
    on_reload: Callable[[], None] | None,
) -> None:
    """Install the signal handlers: stop, reload, or log and ignore.

    Signals that the process already ignores stay ignored, as set by `nohup` and by shells for
    background jobs. SIGTERM always stops the service, and SIGHUP always reloads a supervisor.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        if number == signal.SIGTERM or signal.getsignal(number) != signal.SIG_IGN:
            loop.add_signal_handler(number, on_stop)
    if on_reload is not None:
        loop.add_signal_handler(signal.SIGHUP, on_reload)
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        loop.add_signal_handler(number, _ignore, number)


def _ignore(number: signal.Signals) -> None:
    log.warning("signal ignored; use SIGTERM to stop the service", signal=number.name)


def _announce(server: Service | Supervisor) -> None:
    settings = server.settings
    base = f"{settings.scheme}://{_at(settings.host, server.port)}"
    ops = ""
    sys.stdout.write(f"listening on {base}\n")
    if settings.ops_port:
        ops = f"{settings.scheme}://{_at(settings.ops_host, settings.ops_port)}/ops"
        sys.stdout.write(f"operators: {ops}\n")
    elif settings.ops == "on" or (settings.ops == "auto" and is_local(settings)):
        ops = f"{base}/ops"
    if sys.stdout.isatty():
        sys.stdout.write(_welcome(settings, base, ops))
    sys.stdout.flush()
    if is_open_to_all(settings):
        log.warning(
            "access is off: everyone who reaches this address can read and post every message",
            host=settings.host,
            advice="set access, or put an authenticating proxy in front",
        )


def _welcome(settings: Settings, base: str, ops: str) -> str:
    """Return what a person needs next: the pages, and a first message to copy."""
    # A browser cannot open the address that stands for all addresses.
    base = base.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
    ops = ops.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
    token = "" if settings.access == "off" else '-H "Authorization: Bearer $CHAT_TOKEN" '
    kept = "" if settings.mongo_uri else f"; the messages stay in {settings.data_dir}"
    lines = (
        "",
        f"  web UI         {base}/",
        f"  API reference  {base}/docs",
        *([f"  dashboard      {ops}"] if ops else []),
        "",
        "  A first message, from another terminal:",
        f"    curl {token}-d 'hello' {base}/chat/bob",
        f"    curl {token}{base}/chat/bob",
        "",
        f"  Ctrl-C stops the service{kept}.",
        "",
    )
    return "\n".join(lines) + "\n"


def _at(host: str, port: int) -> str:
    return f"{f'[{host}]' if ':' in host else host}:{port}"


def _entry_of(error: Exception) -> str:
    """Return where the runbook is about an error, if its entry says more than the error."""
    entry = ""
    if isinstance(error, EmbeddedError) and not isinstance(error, DataDirectoryUnusable):
        entry = "mongod-does-not-start"
    elif isinstance(error, IndexMismatch):
        entry = "indexes-missing"
    elif isinstance(error, StoreUnavailable):
        entry = "database-unavailable"
    return f" (docs/operations.md#{entry})" if entry else ""


def _exit_code_of(error: Exception) -> ExitCode:
    if isinstance(error, PortTaken):
        return ExitCode.PORT
    return ExitCode.DATA_DIR if isinstance(error, DataDirectoryUnusable) else ExitCode.DATABASE


def _describe_unreachable(error: StoreUnavailable) -> str:
    return (
        f"the database cannot be reached: {error}; check --mongo-uri (CHAT_MONGO_URI), and that "
        "the replica set has a primary"
    )
