"""Handlers: a request in, a response out. They validate, ask the pool, and render; no more."""
