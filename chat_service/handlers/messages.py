"""Querying the status of a message and revoking it, with a receipt."""

from datetime import UTC, datetime
from urllib.parse import unquote

import msgspec

from chat_service.api.problems import no_receipt, no_such_message, too_late
from chat_service.api.request_options import hash_of
from chat_service.api.types import JSON_HEADERS, BodyChunk, Request, Response
from chat_service.api.validation import NewMessage, is_message_id
from workers.commands import Revoke, Track
from workers.errors import OutcomeUnknown, StoreUnavailable
from workers.pool import WorkerPool

#: The length of a message id of which every character is percent-encoded.
_SEGMENT_MAX = 96


class MessageHandlers:
    """The handlers of `/messages/:id`."""

    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool

    async def status(self, request: Request) -> Response:
        """GET /messages/:id/status: query the status of a message."""
        receipt, message_id = _receipt_of(request), _message_of(request)
        try:
            fate = await self._pool.submit(Track(message_id, receipt), client=request.client.key)
        except OutcomeUnknown as error:
            # A query changes nothing, so its outcome cannot be in doubt.
            raise StoreUnavailable(str(error)) from error
        if fate is None:
            raise no_such_message()
        at = None if fate.at_ms is None else _time(fate.at_ms)
        document = {"id": message_id, "status": fate.status, "at": at}
        return Response(200, JSON_HEADERS, BodyChunk(msgspec.json.encode(document), 0))

    async def revoke(self, request: Request) -> Response:
        """DELETE /messages/:id: revoke an unread message."""
        receipt, message_id = _receipt_of(request), _message_of(request)
        fate = await self._pool.submit(Revoke(message_id, receipt), client=request.client.key)
        if fate is None:
            raise no_such_message()
        if fate.status != "revoked":
            raise too_late(fate.status)
        return Response(204, {"Cache-Control": "no-store"}, BodyChunk(b"", 0))


def _time(at_ms: int) -> str:
    """Return the time in RFC 3339 format, to the millisecond."""
    at = datetime.fromtimestamp(at_ms / 1000, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def receipt_hash(receipt: str) -> str:
    """Return the hash under which a receipt is stored."""
    return hash_of("receipt", receipt)


def body_hash(new: NewMessage) -> str:
    """Return the hash by which a repeat of a post with a key is known to be the same message."""
    # Without a delay, as in earlier versions, whose nodes may have stored the key.
    delay = (str(new.delay_s),) if new.delay_s else ()
    return hash_of(new.username, new.text, str(new.timeout_s), *delay)


def _message_of(request: Request) -> str:
    """Return the id in the path. Raises a 404 problem, without a query, if it is not an id."""
    segment = request.parameter
    message_id = unquote(segment) if len(segment) <= _SEGMENT_MAX else ""
    if not is_message_id(message_id):
        raise no_such_message()
    return message_id


def _receipt_of(request: Request) -> str:
    receipt = request.headers.get("X-Receipt")
    if receipt is None:
        raise no_receipt()
    return receipt_hash(receipt)
