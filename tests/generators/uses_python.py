"""Uses a client that openapi-python-client made, as its users would.

test_generated_clients.py checks the types with mypy, and runs it: `uses_python.py BASE TOKEN`.
"""

import sys
from http import HTTPStatus
from io import BytesIO

from chat_api import AuthenticatedClient
from chat_api.api.inbox import (
    count_unread,
    post_batch,
    post_message,
    post_text,
    read_inbox_by_post,
)
from chat_api.api.leases import acknowledge_lease, lease_messages
from chat_api.api.receipts import message_status, revoke_message
from chat_api.models import (
    Acknowledgement,
    BatchPosted,
    BatchRefused,
    BatchResults,
    Fate,
    Leased,
    LeasedMessages,
    NewMessage,
    NewMessageToInbox,
    Posted,
    Problem,
    Status,
)
from chat_api.types import File


def posted(client: AuthenticatedClient, message: NewMessage) -> tuple[str, str]:
    """Post a message and return its id and its receipt."""
    answer = post_message.sync_detailed(client=client, body=message, prefer="receipt")
    assert answer.status_code == HTTPStatus.CREATED
    assert isinstance(answer.parsed, Posted)
    return answer.parsed.id, answer.headers["X-Receipt"]


def status_of(client: AuthenticatedClient, message: str, receipt: str) -> Fate:
    """Return what became of a message."""
    fate = message_status.sync(message, client=client, x_receipt=receipt)
    assert isinstance(fate, Fate)
    return fate


def post_and_read(client: AuthenticatedClient) -> None:
    """Post one message and a batch, and read them."""
    message, receipt = posted(client, NewMessage(text="lunch?", username="bob"))
    assert status_of(client, message, receipt).status is Status.PENDING
    batch = [
        NewMessage(text="at noon?", username="bob", timeout=3600),
        NewMessage(text="nobody", username=""),
    ]
    found = post_batch.sync(client=client, body=batch)
    assert isinstance(found, BatchResults)
    good, bad = found.results
    assert isinstance(good, BatchPosted)
    assert isinstance(bad, BatchRefused)
    assert bad.error.errors
    assert bad.error.errors[0].field == "username"
    counted = count_unread.sync_detailed("bob", client=client)
    assert counted.headers["X-Unread-Count"] == "2"
    messages = read_inbox_by_post.sync("bob", client=client, wait=1.5, limit=10)
    assert isinstance(messages, list)
    assert [(each.text, each.id) for each in messages] == [
        ("lunch?", message),
        ("at noon?", good.id),
    ]
    fate = status_of(client, message, receipt)
    assert fate.status is Status.READ
    assert fate.at is not None
    assert fate.at.tzinfo is not None


def post_texts(client: AuthenticatedClient) -> None:
    """Post a text as it is, and in an object."""
    plain = post_text.sync("ops", client=client, body=File(BytesIO(b"Backup ok")), timeout=60)
    assert isinstance(plain, Posted)
    said = post_text.sync("ops", client=client, body=NewMessageToInbox(text="42 files"))
    assert isinstance(said, Posted)
    messages = read_inbox_by_post.sync("ops", client=client)
    assert isinstance(messages, list)
    assert [each.text for each in messages] == ["Backup ok", "42 files"]


def post_for_later(client: AuthenticatedClient) -> None:
    """Post scheduled messages: one is read when it is due, the other one is revoked before."""
    soon, receipt = posted(client, NewMessage(text="soon", username="later", delay=0.5))
    text = File(BytesIO(b"in an hour"))
    answer = post_text.sync_detailed(
        "later", client=client, body=text, delay=3600, prefer="receipt"
    )
    assert isinstance(answer.parsed, Posted)
    fate = status_of(client, answer.parsed.id, answer.headers["X-Receipt"])
    assert fate.status is Status.SCHEDULED
    assert fate.at is not None
    key = answer.headers["X-Receipt"]
    assert revoke_message.sync(answer.parsed.id, client=client, x_receipt=key) is None
    messages = read_inbox_by_post.sync("later", client=client, wait=20)
    assert isinstance(messages, list)
    assert [each.id for each in messages] == [soon]
    assert status_of(client, soon, receipt).status is Status.READ


def lease_and_acknowledge(client: AuthenticatedClient) -> None:
    """Lease a message and acknowledge it, once with a lease that there is not."""
    posted(client, NewMessage(text="job", username="worker"))
    leased = lease_messages.sync("worker", client=client, ttl=20)
    assert isinstance(leased, Leased)
    assert leased.lease is not None
    assert [(each.text, each.deliveries) for each in leased.messages] == [("job", 1)]
    lost = acknowledge_lease.sync("worker", client=client, body=LeasedMessages(lease="f" * 32))
    assert isinstance(lost, Problem)
    assert (lost.type_, lost.status) == ("urn:chat:problem:lease-over", 410)
    done = acknowledge_lease.sync("worker", client=client, body=LeasedMessages(lease=leased.lease))
    assert isinstance(done, Acknowledgement)
    assert done.acknowledged == 1


def be_refused(client: AuthenticatedClient) -> None:
    """Read typed problems: of a field, of a full inbox, and of a message that was read."""
    wrong = NewMessage(text="x", username="bob", timeout=0)
    problem = post_message.sync(client=client, body=wrong)
    assert isinstance(problem, Problem)
    assert problem.errors
    assert problem.errors[0].field == "timeout"
    for _ in range(50):
        full = post_message.sync(client=client, body=NewMessage(text="x", username="full"))
        if isinstance(full, Problem):
            assert (full.type_, full.stored) == ("urn:chat:problem:inbox-full", False)
            break
    else:
        raise AssertionError("the inbox is never full")
    message, receipt = posted(client, NewMessage(text="x", username="eve"))
    read_inbox_by_post.sync("eve", client=client)
    late = revoke_message.sync(message, client=client, x_receipt=receipt)
    assert isinstance(late, Problem)
    assert late.fate is Status.READ


def main(base: str, token: str) -> None:
    """Use the service at this address. A service without access control ignores the token."""
    with AuthenticatedClient(base_url=base, token=token) as client:
        post_and_read(client)
        post_texts(client)
        post_for_later(client)
        lease_and_acknowledge(client)
        be_refused(client)


if __name__ == "__main__":
    main(*sys.argv[1:])
