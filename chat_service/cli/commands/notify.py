"""Tells systemd how the service is, where its unit has `Type=notify` (see sd_notify(3)).

Without the environment's NOTIFY_SOCKET nothing is sent. Used by `chat_service.cli.commands.serve`.
"""

import socket
import time

import structlog

log = structlog.get_logger(__name__)


class Notifier:
    """The service manager's socket, or none."""

    def __init__(self, address: str) -> None:
        """`address` is NOTIFY_SOCKET; empty, nobody is told."""
        # An @ stands for the abstract namespace of Linux.
        self._address = "\0" + address[1:] if address.startswith("@") else address

    def ready(self) -> None:
        """Say that requests are served, after the start or after a reload."""
        self._send("READY=1")

    def reloading(self) -> None:
        """Say that a rolling restart has begun; `ready` ends it."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Say that the service has begun to drain."""
        self._send("STOPPING=1")

    def _send(self, state: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.setblocking(False)
                sock.sendto(state.encode("ascii"), self._address)
        except OSError as error:
            log.warning("the service manager was not told", state=state, reason=str(error))
