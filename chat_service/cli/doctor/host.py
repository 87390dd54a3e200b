"""Checks of this machine: Python, packages, limits, disk, and the embedded MongoDB."""

import asyncio
import importlib.metadata
import os
import platform
import re
import resource
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from chat_service.cli.session import without_credentials
from chat_service.server.tls import Files, TlsUnusable, end_of
from config.settings import PROJECT_ROOT
from workers.mongod.embedded import START_BYTES, EmbeddedError, find_mongod, first_start_bytes
from workers.mongod.exit_reason import ending_of
from workers.mongod.foreign_files import large_foreign_files
from workers.storage import StorageLimits
from workers.store.finding import Finding

_OLDEST_PYTHON = (3, 11)
#: File descriptors for 10,000 connections and everything else that a process opens.
_DESCRIPTORS = 10_000 + 64
_VERSION_TIMEOUT_S = 10.0
#: A certificate that expires in fewer days is reported.
_RENEW_DAYS = 14
#: Large files of others that are named.
_FILES_SHOWN = 5
_PIN = re.compile(r"^([a-z0-9-]+)==(\S+)", re.MULTILINE)


def check_installation() -> Iterator[Finding]:
    """Check what does not depend on settings: Python, packages and the limit of open files."""
    yield _python()
    yield _packages()
    yield _files()


def _python() -> Finding:
    version = platform.python_version()
    if sys.version_info < _OLDEST_PYTHON:
        return Finding("python", "fail", f"{version}: 3.11 or newer is needed")
    return Finding("python", "ok", f"{version}, {sys.executable}")


def _packages() -> Finding:
    """Compare the installed packages with the pins or, without a checkout, with the metadata."""
    pins = PROJECT_ROOT / "requirements" / "serve.txt"
    if pins.is_file():
        wanted = dict(_PIN.findall(pins.read_text(encoding="utf-8")))
    else:
        wanted = dict.fromkeys(_required_packages(), "")
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
        detail = f"not the tested versions: {'; '.join(others)}"
        return Finding("packages", "warn", detail)
    if not wanted:
        return Finding("packages", "ok", "all can be imported; no metadata to check versions")
    loop = importlib.metadata.version("uvloop")
    detail = f"all {len(wanted)} {'as pinned' if pins.is_file() else 'installed'}, uvloop {loop}"
    return Finding("packages", "ok", detail)


def _required_packages() -> list[str]:
    """Return the names of the packages that the installed project requires."""
    try:
        required = importlib.metadata.requires("chat-inbox") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    return [re.split(r"[^A-Za-z0-9._-]", each)[0] for each in required if "extra ==" not in each]


def _files() -> Finding:
    """Check the hard limit of open files, to which the service raises its own limit."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < _DESCRIPTORS:
        return Finding(
            "open files",
            "warn",
            f"at most {hard:,}, so about {max(hard - 64, 0):,} connections; for more, raise the "
            "hard limit (LimitNOFILE=, ulimit -Hn)",
        )
    return Finding("open files", "ok", "enough for 10,000 connections")


def check_telemetry() -> Finding:
    """Check what the setting `telemetry` needs if it is `otlp`."""
    try:
        import_module("chat_service.otlp")
    except ImportError as error:
        advice = (
            "CHAT_TELEMETRY=otlp scripts/serve installs it in a checkout; elsewhere, install "
            "chat-inbox[otel]"
        )
        detail = f"OpenTelemetry is not installed ({error}); {advice}"
        return Finding("telemetry", "fail", detail)
    endpoint = os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318")
    return Finding("telemetry", "ok", f"over OTLP to {without_credentials(endpoint)}")


def check_tls(certificate: str, key: str) -> Finding:
    """Check that a certificate and its key can be used, and for how long."""
    try:
        expires_at = end_of(Files(certificate, key))
    except TlsUnusable as error:
        return Finding("tls", "fail", str(error))
    if expires_at is None:
        detail = (
            f"clients will refuse {certificate}: it has expired, is not valid yet, or is not a "
            "server's"
        )
        return Finding("tls", "fail", detail)
    days = (expires_at - time.time()) / 86400
    state = f"{certificate} expires in {days:.0f} days"
    if days < _RENEW_DAYS:
        return Finding("tls", "warn", f"{state}; renew it, and a running service takes the new one")
    return Finding("tls", "ok", state)


def check_data_dir(data_dir: Path) -> Finding:
    """Check that a data directory that is not in use exists or can be created."""
    if data_dir.exists():
        return Finding("data", "ok", f"{data_dir} is free")
    parent = _nearest_existing(data_dir)
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        detail = (
            f"{data_dir} cannot be created in {parent}; choose another directory with --data-dir"
        )
        return Finding("data", "fail", detail)
    return Finding("data", "ok", f"{data_dir} does not exist yet; the first start creates it")


def check_disk(data_dir: Path, limits: StorageLimits) -> Finding:
    """Check that the data directory's disk has space for a start, and for posts."""
    found = os.statvfs(_nearest_existing(data_dir))
    free, total = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
    reserve = limits.reserve_of(total)
    needed = START_BYTES if data_dir.exists() else first_start_bytes(total)
    state = f"{free >> 20:,} of {total >> 20:,} MiB are free"
    if free < needed:
        detail = f"{state}, and mongod needs {needed >> 20} to start; free some space"
        return Finding("disk", "fail", detail)
    if free < reserve:
        limit = f"posts are refused below {reserve >> 20} (storage_free_min_bytes)"
        return Finding("disk", "warn", f"{state}; {limit}")
    return Finding("disk", "ok", state)


def check_files(data_dir: Path) -> Finding:
    """Check that nobody else keeps large files in the data directory."""
    found = large_foreign_files(data_dir)
    if not found:
        return Finding("other files", "ok", "none that are large in the data directory")
    shown = ", ".join(f"{each.path} ({each.size >> 20:,} MiB)" for each in found[:_FILES_SHOWN])
    more = f" and {len(found) - _FILES_SHOWN} more" if len(found) > _FILES_SHOWN else ""
    detail = f"not MongoDB's, and may be moved away: {shown}{more}"
    return Finding("other files", "warn", detail)


def _nearest_existing(path: Path) -> Path:
    """Return the path, or its nearest parent that exists."""
    return next(each for each in (path, *path.parents) if each.exists())


async def check_mongod(named: str) -> Finding:
    """Check that the mongod that a service would start is found and reports its version."""
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
            async with asyncio.timeout(_VERSION_TIMEOUT_S):
                version, stderr = await process.communicate()
            lines = stderr.decode("utf-8", "replace").strip().splitlines()
            reason = f"it {ending_of(process.returncode)}" + (f": {lines[-1]}" if lines else "")
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    except OSError as error:
        reason = str(error.strerror)
    except TimeoutError:
        reason = f"it took longer than {_VERSION_TIMEOUT_S:.0f} s"
    match = re.search(rb"db version v(\S+)", version)
    if match is None:
        advice = (
            "check that it is a mongod for this kind of machine, or set CHAT_MONGOD to another one"
        )
        detail = f"{program} does not report its version ({reason}); {advice}"
        return Finding("mongod", "fail", detail)
    return Finding("mongod", "ok", f"{match[1].decode()}, {program}")
