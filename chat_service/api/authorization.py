"""The check of a right: raises the problem that refuses a request.

`Route.right` names the right.
"""

from chat_service.api.identity import EVERYONE, Identity, Right
from chat_service.api.problems import Problem, Refusal, forbidden, unauthorized
from chat_service.api.validation import decode_segment


def authorize(identity: Identity, right: Right, segment: str) -> None:
    """Check a request by its head alone. Both request paths call this first.

    `segment` is the username or the message id in the path as sent, or empty. If the name is in the
    body instead, the handler calls `require` once it has validated the name. Raises a 401 or 403
    problem, and 400 for a malformed segment.
    """
    if identity is EVERYONE:
        return
    if not segment or right not in ("send", "read"):
        # An id must not be logged as a name.
        require_some(identity, right)
        return
    try:
        name = decode_segment(segment)
    except Problem:
        # Senders without any right learn nothing about their request.
        require_some(identity, right, segment)
        raise
    require(identity, right, name)


def require(identity: Identity, right: Right, name: str) -> None:
    """Raise a 401 or 403 problem unless an identity has a right for a name.

    The answer does not depend on whether the inbox exists.
    """
    if identity is not EVERYONE and not identity.rights.allow(right, name):
        raise _refusal(identity, right, name)


def require_some(identity: Identity, right: Right, asked: str = "") -> None:
    """Raise a 401 or 403 problem unless an identity has a right for some name.

    `asked` is the name in the request as far as it is known, for the log.
    """
    if not identity.rights.allow_some(right) and not (right == "any" and identity.subject):
        raise _refusal(identity, right, asked)


def _refusal(identity: Identity, right: Right, name: str) -> Problem:
    refusal = forbidden(right) if identity.subject else unauthorized()
    if isinstance(refusal, Refusal):
        refusal.right, refusal.name = right, name
    return refusal
