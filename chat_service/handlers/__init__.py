"""Handlers validate a request, pass a command to the pool, and render the response."""
