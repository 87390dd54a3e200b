"""Places an inbox: its shard in this process, and its route in the database.

Both are pure, stable functions of the username.
"""

from zlib import crc32

#: Routes are 0 to this number.
ROUTE_MAX = 0xFFFF


def shard_of(username: str, shards: int) -> int:
    """Return the shard's number, 0 to `shards` - 1: the same in every process, unlike `hash()`."""
    return crc32(username.encode()) % shards if shards > 1 else 0


def route_of(username: str) -> int:
    """Return the route of an inbox, 0 to `ROUTE_MAX`.

    It is stored in each message and is part of the message's id, so it never changes.
    """
    return crc32(username.encode()) >> 16
