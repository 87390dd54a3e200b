"""TLS on the service's own ports: the certificate, which may change while the service runs.

`chat_service.server.handshake` makes a `TlsSocket` of each accepted connection. The rest of
`chat_service.server` reads and writes it like a plain socket. Made by `chat_service.service`.
"""

import asyncio
import errno
import os
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

log = structlog.get_logger(__name__)

#: How often the files are checked, in seconds. They are read once they are the same in two checks.
_CHECK_EVERY_S = 1.0


#: A record has at most so many bytes of data.
_RECORD_BYTES = 16 << 10


class TlsUnusable(Exception):
    """Raised if the certificate or its key cannot be used. The message says why."""


class TlsSocket(ssl.SSLSocket):
    """A non-blocking TLS connection that raises what a plain socket would raise."""

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        """Return the data of at most one record; otherwise like `recv_into`."""
        with _errors_of_a_socket():
            return super().recv(_RECORD_BYTES)

    def recv_into(
        self, buffer: "WriteableBuffer", nbytes: int | None = None, flags: int = 0
    ) -> int:
        """Fill the buffer from at most one record, however few bytes are asked for.

        With room for 16 KiB, nothing is left that was decrypted already: the event loop watches the
        file descriptor, and would not see it. Return 0 at the end. After `shutdown`, read what
        arrives without decrypting it.
        """
        with _errors_of_a_socket():
            return super().recv_into(buffer)

    def send(self, data: Any, flags: int = 0) -> int:
        """Write what the kernel takes. After `BlockingIOError`, the same data must be repeated."""
        try:
            return super().send(data, flags)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise BlockingIOError from None
        except ssl.SSLError as error:
            raise BrokenPipeError(errno.EPIPE, str(error)) from error

    def shutdown(self, how: int) -> None:
        """Tell the client that no data follows, which nobody can forge, and end the connection."""
        with suppress(OSError, ValueError):
            # It does not wait for the client's answer.
            self.unwrap()
        super().shutdown(how)


@contextmanager
def _errors_of_a_socket() -> Iterator[None]:
    """Raise what a plain socket raises when it is read."""
    try:
        yield
    except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
        raise BlockingIOError from None
    except ssl.SSLError as error:
        # What arrived is not TLS, or was changed on its way.
        raise ConnectionResetError(errno.ECONNRESET, str(error)) from error


class Files(NamedTuple):
    """The PEM files of a certificate with its chain, and of its private key."""

    certificate: str
    key: str

    def state(self) -> tuple[object, ...]:
        """Return a value that changes with the files."""
        return tuple(_state_of(each) for each in self)


def load_context(files: Files) -> ssl.SSLContext:
    """Return a server's context, for TLS 1.2 and newer. Raises `TlsUnusable`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sslsocket_class = TlsSocket
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    for name, path in (("tls_certificate", files.certificate), ("tls_key", files.key)):
        try:
            with open(path, "rb"):
                pass
        except OSError as error:
            raise TlsUnusable(f"{name}: {path} cannot be read: {error.strerror}") from error
    try:
        context.load_cert_chain(files.certificate, files.key, password=_refuse_password)
    except ssl.SSLError as error:
        reason = (
            "it is not the key of the certificate"
            if error.reason == "KEY_VALUES_MISMATCH"
            else f"they are not a certificate and its key in PEM ({error.reason or error})"
        )
        raise TlsUnusable(
            f"tls_certificate {files.certificate} and tls_key {files.key}: {reason}"
        ) from error
    return context


def end_of(files: Files) -> float | None:
    """Return when the certificate expires, in seconds since 1970.

    Return None if a client would refuse it: because it has expired, is not valid yet, or is not
    one of a server. Raises `TlsUnusable`.
    """
    server_context = load_context(files)
    client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_context.check_hostname = False
    # Only the certificate itself is judged, and not who issued it.
    client_context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    client_context.load_verify_locations(files.certificate)
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server)
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(_FLIGHTS):
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLError:
                return None
    certificate = client.getpeercert()
    assert certificate is not None
    return float(ssl.cert_time_to_seconds(str(certificate["notAfter"])))


#: More than the messages of a handshake that each side sends.
_FLIGHTS = 4


class Tls:
    """The context of new connections. Those that exist keep the one that they began with."""

    def __init__(self, files: Files, on_loaded: Callable[[bool, float | None], None]) -> None:
        """Raises `TlsUnusable`.

        `on_loaded` is called with whether the files could be used, and when the certificate that is
        in use expires (in seconds since 1970, None if it is not valid).
        """
        self._files = files
        self._on_loaded = on_loaded
        self._read = self._seen = files.state()
        self.context = load_context(files)
        self._expires_at = end_of(files)
        self._report(is_current=True)

    async def watch(self) -> None:
        """Load the files again each time they have changed. Runs until it is cancelled.

        A certificate and key that cannot be used leave those in place that are in use.
        """
        while True:
            await asyncio.sleep(_CHECK_EVERY_S)
            self.check()

    def check(self) -> None:
        """Look at the files once. Load them if they changed, and have not changed since."""
        seen, before = self._files.state(), self._seen
        self._seen = seen
        # Two files are never replaced in the same moment.
        if seen != before or seen == self._read:
            return
        self._read = seen
        try:
            context, expires_at = load_context(self._files), end_of(self._files)
        except TlsUnusable as error:
            log.error("the new certificate cannot be used; the old one stays", reason=str(error))
            self._on_loaded(False, self._expires_at)
            return
        self.context, self._expires_at = context, expires_at
        log.info("the certificate was loaded again")
        self._report(is_current=True)

    def _report(self, is_current: bool) -> None:
        if self._expires_at is None or self._expires_at < time.time():
            log.warning(
                "clients will refuse the certificate: it has expired, is not valid yet, or is not "
                "a server's",
                certificate=self._files.certificate,
            )
        self._on_loaded(is_current, self._expires_at)


def _state_of(path: str) -> object:
    try:
        found = os.stat(path)
    except OSError as error:
        return error.errno
    return found.st_mtime_ns, found.st_size, found.st_ino, found.st_dev


def _refuse_password() -> str:
    """Called for an encrypted key. OpenSSL would ask for the password on the terminal."""
    raise TlsUnusable("tls_key: the key is encrypted; store it without a password")
