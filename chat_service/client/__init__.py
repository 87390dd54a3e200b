"""An asyncio client for the service. It needs Tornado, and no other package of this project.

```python
async with ChatClient("http://127.0.0.1:8080") as chat:
    await chat.post("bob", "lunch?")
    for message in await chat.wait("bob", 60):
        print(message.text)
    async with await chat.lease("bob") as lease:   # acknowledges, or releases if this raises
        work(lease.messages)
    async with chat.stream("bob") as messages:     # reconnects when the service restarts
        async for message in messages:             # acknowledged when the next one is requested
            print(message.text)
```

When a connection breaks or the service is unavailable, the client retries every request that is
safe to repeat, a bounded number of times. It relies on docs/api.md only.
"""

from chat_service.client.chat import ChatClient, Draft, Posted, Status
from chat_service.client.errors import (
    ChatError,
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
from chat_service.client.lease import Lease
from chat_service.client.message import Message
from chat_service.client.stream import Stream

__all__ = [
    "ChatClient",
    "ChatError",
    "Draft",
    "FieldError",
    "Forbidden",
    "InboxFull",
    "Lease",
    "LeaseOver",
    "Message",
    "OutcomeUnknown",
    "Posted",
    "ProblemError",
    "RateLimited",
    "ServiceUnavailable",
    "Status",
    "Stream",
    "TokenUnavailable",
    "Unauthorized",
]
