"""The command line: `python -m chat_service serve` and its small helpers.

Turns arguments and environment into settings, runs the service until a signal, and turns what
can go wrong at start into one line that says what to do, and an exit code.
"""

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import msgspec
import structlog
import uvloop

from chat_service import __version__
from chat_service.listener import PortTaken, inherited
from chat_service.service import Service, TelemetryMissing
from chat_service.supervisor import READY, ProcessFailed, Supervisor
from config import Settings, SettingsError, load_settings
from config.load import describe
from config.log import configure_logging
from workers.errors import StoreUnavailable
from workers.store.database import StoreMisconfigured
from workers.store.embedded import DataDirectoryUnusable, EmbeddedError, socket_path, uri_of
from workers.store.schema import IndexMismatch

log = structlog.get_logger(__name__)

#: Exit codes; docs/operations.md lists them.
EXIT_OK, EXIT_UNHEALTHY, EXIT_SETTINGS, EXIT_PORT, EXIT_DATABASE, EXIT_DATA_DIR = 0, 1, 2, 3, 4, 5
EXIT_SECOND_SIGNAL = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; gives the process's exit code."""
    options = _parser().parse_args(arguments)
    given = {
        name: value
        for name, value in vars(options).items()
        if value is not None and name in Settings.__struct_fields__
    }
    try:
        settings = load_settings(given, os.environ, _config_file(options.config, os.environ))
    except SettingsError as error:
        for problem in error.problems:
            _say(f"bad setting: {problem}")
        return EXIT_SETTINGS
    if options.print_config:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(describe(settings))).decode())
        sys.stdout.write("\n")
        return EXIT_OK
    if options.command == "mongo-uri":
        return _print_uri(settings)
    if options.command == "healthcheck":
        return _healthcheck(settings)
    configure_logging(settings.log_level, settings.log_format)
    server: Service | Supervisor
    if options.command == "process":
        server = Service(settings, inherited(options.sockets), inherited(options.ops_sockets))
    elif settings.processes == 1:
        server = Service(settings)
    else:
        words = sys.argv[1:] if arguments is None else arguments
        server = Supervisor(settings, words[words.index("serve") + 1 :])
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(server, is_member=options.command == "process"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="chat_service", description="A chat inbox over HTTP.")
    parser.add_argument("--version", action="version", version=__version__)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--config", metavar="FILE", help="a TOML file of settings (CHAT_CONFIG)")
    common.add_argument("--print-config", action="store_true", help="print the settings and exit")
    common.add_argument("--host", help="address to listen on (127.0.0.1)")
    common.add_argument("--port", help="port to listen on, 0 picks one (8080)")
    common.add_argument("--mongo-uri", metavar="URI", help="a MongoDB replica set; none: private")
    common.add_argument("--data-dir", metavar="DIR", help="data of the private mongod (./data)")
    common.add_argument("--processes", metavar="N", help="processes, 0 for one per core (1)")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    epilog = "Every setting of README.md can be given as CHAT_<NAME> in the environment."
    for name, text in (
        ("serve", "serve until SIGTERM or SIGINT"),
        ("healthcheck", "exit 0 where the service on this port is ready"),
        ("mongo-uri", "print the connection string of the database in use"),
    ):
        commands.add_parser(name, parents=[common], help=text, description=text, epilog=epilog)
    # What `chat_service.supervisor` starts; no command for people.
    member = commands.add_parser("process", parents=[common])
    member.add_argument("--sockets", required=True)
    member.add_argument("--ops-sockets", required=True)
    return parser


def _config_file(named: str | None, environ: Mapping[str, str]) -> Path | None:
    name = named or environ.get("CHAT_CONFIG")
    return Path(name) if name else None


async def _serve(server: Service | Supervisor, is_member: bool) -> int:
    """Serve until the first signal, then drain; a second signal stops at once.

    A member of a supervisor's processes drains when its standard input ends, too. It is asked to
    by all who may (a service manager signals the whole group), and ended only by its supervisor.
    """
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        if stopping.is_set() and not is_member:
            # What was acknowledged is on disk, and a private mongod dies with its parent.
            if isinstance(server, Supervisor):
                server.abort()
            os._exit(EXIT_SECOND_SIGNAL)
        stopping.set()

    def on_orphaned() -> None:
        loop.remove_reader(sys.stdin)
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, on_signal)
    if isinstance(server, Supervisor):
        loop.add_signal_handler(signal.SIGHUP, server.roll)
    if is_member:
        loop.add_reader(sys.stdin, on_orphaned)
    try:
        started = asyncio.create_task(server.start())
        stopped = asyncio.create_task(stopping.wait())
        await asyncio.wait((started, stopped), return_when=asyncio.FIRST_COMPLETED)
        if not started.done():
            started.cancel()
            await asyncio.gather(started, return_exceptions=True)
            return EXIT_OK
        started.result()
        _announce(server, is_member)
        await stopped
        log.info("stopping")
        await server.drain()
        return EXIT_OK
    except ProcessFailed as error:
        return error.code
    except TelemetryMissing as error:
        _say(str(error))
        return EXIT_SETTINGS
    except (PortTaken, EmbeddedError, StoreUnavailable, StoreMisconfigured, IndexMismatch) as error:
        _say(str(error) if not isinstance(error, StoreUnavailable) else _unreachable(error))
        return _exit_code(error)
    finally:
        await server.stop()


def _announce(server: Service | Supervisor, is_member: bool) -> None:
    settings = server.settings
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    line = READY.decode() if is_member else f"listening on http://{host}:{server.port}\n"
    sys.stdout.write(line)
    sys.stdout.flush()
    log.info("started", version=__version__, port=server.port, pid=os.getpid())


def _exit_code(error: Exception) -> int:
    if isinstance(error, PortTaken):
        return EXIT_PORT
    return EXIT_DATA_DIR if isinstance(error, DataDirectoryUnusable) else EXIT_DATABASE


def _unreachable(error: StoreUnavailable) -> str:
    return (
        "the database was not reached: check --mongo-uri (CHAT_MONGO_URI), and that the replica "
        f"set has a primary; the driver said: {str(error)[:300]}"
    )


def _print_uri(settings: Settings) -> int:
    """The connection string with the database's name, for mongosh."""
    if settings.mongo_uri:
        print(settings.mongo_uri)  # noqa: T201
        return EXIT_OK
    if not socket_path(settings.data_dir.absolute()).exists():
        _say(f"no private mongod runs on {settings.data_dir}; start the service first")
        return EXIT_DATABASE
    print(uri_of(settings.data_dir.absolute()))  # noqa: T201
    return EXIT_OK


def _healthcheck(settings: Settings) -> int:
    """For containers, which have no curl: asks the service on this machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)
    try:
        with urlopen(f"http://{host}:{settings.port}/readyz", timeout=3) as answer:
            return EXIT_OK if answer.status == 200 else EXIT_UNHEALTHY
    except (URLError, OSError) as error:
        _say(f"not ready: {error}")
        return EXIT_UNHEALTHY


def _say(line: str) -> None:
    print(f"chat_service: {line}", file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
