"""Idempotency keys and receipts of one client are of no use to another."""

import json
from pathlib import Path
from typing import Final

import pytest

from chat_service.service import Service
from tests.conftest import StartService
from tests.support.access import bearer, everybody, write
from tests.support.raw import Answer, Wire, get, message, post, request, texts_of

KEY: Final = b"Idempotency-Key: 0123456789abcdef012345"
RECEIPT: Final = b"Prefer: receipt"
ANYBODY: Final = '[anonymous]\nsend = ["*"]\nread = ["*"]\n'


async def ask(service: Service, sent: bytes, address: str = "127.0.0.1") -> Answer:
    """Send a request from an address. Return the answer."""
    wire = Wire(service.port)
    answer = await (await wire.connect(address)).ask(sent)
    await wire.close()
    return answer


def batch(*headers: bytes) -> bytes:
    """Return a batch of two messages to bob."""
    items = [{"username": "bob", "text": "hi"}, {"username": "bob", "text": "hi"}]
    return request(b"POST", b"/chat/batch", *headers, body=json.dumps(items).encode())


async def test_another_subjects_key_stores_another_message(guarded: Service) -> None:
    mine = await ask(guarded, post(message("bob", "hi"), KEY, bearer("alice")))
    again = await ask(guarded, post(message("bob", "hi"), KEY, bearer("alice")))
    root = await ask(guarded, post(message("bob", "other"), KEY, RECEIPT, bearer("root")))
    assert again.document == mine.document
    assert root.status == 201
    assert root.document["id"] != mine.document["id"]
    assert "idempotent-replayed" not in root.headers


async def test_another_subjects_receipt_is_of_its_own_message(guarded: Service) -> None:
    mine = await ask(guarded, post(message("bob", "hi"), KEY, RECEIPT, bearer("alice")))
    theirs = await ask(guarded, post(message("bob", "hi"), KEY, RECEIPT, bearer("root")))
    receipt = f"X-Receipt: {theirs.headers['x-receipt']}".encode()
    path = f"/messages/{mine.document['id']}".encode()
    revoked = await ask(guarded, request(b"DELETE", path, receipt, bearer("root")))
    assert revoked.status == 404
    assert texts_of(await ask(guarded, get(b"/chat/bob", bearer("bob")))) == ["hi", "hi"]


async def test_another_subjects_key_reads_other_messages(guarded: Service) -> None:
    await ask(guarded, post(message("bob", "secret"), bearer("alice")))
    mine = await ask(guarded, get(b"/chat/bob", KEY, bearer("bob")))
    theirs = await ask(guarded, get(b"/chat/bob", KEY, bearer("root")))
    again = await ask(guarded, get(b"/chat/bob", KEY, bearer("bob")))
    assert [texts_of(each) for each in (mine, theirs, again)] == [["secret"], [], ["secret"]]


async def test_another_subjects_key_stores_another_batch(guarded: Service) -> None:
    answers = [await ask(guarded, batch(KEY, bearer(name))) for name in ("alice", "alice", "root")]
    ids = [[each["id"] for each in answer.document["results"]] for answer in answers]
    assert ids[0] == ids[1]
    assert not {*ids[0]} & {*ids[2]}


@pytest.fixture
def anonymous(access_file: Path) -> None:
    """The access file allows requests without a token everything."""
    write(access_file, ANYBODY + everybody())


@pytest.mark.usefixtures("anonymous")
async def test_anonymous_posts_share_keys_only_at_one_address(guarded: Service) -> None:
    sent = post(message("bob", "hi"), KEY, RECEIPT)
    mine = await ask(guarded, sent, "127.0.0.2")
    again = await ask(guarded, sent, "127.0.0.2")
    theirs = await ask(guarded, sent, "127.0.0.3")
    assert again.document == mine.document
    assert theirs.document["id"] != mine.document["id"]


@pytest.mark.usefixtures("anonymous")
async def test_an_anonymous_repeat_gets_no_receipt(guarded: Service) -> None:
    mine = await ask(guarded, post(message("bob", "hi"), KEY, RECEIPT))
    again = await ask(guarded, post(message("bob", "hi"), KEY, RECEIPT))
    assert "x-receipt" in mine.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert "x-receipt" not in again.headers
    assert "preference-applied" not in again.headers


@pytest.mark.usefixtures("anonymous")
async def test_an_anonymous_batch_gets_no_receipts_again(guarded: Service) -> None:
    mine, again = [await ask(guarded, batch(KEY, RECEIPT)) for _ in range(2)]
    assert [[*each] for each in mine.document["results"]] == [["id", "receipt"]] * 2
    assert [[*each] for each in again.document["results"]] == [["id"]] * 2


@pytest.mark.usefixtures("anonymous")
async def test_an_anonymous_reader_may_change_its_address(guarded: Service) -> None:
    await ask(guarded, post(message("bob", "hi")))
    mine = await ask(guarded, get(b"/chat/bob", KEY), "127.0.0.2")
    again = await ask(guarded, get(b"/chat/bob", KEY), "127.0.0.3")
    assert texts_of(mine) == texts_of(again) == ["hi"]


async def test_all_addresses_share_keys_without_access_control(
    start_service: StartService,
) -> None:
    service = await start_service()
    sent = post(message("bob", "hi"), KEY, RECEIPT)
    mine, again = await ask(service, sent, "127.0.0.2"), await ask(service, sent, "127.0.0.3")
    assert mine.document == again.document
    assert "x-receipt" in again.headers
