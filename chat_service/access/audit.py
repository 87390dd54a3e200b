"""Logs what happens to access: who was denied what, sessions, revocations, reloads and limits.

The lines have a budget of their own, so that neither a flood of requests nor one of denials can
hide the other. No line has a token or the text of a message.
"""

import structlog

from chat_service.api.identity import Client
from chat_service.api.log_lines import LineBudget, LogNames
from chat_service.api.problems import Refusal

log = structlog.get_logger("chat.audit")

#: The most lines of one kind per second. Reloads and revocations are rare, and not limited.
_LINES_PER_S = 20


class AuditLog:
    """Writes the lines of a process."""

    def __init__(self, names: LogNames) -> None:
        self._names = names
        self._denials = LineBudget(_LINES_PER_S, log.info, "denials not logged")
        self._limits = LineBudget(_LINES_PER_S, log.info, "limited requests not logged")
        self._logins = LineBudget(_LINES_PER_S, log.info, "logins not logged")

    def failed(self, error: Exception, request_id: str, client: Client, address: str) -> None:
        """Log a request that failed, if access was the reason."""
        if isinstance(error, Refusal) and self._denials.take():
            self._write(
                "denied",
                client.identity.subject,
                address,
                error.name,
                id=request_id,
                status=error.status,
                right=error.right,
                reason=error.detail,
            )

    def login(self, request_id: str, subject: str, address: str) -> None:
        """Log that a token was turned into a session."""
        if self._logins.take():
            self._write("login", subject, address, id=request_id)

    def limited(self, key: str, limit: str) -> None:
        """Log that a client, known by the key of its limits, has reached a limit."""
        if self._limits.take():
            kind, _, name = key.partition(":")
            subject, address = (name, "") if kind == "sub" else ("", name)
            self._write("limited", subject, address, limit=limit)

    def reloaded(self, tokens: int, revoked: int) -> None:
        """Log that another version of the access file is in effect."""
        log.info("reload", tokens=tokens, revoked=revoked)

    def revoked(self, subject: str) -> None:
        """Log that a subject lost a token, or all tokens that were issued before a time."""
        self._write("revoked", subject)

    def _write(
        self, event: str, subject: str, address: str = "", username: str = "", **fields: object
    ) -> None:
        named = {"subject": subject} if subject else {}
        fields = {name: value for name, value in fields.items() if value not in ("", None)}
        log.info(event, **named, **self._names.fields(username, address), **fields)
