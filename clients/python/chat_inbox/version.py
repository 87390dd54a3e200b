"""The version of this package, which is the version of the service that it is released with."""

__version__ = "0.1.0"
