"""The HTTP front end: takes requests, hands them to the pool, answers. Never touches MongoDB."""

__version__ = "0.1.0"
