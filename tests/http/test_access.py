"""Only holders of tokens get what their rights allow, on the fast path and on Tornado's."""

import json
from pathlib import Path
from typing import Final

import pytest

from chat_service.service import Service
from tests.conftest import StartService
from tests.http.test_fast_path import raw_answers
from tests.support.access import PATHS, TOKENS, ask, bearer, everybody, read, send, write
from tests.support.cases import each_case
from tests.support.raw import assert_problem, get, post, request, texts_of


async def test_holders_post_and_read_what_is_theirs(guarded: Service, path: bytes) -> None:
    assert (await ask(guarded, send("bob", bearer("alice"), path))).status == 201
    assert texts_of(await ask(guarded, read("bob", bearer("bob"), path))) == ["hi"]


@each_case({"a read": read("bob"), "a post": send("bob"), "a post to nobody": post(b"{}")})
async def test_no_token_is_refused(sent: bytes, guarded: Service, path: bytes) -> None:
    answer = await ask(guarded, sent.replace(b"\r\n", b"\r\n" + path + b"\r\n", 1))
    assert_problem(answer, 401, "unauthorized")
    assert answer.headers["www-authenticate"] == "Bearer"


INVALID: Final = {
    "an unknown token": bearer("nobody"),
    "a part of a token": bearer("bob")[:-1],
    "another scheme": b"Authorization: Basic Ym9iOmJvYg==",
    "no scheme": f"Authorization: {TOKENS['bob']}".encode(),
    "nothing": b"Authorization:",
    "two tokens in one header": bearer("bob") + b", " + bearer("bob"),
    "a long token": b"Authorization: Bearer " + b"x" * 5000,
}


@each_case(INVALID)
async def test_an_invalid_token_is_refused(header: bytes, guarded: Service, path: bytes) -> None:
    for sent in (read("bob", header, path), send("bob", header, path)):
        answer = await ask(guarded, sent)
        assert_problem(answer, 401, "unauthorized")
        assert answer.headers["www-authenticate"] == 'Bearer error="invalid_token"'


@each_case(
    {
        "another's inbox": read("alice", bearer("bob")),
        "another's inbox in escapes": read("%61lice", bearer("bob")),
        "a wait": read("alice", bearer("bob"), query="?wait=1"),
        "an inbox that does not exist": read("no-such", bearer("bob")),
        "an invalid limit": read("alice", bearer("bob"), query="?limit=0"),
        "a name out of reach": send("bob", bearer("eve")),
        "a post with a key": send("bob", bearer("eve"), b"Idempotency-Key: k"),
        "a post for a receipt": send("bob", bearer("eve"), b"Prefer: receipt"),
        "no right at all": send("bob", bearer("idle")),
        "no right and an invalid body": post(b"{", bearer("idle")),
    }
)
async def test_a_missing_right_is_refused(sent: bytes, guarded: Service, path: bytes) -> None:
    answer = await ask(guarded, sent.replace(b"\r\n", b"\r\n" + path + b"\r\n", 1))
    assert_problem(answer, 403, "forbidden")
    assert answer.headers["www-authenticate"] == 'Bearer error="insufficient_scope"'


async def test_refused_requests_change_nothing(guarded: Service, path: bytes) -> None:
    await ask(guarded, send("bob", bearer("alice")))
    for header in (b"X: 1", bearer("eve"), bearer("nobody")):
        await ask(guarded, read("bob", header, path))
        await ask(guarded, send("bob", header, path))
    assert texts_of(await ask(guarded, read("bob", bearer("bob"), path))) == ["hi"]


async def test_two_authorization_headers_are_refused(guarded: Service, path: bytes) -> None:
    answer = await ask(guarded, read("bob", bearer("bob"), bearer("bob"), path))
    assert_problem(answer, 400, "bad-request")


@pytest.mark.parametrize("target", ["/chat/bob", "/", "/livez", "/openapi.json", "/session"])
@pytest.mark.parametrize("name", ["access_token", "token", "ACCESS_TOKEN", "x"])
async def test_a_token_in_the_query_is_refused(
    target: str, name: str, guarded: Service, path: bytes
) -> None:
    query = f"{target}?{name}={TOKENS['bob']}".encode()
    answer = await ask(guarded, get(query, bearer("bob"), path))
    assert_problem(answer, 400, "bad-request")
    assert TOKENS["bob"].encode() not in answer.body


NAMES: Final = {"team-a": 200, "team%2Da": 200, "Team-a": 403, "team": 403, "team%252Da": 403}


@pytest.mark.parametrize(("name", "status"), NAMES.items())
async def test_patterns_match_the_decoded_name(
    name: str, status: int, guarded: Service, path: bytes
) -> None:
    assert (await ask(guarded, read(name, bearer("team"), path))).status == status


async def test_a_forbidden_item_of_a_batch_fails_alone(guarded: Service) -> None:
    items = [{"username": name, "text": name} for name in ("eve", "bob", "eve-2")]
    body = json.dumps(items).encode()
    answer = await ask(guarded, request(b"POST", b"/chat/batch", bearer("eve"), body=body))
    first, second, third = answer.document["results"]
    assert second["error"]["type"] == "urn:chat:problem:forbidden"
    assert [*first, *third] == ["id", "id"]
    assert texts_of(await ask(guarded, read("bob", bearer("bob")))) == []
    assert texts_of(await ask(guarded, read("eve", bearer("eve")))) == ["eve"]


#: Every route that needs a right, and a holder who lacks it.
CLOSED: Final = {
    "count": (b"HEAD", b"/chat/alice", "bob"),
    "read by post": (b"POST", b"/chat/alice/read", "bob"),
    "lease": (b"POST", b"/chat/alice/lease", "bob"),
    "ack": (b"POST", b"/chat/alice/ack", "bob"),
    "release": (b"POST", b"/chat/alice/release", "bob"),
    "extend": (b"POST", b"/chat/alice/extend", "bob"),
    "stream": (b"GET", b"/chat/alice/stream", "bob"),
    "batch": (b"POST", b"/chat/batch", "idle"),
    "history": (b"GET", b"/ops/history", "bob"),
    "metrics": (b"GET", b"/metrics", "bob"),
}


@pytest.mark.parametrize(("method", "target", "holder"), CLOSED.values(), ids=CLOSED)
async def test_every_route_checks_its_right(
    method: bytes, target: bytes, holder: str, guarded: Service
) -> None:
    assert (await ask(guarded, request(method, target, body=b""))).status == 401
    assert (await ask(guarded, request(method, target, bearer(holder), body=b""))).status == 403


@pytest.mark.parametrize("target", ["/", "/docs", "/openapi.json", "/livez", "/readyz", "/ops"])
async def test_pages_and_health_are_open(target: str, guarded: Service) -> None:
    assert (await ask(guarded, get(target.encode()))).status == 200
    # A browser whose token has expired still gets the page that says so.
    assert (await ask(guarded, get(target.encode(), bearer("nobody")))).status == 200


async def test_options_is_open(guarded: Service) -> None:
    assert (await ask(guarded, request(b"OPTIONS", b"/chat/bob"))).status == 204


async def test_operators_read_metrics_and_history(guarded: Service) -> None:
    for target in (b"/metrics", b"/ops/history"):
        assert (await ask(guarded, get(target, bearer("root")))).status == 200


async def test_anonymous_rights_need_no_token(
    start_service: StartService, tmp_path: Path, path: bytes
) -> None:
    file = tmp_path / "access.toml"
    write(file, '[anonymous]\nsend = ["*"]\n' + everybody())
    service = await start_service(access="tokens", access_file=str(file))
    assert (await ask(service, send("bob", path))).status == 201
    assert_problem(await ask(service, read("bob", path)), 401, "unauthorized")
    assert_problem(await ask(service, send("bob", bearer("nobody"), path)), 401, "unauthorized")


async def test_a_receipt_needs_an_identity_too(guarded: Service) -> None:
    answer = await ask(guarded, send("bob", bearer("alice"), b"Prefer: receipt"))
    receipt = b"X-Receipt: " + answer.headers["x-receipt"].encode()
    status = f"/messages/{answer.document['id']}/status".encode()
    assert_problem(await ask(guarded, get(status, receipt)), 401, "unauthorized")
    forged = b"X-Receipt: " + b"x" * 32
    assert_problem(await ask(guarded, get(status, forged, bearer("eve"))), 404, "not-found")
    assert (await ask(guarded, get(status, receipt, bearer("idle")))).status == 200


#: Requests that access control decides about in one way or another.
DECIDED: Final = {
    "no token": read("bob"),
    "no token and a bad name": get(b"/chat/%zz"),
    "a bad token": read("bob", bearer("nobody")),
    "a missing right": read("alice", bearer("bob")),
    "a missing right and a bad limit": read("alice", bearer("bob"), query="?limit=0"),
    "a missing right in escapes": read("%61lice", bearer("bob")),
    "a right and a bad name": get(b"/chat/%zz", bearer("bob")),
    "a right and a bad limit": read("bob", bearer("bob"), query="?limit=0"),
    "no right and a bad name": get(b"/chat/%zz", bearer("idle")),
    "a post without a token": send("bob"),
    "a post without the right": send("bob", bearer("eve")),
    "a bad post without any right": post(b"{", bearer("idle")),
    "a bad post without the right": post(b'{"username": "bob"}', bearer("eve")),
    "a cookie from nowhere": read("bob", b"Cookie: __Host-chat=" + TOKENS["bob"].encode()),
}


@each_case(DECIDED)
async def test_both_paths_refuse_alike_to_the_byte(sent: bytes, guarded: Service) -> None:
    line, _, rest = sent.partition(b"\r\n")
    fast, tornado = [
        await raw_answers(guarded, line + b"\r\n" + header + b"\r\n" + rest)
        for header in PATHS.values()
    ]
    assert fast == tornado
