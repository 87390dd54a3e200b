"""Logs a line for each request, up to a number per second. The others are counted.

A line never contains the text of a message. It contains keyed hashes of the inbox and of the
client's address, unless the settings say otherwise. Requests of probes and monitoring are logged at
level debug, and have a limit of their own.
"""

import structlog

from chat_service.api.log_lines import LineBudget, LogNames

log = structlog.get_logger("chat.request")


class AccessLog:
    """Writes the lines."""

    def __init__(self, per_second: int, names: LogNames) -> None:
        self._names = names
        self._asked = LineBudget(per_second, log.info, "requests not logged")
        self._probed = LineBudget(per_second, log.debug, "requests not logged")

    def write(
        self,
        request_id: str,
        method: str,
        route: str,
        inbox: str,
        client: str,
        status: int,
        seconds: float,
        *,
        is_probe: bool = False,
    ) -> None:
        """Log one answered request.

        `inbox` is the path's segment as sent, or empty; `client` its address.
        """
        if not (self._probed if is_probe else self._asked).take():
            return
        (log.debug if is_probe else log.info)(
            "request",
            id=request_id,
            method=method,
            route=route,
            status=status,
            ms=round(seconds * 1000, 2),
            **self._names.fields(inbox, client),
        )
