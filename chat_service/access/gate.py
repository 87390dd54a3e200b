"""Decides who sent a request. Both request paths ask the gate, and so do open waits and streams.

A token of the access file is found by its SHA-256 digest. A JSON Web Token is verified once: the
verifier remembers it, and the header cache remembers the identity of a block of header lines. The
gate says afterwards whether an identity is still as it was.
"""

import heapq
import time
from collections.abc import Callable, Sequence
from hashlib import sha256
from math import ceil
from typing import Literal, TypeAlias

from tornado.httputil import HTTPHeaders

from chat_service.access.clients import key_of
from chat_service.access.credentials import TOKEN_MAX, find_token, reject_misplaced
from chat_service.access.token_file import Grants
from chat_service.access.verifier import InvalidToken, UnknownKey, Verifier
from chat_service.api.authorization import authorize
from chat_service.api.identity import EVERYONE, UNLIMITED, Client, Identity, Right, Rights
from chat_service.api.problems import unauthorized

#: Which tokens the service takes.
Access: TypeAlias = Literal["off", "tokens", "jwt", "both"]


#: Stands for the sender of a request that needs no right.
_NOBODY = Identity("", Rights())


class _Signed(Identity, frozen=True):
    """The identity of a JSON Web Token, which can be verified again when keys have changed."""

    token: str = ""
    generation: int = 0

    # The token must not be in a traceback.

    def __repr__(self) -> str:
        return f"Identity of {self.subject!r}"

    def __rich_repr__(self) -> list[tuple[str, object]]:
        return [("subject", self.subject)]


class Gate:
    """Tells who sent a request, by the access file and the keys in effect."""

    def __init__(
        self,
        access: Access,
        clock: Callable[[], float] = time.time,
        own_origins: frozenset[str] = frozenset(),
    ) -> None:
        """`clock` returns the time in seconds since 1970.

        `own_origins` has the origin of the service if a proxy changes its `Host`.
        """
        self.access = access
        self.own_origins = own_origins
        self._is_off = access == "off"
        self._grants = Grants()
        self._verifier: Verifier | None = None
        self._clock = clock
        self._generation = 0
        #: The times at which identities end, in whole seconds, each once: a heap, and its members.
        self._ends: list[int] = []
        self._known_ends: set[int] = set()

    def use(self, verifier: Verifier) -> None:
        """Take the tokens that a verifier accepts. Called once, at the start."""
        self._verifier, self._generation = verifier, verifier.generation

    def identify(self, headers: HTTPHeaders, query: str = "") -> Identity:
        """Return the identity of a request.

        Raises a problem: 400 for a misplaced token, 401 for an invalid one, and 403 for a session's
        cookie from another page. A request without a token is anonymous. Raises `UnknownKey` if
        the keys have to be fetched first.
        """
        if self._is_off:
            return EVERYONE
        reject_misplaced(headers, query)
        token = find_token(headers, self.own_origins)
        return self._grants.anonymous if token is None else self._identity_of(token)

    def reject_misplaced(self, headers: HTTPHeaders, query: str) -> None:
        """Raise a 400 problem for a misplaced token, on routes that need none."""
        if not self._is_off:
            reject_misplaced(headers, query)

    def unidentified(self, address: str) -> Client:
        """Return the client of a request that needs no right."""
        return UNLIMITED if self._is_off else self.client(_NOBODY, address)

    def client(self, identity: Identity, address: str) -> Client:
        """Return the client with this identity, which sent a request from an address."""
        return Client(identity, key_of(identity, address))

    def renew(self, identity: Identity) -> Identity | None:
        """Return what an identity is by now, the same object if nothing has changed.

        None if its token has expired, or was removed or revoked.
        """
        current: Identity | None = identity
        if self._is_off:
            return identity
        if identity.digest:
            current = self._grants.tokens.get(identity.digest)
        elif isinstance(identity, _Signed):
            current = self._verify_again(identity)
        else:
            return self._grants.anonymous
        return current if current is not None and self._is_current(current) else None

    def identify_again(self, identity: Identity, right: Right, segment: str) -> Identity:
        """Return what an identity is by now, the same object if nothing has changed.

        Raises a 401 or 403 problem if it may no longer do what its request began with. `right` and
        `segment` are those of `authorize`.
        """
        renewed = self.renew(identity)
        if renewed is None:
            raise unauthorized("the token has expired or was revoked", is_invalid=True)
        if renewed is not identity:
            authorize(renewed, right, segment)
        return renewed

    def adopt(self, grants: Grants) -> Sequence[str]:
        """Use another version of the access file from now on. Return who has lost a token."""
        old = self._grants
        self._grants = Grants(
            _same(old.anonymous, grants.anonymous),
            {
                digest: _same(old.tokens.get(digest), identity)
                for digest, identity in grants.tokens.items()
            },
            grants.revoked,
        )
        for identity in grants.tokens.values():
            self._note_end(identity)
        removed = {old.tokens[digest].subject for digest in old.tokens.keys() - grants.tokens}
        revoked = {
            subject
            for subject, before in grants.revoked.items()
            if before > old.revoked.get(subject, 0.0)
        }
        return sorted(removed | revoked)

    def has_ended(self) -> bool:
        """Return whether an identity may have ended since the last call.

        Its time was over, or the key that signed its token was removed.
        """
        now, generation = self._clock(), 0 if self._verifier is None else self._verifier.generation
        is_over, self._generation = generation != self._generation, generation
        while self._ends and self._ends[0] <= now:
            self._known_ends.discard(heapq.heappop(self._ends))
            is_over = True
        return is_over

    async def identify_patiently(self, headers: HTTPHeaders, query: str = "") -> Identity:
        """Return the identity of a request like `identify`, but fetch the keys if needed."""
        try:
            return self.identify(headers, query)
        except UnknownKey:
            if self._verifier is not None:
                await self._verifier.fetch_keys()
        try:
            return self.identify(headers, query)
        except UnknownKey as error:
            raise unauthorized(str(error), is_invalid=True) from None

    def _identity_of(self, token: str) -> Identity:
        if len(token) > TOKEN_MAX:
            raise unauthorized("the token is too long", is_invalid=True)
        digest = sha256(token.encode()).digest()
        identity = self._grants.tokens.get(digest)
        if identity is None:
            identity = self._verify(token)
        if not self._is_current(identity):
            raise unauthorized("the token has expired or was revoked", is_invalid=True)
        # Again for each: an end that was over comes back if the clock is set back.
        self._note_end(identity)
        return identity

    def _verify(self, token: str) -> Identity:
        # Only signed tokens have dots.
        if (verifier := self._verifier) is None or "." not in token:
            raise unauthorized("the token is not known", is_invalid=True)
        try:
            found = verifier.verify(token)
        except UnknownKey:
            raise
        except InvalidToken as error:
            raise unauthorized(str(error), is_invalid=True) from None
        return _Signed(
            found.subject,
            found.rights,
            found.until,
            found.issued,
            token=token,
            generation=verifier.generation,
        )

    def _verify_again(self, identity: _Signed) -> Identity | None:
        """Return the identity if its key was not removed."""
        if self._verifier is None:
            return None
        if identity.generation != self._verifier.generation:
            try:
                self._verifier.verify(identity.token)
            except InvalidToken:
                return None
        return identity

    def _is_current(self, identity: Identity) -> bool:
        if identity.until and identity.until <= self._clock():
            return False
        # A token of the file has no time of issue: it counts as issued before.
        before = self._grants.revoked.get(identity.subject)
        return before is None or identity.issued >= before

    def _note_end(self, identity: Identity) -> None:
        end = ceil(identity.until)
        if end > self._clock() and end not in self._known_ends:
            self._known_ends.add(end)
            heapq.heappush(self._ends, end)


def _same(old: Identity | None, new: Identity) -> Identity:
    """Return the old identity if it equals the new one, so that caches can compare the objects."""
    return old if old is not None and old == new else new
