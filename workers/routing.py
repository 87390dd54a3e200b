"""Which shard serves an inbox: a pure, stable function of its name."""

from zlib import crc32


def shard_of(username: str, shards: int) -> int:
    """The shard's number, 0 to `shards` - 1; the same in every process, unlike `hash()`."""
    return crc32(username.encode()) % shards
