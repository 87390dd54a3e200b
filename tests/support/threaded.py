"""Lets a test use `SyncChatClient` as if it were `ChatClient`: each call runs in a thread.

The service of a test runs in the test's event loop, so a call that blocks must not run there.
"""

import asyncio
from collections.abc import Iterator
from typing import Any

from chat_inbox import SyncChatClient, SyncLease, SyncStream

_WRAPPED = (SyncChatClient, SyncLease, SyncStream)
#: Methods that send no request.
_IMMEDIATE = ("check", "stream")


class Threaded:
    """An object of the sync client with asynchronous methods."""

    def __init__(self, target: Any) -> None:
        self._target = target

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._target, name)
        if not callable(found):
            return found
        if name in _IMMEDIATE:
            return lambda *args, **kwargs: _wrap(found(*args, **kwargs))
        return lambda *args, **kwargs: _Call(found, args, kwargs)

    def __repr__(self) -> str:
        return repr(self._target).replace("Sync", "")

    def __iter__(self) -> Iterator[Any]:
        return iter(self._target)

    async def __aenter__(self) -> "Threaded":
        await asyncio.to_thread(self._target.__enter__)
        return self

    async def __aexit__(self, *error: Any) -> None:
        await asyncio.to_thread(self._target.__exit__, *error)

    def __aiter__(self) -> "Threaded":
        return self

    async def __anext__(self) -> Any:
        # StopIteration cannot be raised into a future.
        ended = object()
        found = await asyncio.to_thread(next, self._target, ended)
        if found is ended:
            raise StopAsyncIteration
        return found


class _Call:
    """A call in a thread, to await or, for a lease, to use with `async with`."""

    def __init__(self, method: Any, args: Any, kwargs: Any) -> None:
        self._call = self._run(method, args, kwargs)

    @staticmethod
    async def _run(method: Any, args: Any, kwargs: Any) -> Any:
        return _wrap(await asyncio.to_thread(method, *args, **kwargs))

    def __await__(self) -> Any:
        return self._call.__await__()

    async def __aenter__(self) -> Any:
        self._entered = await self._call
        return await self._entered.__aenter__()

    async def __aexit__(self, *error: Any) -> None:
        await self._entered.__aexit__(*error)


def _wrap(result: Any) -> Any:
    return Threaded(result) if isinstance(result, _WRAPPED) else result
