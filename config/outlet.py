"""Writes to stdout and stderr from a thread, so that a reader that stalls never stops the loop.

A pipe that nobody reads, a terminal that is stopped and a disk that hangs all block `write(2)`.
An `Outlet` queues what it is given and returns at once; its own thread does the waiting. What does
not fit into the queue is dropped and counted. Used by `config.log` and
`chat_service.cli.commands.serve`.
"""

import io
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable

#: Bytes that one outlet holds for its reader.
QUEUE_BYTES_MAX = 1 << 20
#: Writes of at most so many bytes to a pipe are never mixed with those of another process.
_ATOMIC_BYTES = select.PIPE_BUF
#: At exit, the reader gets so long to take what is queued, in seconds.
SETTLE_S = 1.0


class Outlet:
    """A queue of bytes and the daemon thread that writes them to one file descriptor."""

    def __init__(self, descriptor: int, on_drained: Callable[[int], None] | None = None) -> None:
        """Write to `descriptor`; `on_drained` is told how many lines were dropped before.

        It is called in the thread, once the reader takes lines again.
        """
        self._descriptor = descriptor
        self._on_drained = on_drained
        self._queue: deque[bytes] = deque()
        self._bytes = 0
        self._is_writing = False
        self._untold = 0
        self._changed = threading.Condition()
        #: Lines dropped so far, since the queue was full or the reader was gone.
        self.dropped = 0
        threading.Thread(target=self._run, name=f"outlet-{descriptor}", daemon=True).start()

    def write(self, data: bytes) -> None:
        """Queue some lines, or drop and count them where the queue is full. Never waits."""
        with self._changed:
            if self._bytes + len(data) > QUEUE_BYTES_MAX:
                self._drop(data)
                return
            self._queue.append(data)
            self._bytes += len(data)
            self._changed.notify_all()

    def settle(self, within_s: float = SETTLE_S) -> bool:
        """Wait until all is written; False if that takes longer than `within_s`."""
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
                # The reader has gone, or the disk is full: later lines may get through.
                with self._changed:
                    self._drop(data)
            else:
                self._tell_drained()

    def _take(self) -> bytes:
        """Take as many lines as make one write that is not mixed with those of others."""
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
                # Another process has made the pipe that we share non-blocking.
                poll = select.poll()
                poll.register(self._descriptor, select.POLLOUT)
                poll.poll()

    def _drop(self, data: bytes) -> None:
        lines = data.count(b"\n") or 1
        self.dropped += lines
        self._untold += lines

    def _tell_drained(self) -> None:
        """Say how many lines are missing, once there is room for that."""
        if not self._untold or self._bytes > QUEUE_BYTES_MAX // 2:
            return
        with self._changed:
            lines, self._untold = self._untold, 0
        if self._on_drained is not None:
            self._on_drained(lines)


class _Raw(io.RawIOBase):
    """The file that a text stream writes to. Flushing it does not wait."""

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
    """Make a text stream that can take the place of `sys.stdout` or `sys.stderr`."""
    return io.TextIOWrapper(
        _Raw(outlet, descriptor),
        encoding="utf-8",
        errors="backslashreplace",
        line_buffering=True,
    )


def hold_standard_descriptors() -> None:
    """Open the null device for each of stdin, stdout and stderr that is closed.

    Otherwise the first socket would get its number, and log lines would be sent to a client.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest number that is free is this one.
            os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(descriptor, True)
