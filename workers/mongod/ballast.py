"""A file that only takes room, so that room can be made at once when the disk is full.

Others may fill the disk to its last byte. mongod then dies at its next checkpoint and cannot start
again. Without the ballast it has what it needs to let messages be read. Kept by
`workers.mongod.embedded`.
"""

import os
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)

#: Its size, and the part of the disk that this is at most.
SIZE_MAX = 64 << 20
_SHARE = 16


class Ballast:
    """The file `ballast` of one data directory."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / "ballast"

    def fit(self) -> None:
        """Drop it when the disk is nearly full; lay it down when there is room."""
        try:
            disk = os.statvfs(self._path.parent)
            size = min(SIZE_MAX, disk.f_blocks * disk.f_frsize // _SHARE)
            free = disk.f_bavail * disk.f_frsize
            if self._path.exists():
                if free < size // 4:
                    self._path.unlink()
                    log.error("the disk is full; the ballast was dropped", freed=size, free=free)
            elif free > 4 * size:
                self._lay_down(size)
        except OSError as error:
            # It helps, but nothing needs it.
            log.debug("the ballast was left as it is", reason=str(error))

    def _lay_down(self, size: int) -> None:
        with self._path.open("wb") as file:
            os.chmod(file.fileno(), 0o600)
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError:
                self._path.unlink()
                raise


def free_bytes(folder: Path) -> int | None:
    """Say how many bytes are free on the disk of a folder; None where that is not known."""
    try:
        disk = os.statvfs(folder)
    except OSError:
        return None
    return disk.f_bavail * disk.f_frsize
