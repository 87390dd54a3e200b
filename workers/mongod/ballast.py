"""A file that reserves disk space, and that is deleted when the disk is full.

Other programs may fill the disk to its last byte. mongod then dies at its next checkpoint and
cannot restart. Deleting the ballast gives it the space that it needs to serve reads.
`workers.mongod.embedded` maintains the file.
"""

import os
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)

#: The size of the file in bytes, and its largest share of the disk (1/16).
SIZE_MAX = 64 << 20
_SHARE = 16


class Ballast:
    """The file `ballast` in a data directory."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / "ballast"

    def fit(self) -> None:
        """Delete the file if the disk is nearly full; create it if there is space."""
        try:
            disk = os.statvfs(self._path.parent)
            size = min(SIZE_MAX, disk.f_blocks * disk.f_frsize // _SHARE)
            free = disk.f_bavail * disk.f_frsize
            if self._path.exists():
                if free < size // 4:
                    self._path.unlink()
                    log.error("the ballast was dropped: the disk is full", freed=size, free=free)
            elif free > 4 * size:
                self._create(size)
        except OSError as error:
            # The ballast is useful, but not required.
            log.debug("the ballast was left unchanged", reason=str(error))

    def _create(self, size: int) -> None:
        with self._path.open("wb") as file:
            os.chmod(file.fileno(), 0o600)
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError:
                self._path.unlink()
                raise


def free_bytes(folder: Path) -> int | None:
    """Return the free bytes on a folder's disk, or None if they are unknown."""
    try:
        disk = os.statvfs(folder)
    except OSError:
        return None
    return disk.f_bavail * disk.f_frsize
