"""The testbed's own network: what its hosts send arrives, late or not at all, as a test says."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.network.hosts import OUTSIDE, Host, Network, missing

pytestmark = pytest.mark.skipif(bool(lacks := missing()), reason=f"needs {lacks}")

_PORT = 7000
#: Answers each datagram, and prints it once the answer is sent.
_ECHO = f"""
import socket, sys
echo = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
echo.bind((sys.argv[1], {_PORT}))
print("bound", flush=True)
while True:
    data, sender = echo.recvfrom(100)
    echo.sendto(data, sender)
    print(data.decode(), flush=True)
"""


class Echo:
    """A host that answers, and a socket of this process that asks it."""

    def __init__(self, host: Host, here: Host) -> None:
        self._address = (host.address, _PORT)
        self._command = [*host.prefix, sys.executable, "-c", _ECHO, host.address]
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((here.address, 0))

    def __enter__(self) -> "Echo":
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.PIPE, text=True, encoding="ascii"
        )
        assert self.next_arrival() == "bound"
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._socket.close()

    def send(self, text: str) -> None:
        """Send a datagram."""
        self._socket.sendto(text.encode(), self._address)

    def next_arrival(self) -> str:
        """Wait for what arrives next at the host."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def next_answer(self) -> str:
        """Wait for the next answer."""
        return self._socket.recv(100).decode()


@contextmanager
def two_hosts(folder: Path) -> Iterator[tuple[Network, Echo]]:
    with (
        Network(folder, ("right",)) as network,
        Echo(network.host("right"), network.host(OUTSIDE)) as echo,
    ):
        yield network, echo


def namespaces() -> set[str]:
    """Return the namespaces of this process. Other runs have their own."""
    return {entry.name for entry in Path("/run/netns").glob(f"chat-test-{os.getpid()}-*")}


def test_what_a_host_sends_arrives_and_is_answered(tmp_path: Path) -> None:
    with two_hosts(tmp_path) as (_, echo):
        echo.send("a")
        assert (echo.next_arrival(), echo.next_answer()) == ("a", "a")


def test_drop_affects_one_direction_until_it_is_healed(tmp_path: Path) -> None:
    with two_hosts(tmp_path) as (network, echo):
        network.drop("right", OUTSIDE)
        echo.send("unanswered")
        assert echo.next_arrival() == "unanswered"
        network.heal()
        network.drop(OUTSIDE, "right")
        echo.send("lost")
        network.heal()
        echo.send("c")
        assert (echo.next_arrival(), echo.next_answer()) == ("c", "c")


def test_a_delay_is_that_of_its_direction(tmp_path: Path) -> None:
    with two_hosts(tmp_path) as (network, echo):
        network.delay(OUTSIDE, "right", 0.2)
        network.delay("right", OUTSIDE, 0.1)
        began = time.monotonic()
        echo.send("a")
        echo.next_arrival()
        # A busy machine can only make these longer.
        assert time.monotonic() - began >= 0.2
        echo.next_answer()
        assert time.monotonic() - began >= 0.3


def test_delayed_packets_keep_their_order(tmp_path: Path) -> None:
    with two_hosts(tmp_path) as (network, echo):
        network.delay(OUTSIDE, "right", 0.1)
        echo.send("first")
        network.delay(OUTSIDE, "right", 0)
        echo.send("second")
        assert [echo.next_arrival(), echo.next_arrival()] == ["first", "second"]


def test_a_packet_on_its_way_is_dropped_too(tmp_path: Path) -> None:
    with two_hosts(tmp_path) as (network, echo):
        network.delay(OUTSIDE, "right", 0.1)
        echo.send("on its way")
        network.drop(OUTSIDE, "right")
        time.sleep(0.2)
        network.heal()
        echo.send("later")
        assert echo.next_arrival() == "later"


def test_nothing_is_left_of_a_network(tmp_path: Path) -> None:
    with two_hosts(tmp_path):
        assert len(namespaces()) == 1
    assert not namespaces()


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    # It claims to be of a process that was started at another time than the one with this id.
    name = f"chat-test-{os.getpid()}-1-0-right"
    subprocess.run(["ip", "netns", "add", name], check=True)
    left = subprocess.Popen(["ip", "netns", "exec", name, "sleep", "600"])
    while (
        str(left.pid)
        not in subprocess.run(
            ["ip", "netns", "pids", name],
            check=True,
            capture_output=True,
            text=True,
            encoding="ascii",
        ).stdout.split()
    ):
        time.sleep(0.01)
    with Network(tmp_path, ()):
        assert name not in namespaces()
    assert left.wait() == -9
