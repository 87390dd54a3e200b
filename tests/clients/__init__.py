"""Clients from other projects: curl, a browser, Prometheus, and proxies in between."""
