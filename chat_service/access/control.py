"""Keeps the gate up to date: reads the access file again when it changes, and notices expiries.

All file access is off the event loop. A broken or missing file keeps the rules in effect. Made by
`chat_service.service`.
"""

import asyncio
import stat
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import structlog

from chat_service.access.audit import AuditLog
from chat_service.access.gate import Access, Gate
from chat_service.access.loading import start_verifier
from chat_service.access.token_file import Grants, TokenFileInvalid, parse
from chat_service.access.verifier import KeysUnusable

if TYPE_CHECKING:
    from chat_service.access.jwt import JwtVerifier

log = structlog.get_logger(__name__)

#: How often the file and the expiries are checked, in seconds. A change must take effect within a
#: second, and the file must be seen unchanged first.
_CHECK_EVERY_S = 0.4
#: A file that changed less than so many nanoseconds ago may still be written to.
_SETTLED_NS = 100_000_000


class AccessUnusable(Exception):
    """Raised for an access file or keys that cannot be used. The message says why."""


class AccessFile:
    """The access file on the disk. Used by one thread at a time."""

    def __init__(self, path: Path, *, takes_tokens: bool) -> None:
        """With `takes_tokens` false, a file with tokens is a mistake."""
        self._path = path
        self._takes_tokens = takes_tokens
        #: The version that was read last, valid or not. None if it could not be read.
        self._stamp: _Stamp | None = None

    def read(self) -> Grants:
        """Return what the file says. Raises `AccessUnusable`."""
        # A file that is replaced after this look has another stamp, and is read again.
        self._stamp = self._look()
        try:
            grants = parse(self._path.read_text(encoding="utf-8-sig"))
        except OSError as error:
            # The error may pass without a change of the file.
            self._stamp = None
            raise AccessUnusable(f"{self._path}: cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise AccessUnusable(f"{self._path}: is not UTF-8, as TOML must be") from None
        except TokenFileInvalid as error:
            raise AccessUnusable(f"{self._path}: {error}") from None
        if grants.tokens and not self._takes_tokens:
            raise AccessUnusable(f"{self._path}: [[token]] needs access=tokens or access=both")
        if self._stamp is not None and self._stamp.mode & stat.S_IROTH:
            log.warning("every user of this machine can read the access file", path=str(self._path))
        return grants

    def read_again(self) -> Grants | None:
        """Return what the file says if it has changed, else None. Raises `AccessUnusable`."""
        stamp = self._look()
        if stamp == self._stamp or (stamp is not None and stamp.may_change):
            return None
        return self.read()

    def _look(self) -> "_Stamp | None":
        """Return the stamp of the file, or None if there is none."""
        try:
            status = self._path.stat()
        except OSError:
            return None
        return _Stamp(
            status.st_dev,
            status.st_ino,
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
            status.st_mode,
        )


class _Stamp(NamedTuple):
    """What distinguishes one version of the file from another."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int
    mode: int

    @property
    def may_change(self) -> bool:
        """Whether somebody may be writing to the file, so that it is only part of a version."""
        return 0 <= time.time_ns() - max(self.modified_ns, self.changed_ns) < _SETTLED_NS


class AccessOptions(NamedTuple):
    """Which tokens are taken, and where their rights and keys are: texts are empty if unused."""

    access: Access = "off"
    file: str = ""
    issuer: str = ""
    audience: str = ""
    #: A file or URL. Empty: the issuer says where they are.
    keys: str = ""
    #: How long the start waits for the keys, in seconds.
    keys_wait_s: float = 0.0
    #: The origin of the service if a proxy changes its `Host`.
    own_origins: frozenset[str] = frozenset()


class AccessControl:
    """The gate of a process, and what keeps it up to date. `start`, then `stop`."""

    def __init__(
        self,
        options: AccessOptions,
        audit: AuditLog,
        on_change: Callable[[], None],
        on_state: Callable[[bool], None],
    ) -> None:
        """`on_change` is called when identities have changed or ended.

        `on_state` is called with whether the file could be used, when it has changed.
        """
        self.gate = Gate(options.access, own_origins=options.own_origins)
        self._options = options
        self._audit = audit
        self._on_change = on_change
        self._on_state = on_state
        self._file: AccessFile | None = None
        #: Why the file could not be used the last time; empty if it was.
        self._fault = ""
        self._verifier: JwtVerifier | None = None
        self._cleanup = AsyncExitStack()

    async def start(self) -> None:
        """Read the file and fetch the keys, and begin to check for changes.

        Does nothing if access is off. Raises `AccessUnusable`.
        """
        options = self._options
        if options.access == "off":
            return
        if options.file:
            self._file = AccessFile(Path(options.file), takes_tokens=options.access != "jwt")
            self.gate.adopt(await asyncio.to_thread(self._file.read))
        if options.access != "tokens":
            await self._start_verifier()
        checking = asyncio.create_task(self._keep_checking(), name="access")
        self._cleanup.push_async_callback(_cancel, checking)

    async def stop(self) -> None:
        """Stop checking. Safe to call twice, and after a failed `start`."""
        await self._cleanup.aclose()

    @property
    def keys_fault(self) -> str:
        """Return why the keys could not be fetched the last time; empty if they were."""
        return "" if self._verifier is None else self._verifier.fault

    async def _start_verifier(self) -> None:
        """Fetch the keys of JSON Web Tokens, and have the gate take them."""
        options = self._options
        try:
            verifier = await start_verifier(
                options.issuer, options.audience, options.keys, options.keys_wait_s
            )
        except KeysUnusable as error:
            raise AccessUnusable(f"access={options.access}: {error}") from error
        self._cleanup.push_async_callback(verifier.stop)
        self._verifier = verifier
        self.gate.use(verifier)

    async def _keep_checking(self) -> None:
        while True:
            await asyncio.sleep(_CHECK_EVERY_S)
            try:
                await self._check()
            except Exception:
                # Without this task, no token would ever be revoked again.
                log.exception("the check of access failed")

    async def _check(self) -> None:
        grants = None
        if self._file is not None:
            try:
                grants = await asyncio.to_thread(self._file.read_again)
            except AccessUnusable as error:
                self._on_state(False)
                if self._fault != (fault := str(error)):
                    self._fault = fault
                    log.error("the access file is not usable; earlier rules stay", reason=fault)
        if grants is not None:
            self._fault = ""
            self._on_state(True)
            for subject in self.gate.adopt(grants):
                self._audit.revoked(subject)
            self._audit.reloaded(len(grants.tokens), len(grants.revoked))
        if self.gate.has_ended() or grants is not None:
            self._on_change()


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
