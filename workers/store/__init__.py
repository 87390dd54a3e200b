"""Persistence: the interface that shards use, and its implementation on MongoDB."""
