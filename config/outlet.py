"""Writes to stdout and stderr from threads, so that a stalled reader never blocks the event loop.

`write(2)` blocks on a pipe that is not read, on a stopped terminal, and on a disk that hangs. An
`Outlet` queues its data and returns at once, and its thread does the writing. Data that does not
fit into the queue is dropped and counted. Used by `config.log` and
`chat_service.cli.commands.serve`.
"""

import io
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable

#: Size of the queue, in bytes.
QUEUE_BYTES_MAX = 1 << 20
#: Writes of up to this many bytes to a pipe are not interleaved with those of other processes.
_ATOMIC_BYTES = select.PIPE_BUF
#: Time to write the queued data at exit, in seconds.
FLUSH_S = 1.0


class Outlet:
    """A queue of bytes and the daemon thread that writes them to one file descriptor."""

    def __init__(self, descriptor: int, on_drained: Callable[[int], None] | None = None) -> None:
        """Write to `descriptor`.

        After lines were dropped, `on_drained` is called with their number, on the outlet's thread,
        as soon as the reader takes data again.
        """
        self._descriptor = descriptor
        self._on_drained = on_drained
        self._queue: deque[bytes] = deque()
        self._bytes = 0
        self._is_writing = False
        self._unreported = 0
        self._changed = threading.Condition()
        #: Number of lines dropped so far, because the queue was full or a write failed.
        self.dropped = 0
        threading.Thread(target=self._run, name=f"outlet-{descriptor}", daemon=True).start()

    def write(self, data: bytes) -> None:
        """Queue lines, or drop and count them if the queue is full. Never blocks."""
        with self._changed:
            if self._bytes + len(data) > QUEUE_BYTES_MAX:
                self._drop(data)
                return
            self._queue.append(data)
            self._bytes += len(data)
            self._changed.notify_all()

    def flush(self, within_s: float = FLUSH_S) -> bool:
        """Wait until the queue is written. Return False if that takes longer than `within_s`."""
        deadline = time.monotonic() + within_s
        with self._changed:
            while self._queue or self._is_writing:
                if not self._changed.wait(max(deadline - time.monotonic(), 0)):
                    return False
        return True

    def _run(self) -> None:
        while True:
            with self._changed:
                self._is_writing = False
                self._changed.notify_all()
                while not self._queue:
                    self._changed.wait()
                self._is_writing = True
                data = self._take()
            try:
                self._write(data)
            except OSError:
                # The reader has exited or the disk is full. Later lines may succeed.
                with self._changed:
                    self._drop(data)
            else:
                self._report_dropped()

    def _take(self) -> bytes:
        """Take from the queue as many lines as one atomic write can hold, but at least one item."""
        data = self._queue.popleft()
        while self._queue and len(data) + len(self._queue[0]) <= _ATOMIC_BYTES:
            data += self._queue.popleft()
        self._bytes -= len(data)
        return data

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:
                # Another process has made the shared pipe non-blocking.
                poll = select.poll()
                poll.register(self._descriptor, select.POLLOUT)
                poll.poll()

    def _drop(self, data: bytes) -> None:
        lines = data.count(b"\n") or 1
        self.dropped += lines
        self._unreported += lines

    def _report_dropped(self) -> None:
        """Report the number of dropped lines once half of the queue is free."""
        if not self._unreported or self._bytes > QUEUE_BYTES_MAX // 2:
            return
        with self._changed:
            lines, self._unreported = self._unreported, 0
        if self._on_drained is not None:
            self._on_drained(lines)


class _Raw(io.RawIOBase):
    """The binary file below a text stream. Flushing it does not block."""

    name = ""

    def __init__(self, outlet: Outlet, descriptor: int) -> None:
        self._outlet = outlet
        self._descriptor = descriptor

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, data: object) -> int:
        written = bytes(data)  # type: ignore[call-overload]
        self._outlet.write(written)
        return len(written)


def stream_of(outlet: Outlet, descriptor: int) -> io.TextIOWrapper:
    """Return a text stream that can replace `sys.stdout` or `sys.stderr`."""
    return io.TextIOWrapper(
        _Raw(outlet, descriptor),
        encoding="utf-8",
        errors="backslashreplace",
        line_buffering=True,
    )


def hold_standard_descriptors() -> None:
    """Open the null device in place of each closed standard stream.

    Otherwise a socket could get its descriptor, and log lines would be sent to a client.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # This is the lowest free descriptor, so it is the one that is assigned.
            os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(descriptor, True)
