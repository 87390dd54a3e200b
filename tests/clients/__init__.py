"""Clients that nobody here wrote: curl, a browser, and proxies in between."""
