"""The engine: a pool of shard workers over a store. Knows nothing of HTTP or of the environment.

The way of a request: `WorkerPool` -> `ShardQueue` -> `Shard` -> `Store`, and back through one
future.
"""
