"""Logs a line for each request, up to a number per second. The others are counted.

A line never contains the text of a message. It contains keyed hashes of the inbox and of the
client's address, unless the settings say otherwise, and the name of the client's program. Requests
of probes and monitoring are logged at level debug, and have a limit of their own.
"""

from collections.abc import Sequence
from urllib.parse import unquote

import structlog

from chat_service.api.log_lines import LineBudget, LogNames
from chat_service.api.types import AnsweredRequest

log = structlog.get_logger("chat.request")


class AccessLog:
    """Writes the lines."""

    def __init__(self, per_second: int, names: LogNames) -> None:
        self._names = names
        self._asked = LineBudget(per_second, log.info, "requests not logged")
        self._probed = LineBudget(per_second, log.debug, "requests not logged")

    def write(self, answered: Sequence[AnsweredRequest]) -> None:
        """Log some requests, as far as the budget allows."""
        asked = [each for each in answered if not each.is_probe]
        self._write_some(asked, self._asked)
        if len(asked) < len(answered):
            self._write_some([each for each in answered if each.is_probe], self._probed)

    def _write_some(self, answered: Sequence[AnsweredRequest], budget: LineBudget) -> None:
        for each in answered[: budget.take(len(answered))]:
            # Only here, since structlog makes a logger for each look at `log.info`.
            write = log.debug if each.is_probe else log.info
            write(
                "request",
                id=each.id,
                method=each.method,
                route=each.route,
                status=each.status,
                ms=round(each.seconds * 1000, 2),
                # The same name has the same hash, however it was sent.
                **self._names.fields(each.recipient or unquote(each.inbox), each.client),
                **self._names.agent(each.agent),
            )
