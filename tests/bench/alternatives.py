"""What one would write instead of the service: Go on PostgreSQL, Redis or MongoDB.

The programs are in `tests/bench/go`. They are built and measured where Debian's packages of Go, the
libraries and the databases are installed, and left out elsewhere. Each database is as durable as
the service's, set up as its makers advise, and listens on a unix socket.
"""

import asyncio
import os
import shutil
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, STDOUT
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from signal import SIGINT
from typing import Any, NamedTuple

from tests.support.ending import ending
from tests.support.waiting import eventually

_SOURCES = Path(__file__).with_name("go")
#: Debian's packages have the Go libraries below this directory, and PostgreSQL's programs below
#: this one.
_LIBRARIES, _POSTGRESQL = Path("/usr/share/gocode"), Path("/usr/lib/postgresql")


class Missing(Exception):
    """Raised when an alternative cannot run on this machine. The message says why not."""


class Database(NamedTuple):
    """A database that runs: the address that its Go program takes, and its process id."""

    address: str
    pid: int


async def built(name: str, folder: Path) -> str:
    """Build the Go program for the database `name` in this folder. Return its path.

    Raises `Missing` if that fails.
    """
    program = str(folder / name)
    sources = (str(_SOURCES / "chat.go"), str(_SOURCES / f"{name}.go"))
    environ = {"GO111MODULE": "off", "GOFLAGS": "", "GOPATH": str(_LIBRARIES)}
    # Go needs a directory for its cache, and has no default without HOME. If it is interrupted, it
    # leaves its temporary files.
    environ = {"GOCACHE": str(folder / "cache")} | os.environ | environ | {"GOTMPDIR": str(folder)}
    await _run(_program("go"), "build", "-o", program, *sources, env=environ)
    return program


@asynccontextmanager
async def postgres() -> AsyncIterator[Database]:
    """Run PostgreSQL on a temporary directory. A quarter of the memory, up to 1 GiB, is its cache.

    Raises `Missing` if there is none, or it does not start.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        options: dict[str, Any] = {"cwd": folder}
        if os.geteuid() == 0:
            # It refuses to run as root.
            options |= {"user": "postgres", "group": "postgres", "extra_groups": []}
            shutil.chown(folder, "postgres", "postgres")
        data = str(Path(folder, "data"))
        await _run(
            *(_program("initdb"), "--pgdata", data, "--no-sync", "--username=bench"),
            *("--auth=trust", "--encoding=UTF8", "--locale=C"),
            **options,
        )
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": folder,
            "shared_buffers": f"{min(memory // 4, 1 << 30) >> 20}MB",
            "max_wal_size": "4GB",
        }
        words = [word for item in settings.items() for word in ("-c", "=".join(item))]
        async with _running(_program("postgres"), "-D", data, *words, **options) as pid:
            yield Database(f"host={folder} user=bench dbname=postgres", pid)


@asynccontextmanager
async def redis() -> AsyncIterator[Database]:
    """Run Redis on a temporary directory. It syncs its log to the disk before it answers a write.

    Raises `Missing` if there is none, or it does not start.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        socket = str(Path(folder, "redis.sock"))
        durable = ("--appendonly", "yes", "--appendfsync", "always", "--save", "")
        place = ("--port", "0", "--unixsocket", socket, "--dir", folder)
        async with _running(_program("redis-server"), *place, *durable, cwd=folder) as pid:
            yield Database(socket, pid)


def _program(name: str) -> str:
    """Find a program on the PATH, or among PostgreSQL's. Raises `Missing` if there is none."""
    folders = [*os.get_exec_path(), *map(str, sorted(_POSTGRESQL.glob("*/bin"), reverse=True))]
    found = shutil.which(name, path=os.pathsep.join(folders))
    if found is None:
        raise Missing(f"{name} is not installed")
    return found


async def _run(*command: str, **options: Any) -> None:
    """Run a command. Raises `Missing` with the last line that it prints if it fails."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT, **options
    )
    async with ending(process, SIGINT):
        output, _ = await process.communicate()
    if process.returncode != 0:
        raise Missing(_reason(command, output))


@asynccontextmanager
async def _running(*command: str, **options: Any) -> AsyncIterator[int]:
    """Run a database until the context ends. Yield its process id once it accepts connections.

    Raises `Missing` with the last line that it prints if it ends before.
    """
    with tempfile.TemporaryFile() as log:
        process = await asyncio.create_subprocess_exec(
            # If this process dies, the database must not stay.
            *(_program("setpriv"), "--pdeathsig", "QUIT", *command),
            **{"stdin": DEVNULL, "stdout": log, "stderr": STDOUT, **options},
        )

        def printed() -> bytes:
            return os.pread(log.fileno(), 1 << 20, 0)

        async def is_ready() -> bool:
            return process.returncode is not None or b"eady to accept connections" in printed()

        # PostgreSQL ends at once, without waiting for its clients; so does Redis.
        async with ending(process, SIGINT):
            await eventually(is_ready)
            if process.returncode is not None:
                raise Missing(_reason(command, printed()))
            yield process.pid


def _reason(command: Sequence[str], output: bytes) -> str:
    lines = output.decode(errors="replace").strip().splitlines()
    return f"{Path(command[0]).name} failed: {lines[-1] if lines else 'it said nothing'}"
