"""A client for a chat inbox over HTTP."""

from chat_inbox.version import __version__ as __version__
