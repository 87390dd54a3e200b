"""Tells whether the searches of a round were answered by the primary, or by one that was deposed.

A deposed primary may not know yet that it was, and then lacks the messages that its successor has
accepted. Asking a majority for each search takes long. So a search is local, and a confirmation is
sent at the same time: a small write, which a majority accepts from the primary of a term and no
other member. `workers.shard` creates a check for each round of searches.
"""

import asyncio
from collections.abc import Iterable
from types import TracebackType

import structlog

from workers.errors import StoreUnavailable
from workers.store.base import Found, Store, Term

log = structlog.get_logger(__name__)


class TermCheck:
    """The confirmation of one round. Use as an async context around the searches and claims.

    It has to begin before the searches: a confirmation that was sent before a read arrived proves
    nothing about that read.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._terms: set[Term | None] = set()
        self._confirming: asyncio.Task[Term | StoreUnavailable | None] | None = None

    async def __aenter__(self) -> "TermCheck":
        # If a search has a term after all, it is not current, and is repeated.
        if self._store.has_terms:
            self._confirming = asyncio.create_task(self._confirm())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._confirming is None:
            return
        try:
            if kind is None or not issubclass(kind, asyncio.CancelledError):
                await asyncio.wait((self._confirming,))
        finally:
            # Without effect unless the round was cancelled.
            self._confirming.cancel()
            await asyncio.wait((self._confirming,))

    def add(self, results: Iterable[Found]) -> None:
        """Note the terms of these searches, which all reads of the round depend on."""
        self._terms |= {found.term for found in results}

    async def is_current(self) -> bool:
        """Return whether the searches found every message that was accepted before the round.

        Returns False if another primary was elected meanwhile. Raises `StoreUnavailable` if no
        majority confirmed the primary.
        """
        if self._terms <= {None}:
            return True
        if self._confirming is None:
            return False
        # Several reads wait for it. If one of them is cancelled, the others go on.
        confirmed = await asyncio.shield(self._confirming)
        if isinstance(confirmed, StoreUnavailable):
            raise StoreUnavailable(str(confirmed), is_unavailable=confirmed.is_unavailable)
        return self._terms == {confirmed}

    async def _confirm(self) -> Term | StoreUnavailable | None:
        """Return an error instead of raising it, since nobody may ask for it."""
        try:
            return await self._store.confirm()
        except StoreUnavailable as error:
            return error
        except Exception as error:
            # A bug. The reads of this round fail, those of the next one may succeed.
            log.exception("a confirmation failed unexpectedly")
            return StoreUnavailable(f"internal error: {type(error).__name__}")
