"""Fixtures for the tests with other clients: the service as a process, proxies, a browser.

They need Debian's packages curl, openssl, nginx-light, haproxy, chromium, firefox-esr, fish and
prometheus. A test fails if one is missing.
"""

import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest
from tornado.ioloop import IOLoop

from tests.support.client import ChatClient
from tests.support.server import Server
from tests.support.waiting import PATIENCE

#: Starts a proxy with this configuration, in which `{port}` is the port of the proxy and `{server}`
#: the address of the service. Returns the port.
StartProxy: TypeAlias = Callable[[str, str], int]
OpenPage: TypeAlias = Callable[[str], None]

_CHROMIUM = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@pytest.fixture
def chat(io_loop: IOLoop, server: Server) -> Iterator[ChatClient]:
    """A client of that service, without a proxy."""
    client = ChatClient(server.base)
    yield client
    client.close()


@pytest.fixture
def start_proxy(server: Server, tmp_path: Path) -> Iterator[StartProxy]:
    """Start nginx or haproxy in front of the service; stop it at the end."""
    running: list[subprocess.Popen[bytes]] = []

    def start(program: str, configuration: str) -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        file = tmp_path / f"{program}.conf"
        text = configuration.replace("{port}", str(port))
        text = text.replace("{server}", f"127.0.0.1:{server.port}").replace(
            "{folder}", str(tmp_path)
        )
        file.write_text(text, encoding="utf-8")
        command = {
            "nginx": ["nginx", "-e", "stderr", "-p", str(tmp_path), "-c", str(file)],
            "haproxy": ["haproxy", "-db", "-f", str(file)],
        }[program]
        command[0] = shutil.which(command[0], path="/usr/sbin:/usr/bin:/usr/local/sbin") or program
        with (tmp_path / "proxy.log").open("wb") as log:
            running.append(subprocess.Popen(command, stdout=log, stderr=log))
        _await_port(port)
        return port

    yield start
    for process in running:
        process.terminate()
        process.wait(10 * PATIENCE)


@pytest.fixture
def open_page(tmp_path: Path) -> Iterator[OpenPage]:
    """Open a page in a headless Chromium; close it at the end."""
    running: list[subprocess.Popen[bytes]] = []

    def start(url: str) -> None:
        with (tmp_path / "chromium.log").open("wb") as log:
            profile = f"--user-data-dir={tmp_path / 'profile'}"
            command = ["chromium", *_CHROMIUM, profile, "--remote-debugging-port=0", url]
            running.append(subprocess.Popen(command, stdout=log, stderr=log))

    yield start
    for process in running:
        process.kill()
        process.wait()


def _await_port(port: int) -> None:
    deadline = time.monotonic() + 10 * PATIENCE
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            assert time.monotonic() < deadline, "the proxy does not listen"
            time.sleep(0.05)
