"""Leases that several processes share, and what a sender can do with a receipt."""

from tests.cli.conftest import Chat


def test_other_processes_acknowledge_release_and_extend(chat: Chat, name: str) -> None:
    chat("send", name, "--lines", stdin=b"one\ntwo\nthree\n")
    (lease,) = chat("lease", name, "--ttl", "1m").records
    ids = [message["id"] for message in lease["messages"]]
    assert [message["text"] for message in lease["messages"]] == ["one", "two", "three"]
    assert chat("count", name).records == [{"unread": 0}]
    assert chat("extend", name, lease["lease"], "--ttl", "10m").records == [{"ttl": 600.0}]
    assert chat("ack", name, lease["lease"], ids[0]).records == [{"acknowledged": 1}]
    assert chat("release", name, lease["lease"], ids[1]).records == [{"released": 1}]
    assert chat.texts(name) == ["two"]
    assert chat("ack", name, lease["lease"]).records == [{"acknowledged": 1}]
    assert chat("read", name).code == 1


def test_a_release_makes_messages_unread_later(chat: Chat, name: str) -> None:
    chat("send", name, "--lines", stdin=b"later\nsoon\n")
    (lease,) = chat("lease", name).records
    for message, delay in zip(lease["messages"], ("1h", "0.1s"), strict=True):
        released = chat("release", name, lease["lease"], message["id"], "--in", delay)
        assert released.records == [{"released": 1}]
    assert [each["text"] for each in chat("read", name, "--wait", "20s").records] == ["soon"]
    assert chat("ack", name, lease["lease"]).code == 1


def test_a_lease_that_has_ended_exits_with_1(chat: Chat, name: str) -> None:
    chat("send", name, "x")
    (lease,) = chat("lease", name).records
    chat("ack", name, lease["lease"])
    for command in ("release", "extend --ttl 1m"):
        late = chat(*command.split(), name, lease["lease"])
        assert (late.code, late.out) == (1, "")
        assert "the lease has ended" in late.err
    chat("send", name, "x")
    assert chat("lease", name, "--ttl", "0.1").code == 0
    assert chat("lease", name, "--wait", "10s").code == 0


def test_an_acknowledgement_names_lost_messages(chat: Chat, name: str) -> None:
    chat("send", name, "--lines", stdin=b"one\ntwo\n")
    (lease,) = chat("lease", name).records
    first, second = (message["id"] for message in lease["messages"])
    assert chat("release", name, lease["lease"], second).code == 0
    late = chat("ack", name, lease["lease"], first, second)
    assert (late.code, late.out) == (1, "")
    assert late.err == f"chat: the lease of these messages had ended: {second}; 1 acknowledged\n"


def test_a_lease_of_an_empty_inbox_exits_with_1(chat: Chat, name: str) -> None:
    nothing = chat("lease", name, "--wait", "0.1s")
    assert (nothing.code, nothing.out) == (1, "")


def test_a_sender_queries_and_revokes_its_messages(chat: Chat, name: str) -> None:
    kept, taken = (chat("send", name, text, "--receipt").records[0] for text in "ab")
    pending = {"id": kept["id"], "status": "pending", "at": None}
    assert chat("status", kept["id"], kept["receipt"]).records == [pending]
    assert chat("revoke", taken["id"], taken["receipt"]).code == 0
    assert chat.texts(name) == ["a"]
    (read,) = chat("status", kept["id"], kept["receipt"]).records
    assert (read["status"], read["at"][:2]) == ("read", "20")
    late = chat("revoke", kept["id"], kept["receipt"])
    assert (late.code, late.err) == (1, "chat: too late: the message is read\n")


def test_a_receipt_may_look_like_an_option(chat: Chat) -> None:
    for command in ("status", "revoke"):
        refused = chat(command, "01a21188198a0000fc0036e2bba73123", "-wrong--help")
        assert refused.code == 2
        assert "this receipt" in refused.err
