"""A client of the service for programs in Python's asyncio; it needs Tornado and nothing of ours.

```python
async with ChatClient("http://127.0.0.1:8080") as chat:
    await chat.post("bob", "lunch?")
    for message in await chat.wait("bob", 60):
        print(message.text)
    async with await chat.lease("bob") as lease:   # acknowledged, or given back if this raises
        work(lease.messages)
    async with chat.stream("bob") as messages:     # over restarts of the service, too
        async for message in messages:             # acknowledged when the next one is asked for
            print(message.text)
```

Everything that can be asked again safely is, a bounded number of times, when a connection breaks or
the service is away. docs/api.md is what it relies on. Used by the tests and by whoever likes.
"""

from chat_service.client.chat import ChatClient, Draft, Posted, Status
from chat_service.client.errors import (
    ChatError,
    FieldError,
    LeaseOver,
    OutcomeUnknown,
    ProblemError,
    ServiceUnavailable,
)
from chat_service.client.lease import Lease
from chat_service.client.message import Message
from chat_service.client.stream import Stream

__all__ = [
    "ChatClient",
    "ChatError",
    "Draft",
    "FieldError",
    "Lease",
    "LeaseOver",
    "Message",
    "OutcomeUnknown",
    "Posted",
    "ProblemError",
    "ServiceUnavailable",
    "Status",
    "Stream",
]
