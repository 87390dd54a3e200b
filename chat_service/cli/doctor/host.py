"""What `chat doctor` looks at on this machine: Python, packages, limits, a mongod to start."""

import asyncio
import importlib.metadata
import os
import platform
import re
import resource
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from chat_service.cli.session import bare
from config.settings import PROJECT_ROOT
from workers.mongod.embedded import START_BYTES, EmbeddedError, find_mongod, first_start_bytes
from workers.mongod.exit_reason import ending_of
from workers.storage import StorageLimits
from workers.store.diagnostics import Finding

_OLDEST_PYTHON = (3, 11)
#: Connections that a process should be able to hold, with what it needs besides.
_DESCRIPTORS = 10_000 + 64
_MONGOD_WITHIN_S = 10.0
_PIN = re.compile(r"^([a-z0-9-]+)==(\S+)", re.MULTILINE)


def findings() -> Iterator[Finding]:
    """Everything that needs no settings."""
    yield _python()
    yield _packages()
    yield _files()


def _python() -> Finding:
    version = platform.python_version()
    if sys.version_info < _OLDEST_PYTHON:
        return Finding("python", "fail", f"{version}: 3.11 or newer is needed")
    return Finding("python", "ok", f"{version}, {sys.executable}")


def _packages() -> Finding:
    """What is installed, against what is pinned, or, without a checkout, against what is named."""
    pins = PROJECT_ROOT / "requirements" / "serve.txt"
    if pins.is_file():
        wanted = dict(_PIN.findall(pins.read_text(encoding="utf-8")))
    else:
        wanted = dict.fromkeys(_named(), "")
    missing, others = [], []
    for name, version in wanted.items():
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
            continue
        if version and found != version:
            others.append(f"{name} is {found}, not {version}")
    if missing:
        advice = "install them: pip install -r requirements/serve.txt"
        return Finding("packages", "fail", f"missing: {', '.join(missing)}; {advice}")
    if others:
        detail = f"not what was tested: {'; '.join(others)}"
        return Finding("packages", "warn", detail)
    if not wanted:
        return Finding("packages", "ok", "all that could be imported; nothing says their versions")
    loop = importlib.metadata.version("uvloop")
    detail = f"all {len(wanted)}{' as pinned' if pins.is_file() else ' there'}, uvloop {loop}"
    return Finding("packages", "ok", detail)


def _named() -> list[str]:
    """The names of what the installed project requires."""
    try:
        required = importlib.metadata.requires("chat-inbox") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    return [re.split(r"[^A-Za-z0-9._-]", each)[0] for each in required if "extra ==" not in each]


def _files() -> Finding:
    """The hard limit: the service raises its own to it."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < _DESCRIPTORS:
        return Finding(
            "open files",
            "warn",
            f"{hard:,} at most, so some {max(hard - 64, 0):,} connections; raise the hard limit "
            "for more (LimitNOFILE=, ulimit -Hn)",
        )
    return Finding("open files", "ok", "enough for 10,000 connections")


def telemetry() -> Finding:
    """What the setting `telemetry` needs where it is on."""
    try:
        import_module("chat_service.otlp")
    except ImportError as error:
        advice = (
            "CHAT_TELEMETRY=otlp scripts/serve installs it, or pip install -r requirements/otel.txt"
        )
        return Finding("telemetry", "fail", f"OpenTelemetry is not installed: {advice} ({error})")
    to = os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318")
    return Finding("telemetry", "ok", f"over OTLP to {bare(to)}")


def place(data_dir: Path) -> Finding:
    """Whether a data directory that is not in use can be had."""
    if data_dir.exists():
        return Finding("data", "ok", f"{data_dir} is free")
    there = _nearest(data_dir)
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        detail = f"{data_dir} cannot be made in {there}; name another with --data-dir"
        return Finding("data", "fail", detail)
    return Finding("data", "ok", f"{data_dir} is not there yet; the first start makes it")


def disk(data_dir: Path, limits: StorageLimits) -> Finding:
    """Whether the data directory's disk has room for a start, and for posts."""
    found = os.statvfs(_nearest(data_dir))
    free, total = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
    reserve = limits.reserve_of(total)
    needed = START_BYTES if data_dir.exists() else first_start_bytes(total)
    said = f"{free >> 20:,} of {total >> 20:,} MiB are free"
    if free < needed:
        detail = f"{said}, and mongod cannot start with less than {needed >> 20}; free some space"
        return Finding("disk", "fail", detail)
    if free < reserve:
        advice = f"posts are refused below {reserve >> 20} (storage_free_min_bytes)"
        return Finding("disk", "warn", f"{said}; {advice}")
    return Finding("disk", "ok", said)


def _nearest(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    return next(each for each in (path, *path.parents) if each.exists())


async def mongod(named: str) -> Finding:
    """The mongod that a service would start: found, and what it says that it is."""
    try:
        program = find_mongod(named)
    except EmbeddedError as error:
        return Finding("mongod", "fail", str(error))
    version, stderr, reason = b"", b"", ""
    try:
        process = await asyncio.create_subprocess_exec(
            *(program, "--version"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(_MONGOD_WITHIN_S):
                version, stderr = await process.communicate()
            said = stderr.decode("utf-8", "replace").strip().splitlines()
            reason = f"it {ending_of(process.returncode)}" + (f": {said[-1]}" if said else "")
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    except OSError as error:
        reason = str(error.strerror)
    except TimeoutError:
        reason = f"it took longer than {_MONGOD_WITHIN_S:.0f} s"
    match = re.search(rb"db version v(\S+)", version)
    if match is None:
        advice = "is it a mongod, and of this machine's kind? Name another with CHAT_MONGOD"
        detail = f"{program} does not say its version, {reason}: {advice}"
        return Finding("mongod", "fail", detail)
    return Finding("mongod", "ok", f"{match[1].decode()}, {program}")
