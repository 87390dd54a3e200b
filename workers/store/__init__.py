"""Persistence: what shards need of it, MongoDB, and a private mongod where none is named."""
