"""Reports the state of the service to the program that started it.

`Notifier` reports to systemd, for units with `Type=notify` (see sd_notify(3)). It sends nothing
unless the environment has NOTIFY_SOCKET. `Beats` reports to the supervisor of several processes.
Used by `chat_service.cli.commands.serve`.
"""

import asyncio
import os
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, MutableMapping

import structlog

from chat_service.supervisor import BEAT, READY

log = structlog.get_logger(__name__)

#: The longest pause between two looks at the status, in seconds. A watchdog may need less.
_LOOK_EVERY_S = 1.0
#: How long a start may go on after each message that it goes on, in seconds.
_EXTENSION_S = 15


class Notifier:
    """Sends notifications to the service manager's socket, if there is one."""

    def __init__(self, address: str = "", watchdog_s: float = 0.0) -> None:
        """Send to `address`, the value of NOTIFY_SOCKET. If it is empty, send nothing.

        `watchdog_s` is the time after which the service manager ends a silent service, or 0.
        """
        # A leading @ means Linux's abstract namespace.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog_s = watchdog_s
        self._is_ready = False
        self._told = ""
        #: Changes of the state that the manager had no room for yet, the oldest first.
        self._changes: deque[str] = deque()
        self._has_failed = False

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str]) -> "Notifier":
        """Use the service manager's variables. Remove them, so that no child process uses them."""
        address = environ.pop("NOTIFY_SOCKET", "")
        usec, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        is_ours = address and usec.isdecimal() and pid in ("", str(os.getpid()))
        return cls(address, int(usec) / 1e6 if is_ours else 0.0)

    async def keep(self, status: Callable[[], str], start_max_s: float) -> None:
        """Report what `status` returns when it changes, and that the event loop turns.

        Runs on the event loop until it is cancelled, so a stuck loop is silent. Until `ready` is
        called, but for `start_max_s` seconds at most, each message extends the time of the start.
        """
        if not self._address:
            return
        loop = asyncio.get_running_loop()
        start_ends = loop.time() + start_max_s
        every_s = min(_LOOK_EVERY_S, self.watchdog_s / 3 or _LOOK_EVERY_S)
        while True:
            self._send_changes()
            lines = []
            if not self._is_ready and loop.time() < start_ends:
                lines.append(f"EXTEND_TIMEOUT_USEC={_EXTENSION_S * 1_000_000}")
            if self.watchdog_s:
                lines.append("WATCHDOG=1")
            lines += self._news(status())
            if lines and not self._send("\n".join(lines)):
                # The status again, next time.
                self._told = ""
            await asyncio.sleep(every_s)

    def ready(self, status: str) -> None:
        """Report that requests are served, after the start or after a reload."""
        self._is_ready = True
        self._change("READY=1", *self._news(status))

    def reloading(self) -> None:
        """Report that a rolling restart has begun; `ready` reports its end."""
        self._change("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Report that the service has begun to drain."""
        self._change("STOPPING=1")

    def _news(self, status: str) -> list[str]:
        """Return the line of a status, or nothing if it is known."""
        before, self._told = self._told, " ".join(status.split())
        return [f"STATUS={self._told}"] if self._told != before else []

    def _change(self, *lines: str) -> None:
        """Report a change of the state, now or as soon as the manager has room for it."""
        self._changes.append("\n".join(lines))
        self._send_changes()

    def _send_changes(self) -> None:
        while self._changes and self._send(self._changes[0]):
            self._changes.popleft()

    def _send(self, message: str) -> bool:
        """Send a message. Return False if the manager has no room for it at the moment."""
        if not self._address:
            return True
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.setblocking(False)
                sock.sendto(message.encode(), self._address)
            self._has_failed = False
        except BlockingIOError:
            return False
        except OSError as error:
            # Once is enough, because `keep` sends again and again.
            if not self._has_failed:
                log.warning("could not notify the service manager", reason=str(error))
            self._has_failed = True
        return True


class Beats:
    """Reports to the supervisor, on standard output."""

    def __init__(self, every_s: float) -> None:
        """`every_s` is the time between two reports that the event loop turns, or 0 for none."""
        self._every_s = every_s
        self._is_ready = asyncio.Event()

    async def keep(self, *_: object) -> None:
        """Report again and again that the event loop turns, once `ready` was called."""
        await self._is_ready.wait()
        while self._every_s:
            await asyncio.sleep(self._every_s)
            self._write(BEAT)

    def ready(self, _: str) -> None:
        """Report that requests are served."""
        self._write(READY)
        self._is_ready.set()

    def stopping(self) -> None:
        """Report nothing: the supervisor has asked for it."""

    def _write(self, line: bytes) -> None:
        sys.stdout.write(line.decode("ascii"))
        sys.stdout.flush()
