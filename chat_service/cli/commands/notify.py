"""Reports the state of the service to systemd, for units with `Type=notify` (see sd_notify(3)).

Sends nothing unless the environment has NOTIFY_SOCKET. Used by `chat_service.cli.commands.serve`.
"""

import socket
import time

import structlog

log = structlog.get_logger(__name__)


class Notifier:
    """Sends notifications to the service manager's socket, if there is one."""

    def __init__(self, address: str) -> None:
        """Send to `address`, the value of NOTIFY_SOCKET. If it is empty, send nothing."""
        # A leading @ means Linux's abstract namespace.
        self._address = "\0" + address[1:] if address.startswith("@") else address

    def ready(self) -> None:
        """Report that requests are served, after the start or after a reload."""
        self._send("READY=1")

    def reloading(self) -> None:
        """Report that a rolling restart has begun; `ready` reports its end."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Report that the service has begun to drain."""
        self._send("STOPPING=1")

    def _send(self, state: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.setblocking(False)
                sock.sendto(state.encode("ascii"), self._address)
        except OSError as error:
            log.warning("could not notify the service manager", state=state, reason=str(error))
