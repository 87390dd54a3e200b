"""Sessions of browsers, tokens of WebSockets, and what pages of other origins can do with them."""

import json
import re
import time
from base64 import urlsafe_b64encode
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import pytest
from tornado.testing import bind_unused_port
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Origin, Subprotocol

from chat_service.service import Service
from tests.conftest import StartService
from tests.support.access import (
    RIGHTS,
    TOKENS,
    ask,
    bearer,
    everybody,
    read,
    send,
    write,
)
from tests.support.events import EventStream
from tests.support.issuer import key_set
from tests.support.raw import Answer, Wire, assert_problem, get, request, texts_of

#: What a browser says of requests of the service's own pages.
OWN: Final = b"Sec-Fetch-Site: same-origin"
LOCAL: Final = b"Host: localhost"


async def log_in(
    service: Service, name: str, *headers: bytes, host: bytes = LOCAL, body: bytes = b""
) -> Answer:
    """Begin a session."""
    return await ask(
        service, request(b"POST", b"/session", bearer(name), *headers, body=body, host=host)
    )


def cookie_of(answer: Answer) -> bytes:
    """Return the `Cookie` header that a browser sends after an answer."""
    return b"Cookie: " + answer.headers["set-cookie"].partition(";")[0].encode()


async def test_a_session_reads_what_its_token_reads(guarded: Service, path: bytes) -> None:
    cookie = cookie_of(await log_in(guarded, "bob"))
    await ask(guarded, send("bob", bearer("alice")))
    own = await ask(guarded, get(b"/chat/bob", cookie, OWN, path, host=LOCAL))
    assert texts_of(own) == ["hi"]
    other = await ask(guarded, get(b"/chat/alice", cookie, OWN, path, host=LOCAL))
    assert_problem(other, 403, "forbidden")


#: What a browser says of requests that no page of the service has made.
FOREIGN: Final = {
    "nothing": (),
    "another site": (b"Sec-Fetch-Site: cross-site",),
    "another port": (b"Sec-Fetch-Site: same-site", b"Origin: http://localhost:1"),
    "a typed address": (b"Sec-Fetch-Site: none",),
    "another origin": (b"Origin: https://evil.test",),
    "an allowed origin": (b"Origin: https://friend.test",),
}


@pytest.mark.settings(allowed_origins=("https://friend.test",))
@pytest.mark.parametrize("said", FOREIGN.values(), ids=FOREIGN)
async def test_a_cookie_from_a_foreign_page_is_refused(
    said: tuple[bytes, ...], guarded: Service, path: bytes
) -> None:
    cookie = cookie_of(await log_in(guarded, "root"))
    await ask(guarded, send("bob", bearer("alice")))
    for target in (b"/chat/bob", b"/chat/bob/stream", b"/metrics"):
        answer = await ask(guarded, get(target, cookie, *said, path, host=LOCAL))
        assert_problem(answer, 403, "cross-origin")
    assert texts_of(await ask(guarded, read("bob", bearer("bob")))) == ["hi"]


@pytest.mark.parametrize(
    ("headers", "host", "name", "is_secure"),
    [
        ((b"Origin: http://localhost:8080",), b"Host: localhost:8080", "chat", False),
        ((b"Origin: http://127.0.0.1",), b"Host: 127.0.0.1", "chat", False),
        ((b"Origin: https://localhost",), b"Host: localhost", "__Host-chat", True),
        ((b"Origin: https://good.test",), b"Host: good.test", "__Host-chat", True),
        ((b"Origin: http://good.test",), b"Host: good.test", "__Host-chat", True),
        ((), b"Host: good.test", "__Host-chat", True),
    ],
)
async def test_a_cookie_is_for_this_service_only(
    headers: tuple[bytes, ...], host: bytes, name: str, is_secure: bool, guarded: Service
) -> None:
    answer = await log_in(guarded, "bob", *headers, host=host)
    assert answer.status == 200
    value, *attributes = answer.headers["set-cookie"].split("; ")
    assert value == f"{name}={TOKENS['bob']}"
    expected = {"Path=/", "HttpOnly", "SameSite=Strict", *(["Secure"] if is_secure else [])}
    assert set(attributes) == expected


#: The body that asks the browser to keep the session.
KEEP: Final = b'{"keep": true}'
DAY_S: Final = 86_400


def age_of(answer: Answer) -> int | None:
    """Return how long a browser keeps the cookie of an answer, or None: until the browser ends."""
    age = re.search(r"; Max-Age=(\d+)", answer.headers["set-cookie"])
    return None if age is None else int(age[1])


async def expire(service: Service, access_file: Path, until: datetime) -> str:
    """Give bob's token an end, and wait until the service knows it. Return the end as it says."""
    end = until.strftime("%Y-%m-%dT%H:%M:%SZ")
    write(access_file, everybody(bob=f"{RIGHTS['bob']}\nuntil = {end}"))
    while (await log_in(service, "bob")).document["until"] != end:
        pass
    return end


async def test_a_session_ends_with_the_browser_unless_it_is_kept(
    guarded: Service, access_file: Path
) -> None:
    for body in (b"", b"{}", b'{"keep": false}', b'{"keep": null, "other": 1}'):
        answer = await log_in(guarded, "bob", body=body)
        assert (answer.status, age_of(answer)) == (200, None)
        assert answer.document["kept_until"] is None
    # Also if the token has an end: the service refuses it from then on anyway.
    end = await expire(guarded, access_file, datetime(2999, 1, 1, tzinfo=UTC))
    answer = await log_in(guarded, "bob")
    assert (age_of(answer), answer.document["until"]) == (None, end)


async def test_a_kept_session_lasts_thirty_days(guarded: Service) -> None:
    answer = await log_in(guarded, "bob", body=KEEP)
    assert age_of(answer) == 30 * DAY_S
    *attributes, age = answer.headers["set-cookie"].split("; ")[1:]
    assert attributes == ["Path=/", "HttpOnly", "SameSite=Strict"]
    assert age.startswith("Max-Age=")
    answer = await log_in(
        guarded, "bob", b"Origin: https://good.test", body=KEEP, host=b"Host: good.test"
    )
    assert answer.headers["set-cookie"].startswith("__Host-chat=")
    assert "; Secure; Max-Age=" in answer.headers["set-cookie"]


async def test_a_kept_session_tells_its_end(guarded: Service) -> None:
    before = time.time()
    answer = await log_in(guarded, "bob", body=KEEP)
    end = datetime.fromisoformat(answer.document["kept_until"]).timestamp()
    assert int(before) + 30 * DAY_S <= end <= time.time() + 30 * DAY_S
    assert answer.document["until"] is None
    shown = await ask(guarded, get(b"/session", cookie_of(answer), OWN, host=LOCAL))
    assert shown.document == answer.document
    # A token in the header counts instead of the cookie, and has no end of this kind.
    shown = await ask(guarded, get(b"/session", cookie_of(answer), bearer("eve"), OWN, host=LOCAL))
    assert (shown.document["subject"], shown.document["kept_until"]) == ("eve", None)


async def test_a_kept_session_ends_with_its_token(guarded: Service, access_file: Path) -> None:
    until = datetime.now(UTC).replace(microsecond=0) + timedelta(days=3)
    end = await expire(guarded, access_file, until)
    answer = await log_in(guarded, "bob", body=KEEP)
    assert (answer.document["until"], answer.document["kept_until"]) == (end, end)
    age = age_of(answer)
    assert age is not None
    assert 2 * DAY_S < age <= 3 * DAY_S


async def test_a_kept_session_does_what_its_token_may(
    guarded: Service, access_file: Path, path: bytes
) -> None:
    cookie = cookie_of(await log_in(guarded, "bob", body=KEEP))
    await ask(guarded, send("bob", bearer("alice")))
    own = get(b"/chat/bob", cookie, OWN, path, host=LOCAL)
    assert texts_of(await ask(guarded, own)) == ["hi"]
    assert_problem(
        await ask(guarded, get(b"/chat/bob", cookie, path, host=LOCAL)), 403, "cross-origin"
    )
    # A revoked token ends its kept sessions as it ends all others.
    write(access_file, everybody(bob="-"))
    while (await ask(guarded, own)).status != 401:
        pass


@pytest.mark.parametrize("end", [b":", b":x", b":-1", b":99999999999", b":1:2"])
async def test_a_cookie_with_a_malformed_end_is_kept_for_the_browser(
    end: bytes, guarded: Service
) -> None:
    cookie = b"Cookie: chat=" + TOKENS["bob"].encode() + end
    answer = await ask(guarded, get(b"/session", cookie, OWN, host=LOCAL))
    assert (answer.document["subject"], answer.document["kept_until"]) == ("bob", None)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b'{"keep": "yes"}', "invalid-request"),
        (b'{"keep": 1}', "invalid-request"),
        (b"[true]", "invalid-json"),
        (b"keep=true", "invalid-json"),
        (b'{"keep": true', "invalid-json"),
    ],
)
async def test_a_session_refuses_a_malformed_body(body: bytes, kind: str, guarded: Service) -> None:
    answer = await log_in(guarded, "bob", body=body)
    assert_problem(answer, 400, kind, {"keep"} if kind == "invalid-request" else None)
    assert "set-cookie" not in answer.headers


async def test_a_malformed_body_is_refused_while_access_is_off(service: Service) -> None:
    answer = await ask(service, request(b"POST", b"/session", body=b'{"keep": 1}'))
    assert_problem(answer, 400, "invalid-request", {"keep"})


async def test_the_end_of_a_session_removes_the_cookie(guarded: Service) -> None:
    for cookie in (
        cookie_of(await log_in(guarded, "bob")),
        cookie_of(await log_in(guarded, "bob", body=KEEP)),
        b"Cookie: chat=expired",
    ):
        answer = await ask(guarded, request(b"DELETE", b"/session", cookie, OWN, host=LOCAL))
        assert answer.status == 204
        assert answer.headers["set-cookie"].startswith("chat=; ")
        assert "Max-Age=0" in answer.headers["set-cookie"]


async def test_a_session_names_its_holder_and_rights(guarded: Service) -> None:
    cookie = cookie_of(await log_in(guarded, "eve"))
    for header in (cookie, bearer("eve")):
        answer = await ask(guarded, get(b"/session", header, OWN, host=LOCAL))
        assert answer.document == {
            "access": "tokens",
            "subject": "eve",
            "send": ["eve", "eve-*"],
            "read": ["eve"],
            "ops": False,
            "until": None,
            "kept_until": None,
        }
    nobody = (await ask(guarded, get(b"/session"))).document
    assert (nobody["subject"], nobody["send"], nobody["ops"]) == (None, [], False)
    assert_problem(await ask(guarded, get(b"/session", bearer("nobody"))), 401, "unauthorized")


async def test_everyone_has_all_rights_if_access_is_off(service: Service) -> None:
    for method in (b"GET", b"POST"):
        answer = await ask(service, request(method, b"/session", body=b""))
        assert answer.document == {
            "access": "off",
            "subject": None,
            "send": ["*"],
            "read": ["*"],
            "ops": True,
            "until": None,
            "kept_until": None,
        }
        assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("headers", [(), (b"Cookie: chat=" + TOKENS["bob"].encode(), OWN)])
async def test_a_session_needs_a_token_to_begin(
    headers: tuple[bytes, ...], guarded: Service
) -> None:
    answer = await ask(guarded, request(b"POST", b"/session", *headers, body=b"", host=LOCAL))
    assert_problem(answer, 401, "unauthorized")


async def test_foreign_pages_begin_and_end_no_session(guarded: Service) -> None:
    for method in (b"GET", b"POST", b"DELETE"):
        sent = request(
            method, b"/session", bearer("bob"), b"Sec-Fetch-Site: cross-site", body=b"", host=LOCAL
        )
        answer = await ask(guarded, sent)
        assert_problem(answer, 403, "cross-origin")
        assert "set-cookie" not in answer.headers


async def test_an_event_stream_takes_a_session(guarded: Service) -> None:
    cookie = cookie_of(await log_in(guarded, "bob"))
    await ask(guarded, send("bob", bearer("alice")))
    async with EventStream(guarded.port, headers=[cookie, OWN]) as stream:
        assert await stream.texts(1) == ["hi"]


def url(service: Service) -> str:
    """Return the address of bob's WebSocket."""
    return f"ws://127.0.0.1:{service.port}/chat/bob/stream"


async def test_a_websocket_takes_a_session(guarded: Service) -> None:
    cookie = cookie_of(await log_in(guarded, "bob")).decode().removeprefix("Cookie: ")
    await ask(guarded, send("bob", bearer("alice")))
    origin = Origin(f"http://127.0.0.1:{guarded.port}")
    async with connect(
        url(guarded), additional_headers={"Cookie": cookie}, origin=origin
    ) as socket:
        assert json.loads(await socket.recv())["text"] == "hi"


def carried(name: str) -> Subprotocol:
    """Return the subprotocol with a holder's token."""
    encoded = urlsafe_b64encode(TOKENS[name].encode()).decode().rstrip("=")
    return Subprotocol(f"chat.bearer.{encoded}")


CHAT: Final = Subprotocol("chat.v1")


@pytest.mark.settings(allowed_origins=("https://friend.test",))
async def test_a_websocket_of_another_origin_carries_its_token(guarded: Service) -> None:
    await ask(guarded, send("bob", bearer("alice")))
    async with connect(
        url(guarded), subprotocols=[CHAT, carried("bob")], origin=Origin("https://friend.test")
    ) as socket:
        assert json.loads(await socket.recv())["text"] == "hi"
        assert socket.subprotocol == CHAT
        assert socket.response is not None
        assert TOKENS["bob"] not in repr(socket.response.headers)
        assert carried("bob") not in repr(socket.response.headers)


@pytest.mark.settings(public_url="https://Public.test:443/")
async def test_a_websocket_at_the_public_address_takes_a_session(guarded: Service) -> None:
    headers, origin = {"Cookie": f"chat={TOKENS['bob']}"}, Origin("https://public.test")
    await ask(guarded, send("bob", bearer("alice")))
    async with connect(url(guarded), origin=origin, additional_headers=headers) as socket:
        assert json.loads(await socket.recv())["text"] == "hi"


@pytest.mark.settings(allowed_origins=("https://friend.test",))
@pytest.mark.parametrize(
    ("origin", "protocols", "cookie", "status"),
    [
        ("https://evil.test", [CHAT, carried("bob")], False, 403),
        ("https://evil.test", None, True, 403),
        ("https://friend.test", None, True, 403),
        ("https://friend.test", None, False, 401),
        ("https://friend.test", [CHAT], False, 401),
        ("https://friend.test", [CHAT, carried("nobody")], False, 401),
        ("https://friend.test", [CHAT, carried("eve")], False, 403),
    ],
)
async def test_a_websocket_from_elsewhere_is_refused(
    origin: str,
    protocols: list[Subprotocol] | None,
    cookie: bool,
    status: int,
    guarded: Service,
) -> None:
    headers = {"Cookie": f"chat={TOKENS['bob']}"} if cookie else {}
    with pytest.raises(InvalidStatus) as raised:
        async with connect(
            url(guarded),
            subprotocols=protocols,
            origin=Origin(origin),
            additional_headers=headers,
        ):
            pass
    assert raised.value.response.status_code == status


async def test_the_subprotocol_is_spoken_without_access(service: Service) -> None:
    async with connect(url(service), subprotocols=[CHAT]) as socket:
        assert socket.subprotocol == CHAT
    async with connect(url(service)) as socket:
        assert socket.subprotocol is None


def unused_port() -> int:
    """Return a port that nobody listens on."""
    sock, port = bind_unused_port()
    sock.close()
    return port


async def test_the_operators_port_checks_rights_too(
    start_service: StartService, access_file: Path
) -> None:
    service = await start_service(
        access="tokens", access_file=str(access_file), ops="off", ops_port=unused_port()
    )

    async def status(*sent: bytes) -> int:
        connection = await wire.connect()
        return (await connection.ask(get(*sent))).status

    wire = Wire(service.settings.ops_port)
    assert await status(b"/ops") == 200
    assert await status(b"/livez") == 200
    for target in (b"/metrics", b"/ops/history"):
        assert await status(target) == 401
        assert await status(target, bearer("bob")) == 403
        assert await status(target, bearer("root")) == 200
    assert await status(b"/session", bearer("root")) == 200
    await wire.close()


async def test_the_issuer_of_tokens_is_named(
    service: Service, start_service: StartService, tmp_path: Path
) -> None:
    target = get(b"/.well-known/oauth-protected-resource")
    assert_problem(await ask(service, target), 404, "not-found")
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps(key_set()), encoding="utf-8")
    settings = {
        "access": "jwt",
        "jwt_issuer": "https://login.example",
        "jwt_audience": "chat",
        "jwt_keys": str(keys),
    }
    for public_url, resource in (("", "http://good.test"), ("https://x.test/", "https://x.test")):
        named = await start_service(**settings, public_url=public_url)
        assert (await ask(named, target)).document == {
            "resource": resource,
            "authorization_servers": ["https://login.example"],
            "bearer_methods_supported": ["header"],
        }
