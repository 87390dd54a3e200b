"""Several hosts on this machine, and a network between them that delays, drops and heals.

Each host is a network namespace. Their packets pass through `hub.c`, a small program that the test
compiles; the kernel's own `netem` is not everywhere. From a script, as root:

    with Network(folder, ("left", "right")) as network:
        right = network.host("right")
        subprocess.Popen([*right.prefix, "python", "-m", "http.server", "--bind", right.address])
        network.delay("left", "right", 0.01)   # one way; link_delay(...) sets both directions
        network.drop("left", "right")          # one way
        network.heal()                         # nothing is dropped any more; delays stay

This process takes part as the host `OUTSIDE`. `tests.network.fleet` has a replica set and nodes of
the service on such hosts. The addresses are of the block for tests of networks (198.18.0.0/15,
RFC 2544), and no packet leaves this machine. A program that is started with a host's prefix dies
with the thread that started it. What a run that was killed has left is removed by the next one.
"""

import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from workers.mongod import die_with_parent

#: The host of this process.
OUTSIDE = "outside"
_NAMESPACES, _DEVICES = Path("/run/netns"), Path("/sys/class/net")
#: Namespaces are named with this, the process that made them, a number and the host.
_PREFIX = "chat-test"
_SUBNETS = 512
#: Few large packets, so that the hub costs little; a real network has more and smaller ones.
_MTU, _QUEUE = 65000, 10000
_networks = itertools.count()


class Host(NamedTuple):
    """Where a program runs: by default on loopback, in no namespace of its own."""

    name: str = "localhost"
    address: str = "127.0.0.1"
    namespace: str = ""

    @property
    def prefix(self) -> tuple[str, ...]:
        """The prefix of a command, with an absolute path, that runs there.

        It dies with the thread that starts it.
        """
        tied = (sys.executable, "-I", "-S", die_with_parent.__file__, str(os.getpid()))
        if not self.namespace:
            return tied
        return (*tied, shutil.which("ip") or "ip", "netns", "exec", self.namespace)


LOOPBACK = Host()


def missing() -> str:
    """Return what hosts need and this machine lacks, or an empty string."""
    if os.geteuid() != 0:
        return "root, to make network namespaces"
    if shutil.which("ip") is None:
        return "ip, of Debian's package iproute2"
    if shutil.which("cc") is None:
        return "a C compiler (cc), such as Debian's packages gcc and libc6-dev"
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "/dev/net/tun"
    try:
        with _namespace(f"{_owner()}-{next(_networks)}-probe"):
            return ""
    except subprocess.CalledProcessError as error:
        return f"network namespaces ({error.stderr.strip()})"


class Network:
    """Hosts that reach each other and `OUTSIDE`. Use as a context, of one thread.

    At first nothing is delayed or dropped. All times are seconds, one way.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        """`folder` is for the compiled program."""
        self._folder = folder
        self._names = (OUTSIDE, *names)
        self._dropped: set[tuple[str, str]] = set()

    def __enter__(self) -> "Network":
        _remove_stale()
        with ExitStack() as stack:
            owner = f"{_owner()}-{next(_networks)}"
            self._spaces = {
                name: stack.enter_context(_namespace(f"{owner}-{name}")) for name in self._names[1:]
            }
            taken = {entry.name for entry in _DEVICES.iterdir()}
            subnet = random.choice(
                [number for number in range(_SUBNETS) if f"chat{number}" not in taken]
            )
            self._net = f"198.{18 + subnet // 256}.{subnet % 256}"
            self._device = f"chat{subnet}"
            stack.callback(self._end_hub, self._start_hub())
            for name in self._names:
                self._configure(name)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def host(self, name: str) -> Host:
        """Return a host of this network."""
        return Host(name, self._address(name), self._spaces.get(name, ""))

    def set_kernel(self, host: Host, name: str, value: str) -> None:
        """Change a setting below /proc/sys for one host."""
        subprocess.run(
            [*host.prefix, "tee", f"/proc/sys/{name}"],
            input=value,
            check=True,
            stdout=subprocess.DEVNULL,
            text=True,
            encoding="ascii",
        )

    def delay(self, sender: str, receiver: str, seconds: float) -> None:
        """Delay what one host sends to another one from now on."""
        self._tell("delay", sender, receiver, round(seconds * 1e6))

    def link_delay(self, one: str, other: str, seconds: float) -> None:
        """Delay what two hosts send to each other; a round trip takes twice as long."""
        self.delay(one, other, seconds)
        self.delay(other, one, seconds)

    def drop(self, sender: str, receiver: str) -> None:
        """Drop what one host sends to another one, including packets that are on their way."""
        self._dropped.add((sender, receiver))
        self._tell("drop", sender, receiver, 1)

    def drop_all(self, paths: Iterable[tuple[str, str]]) -> None:
        """Drop what is sent on these paths, each given as (sender, receiver)."""
        for sender, receiver in paths:
            self.drop(sender, receiver)

    def heal(self) -> None:
        """Drop nothing any more."""
        while self._dropped:
            self._tell("drop", *self._dropped.pop(), 0)

    def _tell(self, verb: str, sender: str, receiver: str, value: int) -> None:
        assert self._hub.stdin is not None
        assert self._hub.stdout is not None
        positions = (self._names.index(sender), self._names.index(receiver))
        self._hub.stdin.write(f"{verb} {positions[0]} {positions[1]} {value}\n")
        self._hub.stdin.flush()
        if self._hub.stdout.readline() != "ok\n":
            raise RuntimeError("the hub has ended")

    def _address(self, name: str) -> str:
        return f"{self._net}.{self._names.index(name) + 1}"

    def _start_hub(self) -> "subprocess.Popen[str]":
        program = self._folder / "hub"
        source = Path(__file__).with_name("hub.c")
        subprocess.run(
            ["cc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", str(program), str(source)],
            check=True,
        )
        spaces = [Path("/proc/self/ns/net"), *map(_NAMESPACES.joinpath, self._spaces.values())]
        self._hub = subprocess.Popen(
            [
                str(program),
                *(
                    f"{space}:{self._device}:{self._address(name)}"
                    for space, name in zip(spaces, self._names, strict=True)
                ),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="ascii",
        )
        assert self._hub.stdout is not None
        if self._hub.stdout.readline() != "ready\n":
            self._end_hub(self._hub)
            raise RuntimeError("the hub did not start; its error is on stderr")
        return self._hub

    @staticmethod
    def _end_hub(hub: "subprocess.Popen[str]") -> None:
        assert hub.stdin is not None
        assert hub.stdout is not None
        # It ends with its input.
        hub.stdin.close()
        hub.wait()
        hub.stdout.close()

    def _configure(self, name: str) -> None:
        space = () if name == OUTSIDE else ("-n", self._spaces[name])
        device = ("dev", self._device)
        if space:
            _ip(*space, "link", "set", "lo", "up")
        _ip(*space, "address", "add", f"{self._address(name)}/24", *device)
        _ip(*space, "link", "set", *device, "mtu", str(_MTU), "txqueuelen", str(_QUEUE), "up")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, encoding="utf-8")


@contextmanager
def _namespace(name: str) -> Iterator[str]:
    _ip("netns", "add", name)
    try:
        yield name
    finally:
        _ip("netns", "delete", name)


def _owner() -> str:
    """Return a name of this process that no other process will have."""
    return f"{_PREFIX}-{os.getpid()}-{_started(os.getpid())}"


def _started(pid: int) -> str:
    """Return when a process was started, in ticks since the start of the machine, or nothing."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[19]


def _remove_stale() -> None:
    """Remove the namespaces of runs that were killed, with what still runs in them."""
    for entry in _NAMESPACES.glob(f"{_PREFIX}-*"):
        pid, started = entry.name.removeprefix(f"{_PREFIX}-").split("-")[:2]
        if _started(int(pid)) == started:
            continue
        # Another run may do the same at the same time.
        with suppress(subprocess.CalledProcessError):
            listed = subprocess.run(
                ["ip", "netns", "pids", entry.name],
                check=True,
                capture_output=True,
                text=True,
                encoding="ascii",
            )
            for left in listed.stdout.split():
                with suppress(ProcessLookupError):
                    os.kill(int(left), signal.SIGKILL)
            _ip("netns", "delete", entry.name)
