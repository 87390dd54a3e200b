"""The engine: a pool of shards over a store. It knows nothing of HTTP or of the environment.

A request takes this path: `WorkerPool` -> `ShardQueue` -> `Shard` -> `Store`. Its result comes back
through a single future.
"""
