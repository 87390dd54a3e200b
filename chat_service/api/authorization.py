"""The check of a right: raises the problem that refuses a request.

`Route.right` names the right.
"""

from chat_service.api.identity import Identity, Right
from chat_service.api.problems import Problem, forbidden, unauthorized


def require(identity: Identity, right: Right, name: str) -> None:
    """Raise a 401 or 403 problem unless an identity has a right for a name.

    The answer does not depend on whether the inbox exists.
    """
    if not identity.rights.allow(right, name):
        raise _refusal(identity, right)


def require_some(identity: Identity, right: Right) -> None:
    """Raise a 401 or 403 problem unless an identity has a right for some name."""
    if not identity.rights.allow_some(right):
        raise _refusal(identity, right)


def _refusal(identity: Identity, right: Right) -> Problem:
    return forbidden(right) if identity.subject else unauthorized()
