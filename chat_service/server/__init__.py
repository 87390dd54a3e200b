"""The sockets: the listener, the fast path, Tornado's exchanges, the access log."""
