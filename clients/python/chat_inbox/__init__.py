"""A client for a chat inbox over HTTP, for asyncio and for threads.

```python
with SyncChatClient("http://127.0.0.1:8080") as chat:
    chat.post("bob", "lunch?")
    for message in chat.wait("bob", 60):
        print(message.text)
    chat.post("jobs", "resize", timeout_s=3600)
    with chat.lease("jobs", limit=1) as lease:  # extended while the block runs
        for message in lease:
            work(message.text)                 # acknowledged at the end, released if this raises
    for message in chat.stream("bob"):         # reconnects when the service restarts
        print(message.text)                    # acknowledged when the next one is requested
```

`ChatClient` has the same methods for asyncio. When a connection breaks or the service is
unavailable, the clients retry every request that is safe to repeat, a bounded number of times.
"""

from chat_inbox.asynchronous import ChatClient, Lease, LeaseRequest, Stream
from chat_inbox.calls import COUNT_MAX
from chat_inbox.credentials import AsyncTokenSource, PlainHttpRefused, TokenSource
from chat_inbox.errors import (
    ChatError,
    ClientClosed,
    FieldError,
    Forbidden,
    InboxFull,
    LeaseOver,
    OutcomeUnknown,
    ProblemError,
    RateLimited,
    ServiceUnavailable,
    TokenUnavailable,
    Unauthorized,
)
from chat_inbox.messages import (
    Delivered,
    Draft,
    Message,
    MessageStatus,
    Origin,
    Posted,
    Status,
)
from chat_inbox.synchronous import SyncChatClient, SyncLease, SyncStream
from chat_inbox.version import __version__

__all__ = [
    "COUNT_MAX",
    "AsyncTokenSource",
    "ChatClient",
    "ChatError",
    "ClientClosed",
    "Delivered",
    "Draft",
    "FieldError",
    "Forbidden",
    "InboxFull",
    "Lease",
    "LeaseOver",
    "LeaseRequest",
    "Message",
    "MessageStatus",
    "Origin",
    "OutcomeUnknown",
    "PlainHttpRefused",
    "Posted",
    "ProblemError",
    "RateLimited",
    "ServiceUnavailable",
    "Status",
    "Stream",
    "SyncChatClient",
    "SyncLease",
    "SyncStream",
    "TokenSource",
    "TokenUnavailable",
    "Unauthorized",
    "__version__",
]
