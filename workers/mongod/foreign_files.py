"""Finds large files in a data directory that neither mongod nor the service made.

Core dumps and copies fill the disk, and nobody misses them. Every other file there is needed. Used
by `chat doctor`.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

#: Smaller files are not worth a word, in bytes.
LARGE_BYTES = 10 << 20
#: The names in the directory that belong to MongoDB, and those of the service. docs/operations.md
#: has a `find` with the large ones.
_OURS = re.compile(
    r"(WiredTiger|_mdb_catalog|sizeStorer|collection-|index-|storage\.bson|mongod\.(lock|log|sock)"
    r"|journal|_tmp|diagnostic\.data|rollback|ballast|lock$|socket-place).*"
)


class ForeignFile(NamedTuple):
    """A file of somebody else, and the bytes that it takes on the disk."""

    path: Path
    size: int


def large_foreign_files(data_dir: Path) -> list[ForeignFile]:
    """Return the files of `LARGE_BYTES` or more that belong to others, the largest first."""
    found = (each for each in _foreign_files(data_dir) if each.size >= LARGE_BYTES)
    return sorted(found, key=lambda each: each.size, reverse=True)


def _foreign_files(data_dir: Path) -> Iterator[ForeignFile]:
    # Directories that may not be read are left out.
    for folder, folders, names in os.walk(data_dir):
        is_top = Path(folder) == data_dir
        if is_top:
            folders[:] = [each for each in folders if not _OURS.fullmatch(each)]
        for name in names:
            if is_top and _OURS.fullmatch(name):
                continue
            path = Path(folder, name)
            try:
                size = os.lstat(path).st_blocks * 512
            except FileNotFoundError:
                continue
            yield ForeignFile(path, size)
