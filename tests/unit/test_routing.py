"""The route table: the handler of each request, and the properties of each route."""

import asyncio
from collections.abc import Mapping

import pytest

from chat_service.api.problems import Problem
from chat_service.api.routing import Route, RouteTable
from chat_service.api.types import BodyChunk, Request, Response
from config import Settings
from tests.support.contract import routes_of

ROUTES = routes_of(Settings(mongo_uri="mongodb://nobody"))
TABLE = RouteTable(ROUTES, 1000)


def names(route: Route) -> str:
    """Return the name of a case: several routes may have one path."""
    return f"{' '.join(route.methods)} {route.path}"


def request(method: str, parameter: str = "bob", query: str = "", body: bytes = b"") -> Request:
    """Return a request as handlers see it."""
    return Request("id", method, parameter, query, {}, body)


@pytest.mark.parametrize(
    ("method", "path", "route", "parameter"),
    [
        ("POST", "/chat", "/chat", ""),
        ("POST", "/chat/batch", "/chat/batch", ""),
        ("GET", "/chat/batch", "/chat/:username", "batch"),
        ("POST", "/chat/%62atch", "/chat/:username", "%62atch"),
        ("POST", "/chat/bob", "/chat/:username", "bob"),
        ("GET", "/chat/bob", "/chat/:username", "bob"),
        ("HEAD", "/chat/bob", "/chat/:username", "bob"),
        ("GET", "/chat/a%2Fb", "/chat/:username", "a%2Fb"),
        ("GET", "/chat/:username", "/chat/:username", ":username"),
        ("POST", "/chat/bob/read", "/chat/:username/read", "bob"),
        ("POST", "/chat/bob/lease", "/chat/:username/lease", "bob"),
        ("GET", "/chat/bob/stream", "/chat/:username/stream", "bob"),
        ("DELETE", "/messages/1", "/messages/:id", "1"),
        ("GET", "/messages/1/status", "/messages/:id/status", "1"),
        ("GET", "/", "/", ""),
        ("GET", "/assets/base.css", "/assets/:file", "base.css"),
    ],
)
def test_request_is_resolved(method: str, path: str, route: str, parameter: str) -> None:
    resolved = TABLE.resolve(method, path, {})
    assert (resolved.route.path, resolved.parameter) == (route, parameter)
    assert resolved.handler == resolved.route.methods[method]


@pytest.mark.parametrize(
    "path",
    [
        "",
        "chat",
        "*",
        "/chat/",
        "/chat/bob/",
        "/chat//read",
        "//chat",
        "/nothing",
        "/CHAT",
        "/a/b/c",
    ],
)
@pytest.mark.parametrize("method", ["GET", "OPTIONS"])
def test_unknown_path_is_not_found(path: str, method: str) -> None:
    with pytest.raises(Problem) as raised:
        TABLE.resolve(method, path, {})
    assert (raised.value.status, raised.value.kind) == (404, "not-found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/chat", "POST, OPTIONS"),
        ("DELETE", "/chat/bob", "GET, HEAD, POST, OPTIONS"),
        ("DELETE", "/chat/batch", "POST, GET, HEAD, OPTIONS"),
        ("get", "/chat/bob", "GET, HEAD, POST, OPTIONS"),
    ],
)
def test_other_method_is_not_allowed(method: str, path: str, allowed: str) -> None:
    with pytest.raises(Problem) as raised:
        TABLE.resolve(method, path, {})
    assert (raised.value.status, raised.value.headers) == (405, {"Allow": allowed})


def test_options_lists_the_methods() -> None:
    resolved = TABLE.resolve("OPTIONS", "/chat/batch", {})
    response = asyncio.run(_answer(resolved.handler(request("OPTIONS"))))
    assert response.status == 204
    assert response.headers["Allow"] == "POST, GET, HEAD, OPTIONS"
    assert response.body == BodyChunk(b"", 0)
    assert resolved.max_body_bytes == 1000


@pytest.mark.parametrize("route", ROUTES, ids=names)
def test_the_request_policy_checks_only_routes_for_clients(route: Route) -> None:
    path = route.path.replace(":username", "bob").replace(":id", "1").replace(":file", "base.css")
    for method in route.methods:
        rejected = [_kind(method, path, headers) for headers in (PREFETCH, CROSS_ORIGIN)]
        if route.audience == "clients":
            assert rejected == ["speculative", "cross-origin"]
        else:
            assert rejected == ["", ""]


PREFETCH = {"Sec-Purpose": "prefetch"}
CROSS_ORIGIN = {"Sec-Fetch-Site": "cross-site", "Origin": "https://other.example"}


def _kind(method: str, path: str, headers: Mapping[str, str]) -> str:
    """Return the kind of the problem that the lookup raises, or an empty string."""
    try:
        TABLE.resolve(method, path, headers)
    except Problem as problem:
        return problem.kind
    return ""


def test_limits_of_a_route_override_those_of_the_table() -> None:
    assert TABLE.resolve("POST", "/chat", {}).max_body_bytes == 1000
    assert TABLE.resolve("POST", "/chat/batch", {}).max_body_bytes == 4 << 20


def test_allowed_origin_may_open_a_stream_and_nothing_else() -> None:
    settings = Settings(mongo_uri="mongodb://nobody", allowed_origins=("https://other.example",))
    table = RouteTable(routes_of(settings), 1000)
    assert table.resolve("GET", "/chat/bob/stream", CROSS_ORIGIN).parameter == "bob"
    with pytest.raises(Problem, match="cross-origin"):
        table.resolve("GET", "/chat/bob", CROSS_ORIGIN)


@pytest.mark.parametrize(
    "route",
    [route for route in ROUTES if route.parameters is not None],
    ids=names,
)
def test_unknown_parameter_is_refused_where_the_table_says_so(route: Route) -> None:
    *others, last = route.parameters or ("none",)
    known = f"{', '.join(others)} and {last}" if others else last
    for method, handler in route.methods.items():
        if method == "HEAD":
            # It only counts messages, and ignores parameters.
            continue
        body = b'{"lease":"ab"}' if route.effect == "changed" else b""
        asked = request(method, query="unknown=1", body=body)
        with pytest.raises(Problem) as raised:
            asyncio.run(_answer(handler(asked)))
        (error,) = raised.value.errors
        assert error.field == "unknown"
        assert error.detail.endswith(f"it has: {known}")


async def _answer(answer: object) -> Response:
    result = await answer  # type: ignore[misc]
    assert isinstance(result, Response)
    return result


def test_every_route_says_what_it_is() -> None:
    def those(field: str) -> set[str]:
        return {route.path for route in ROUTES if getattr(route, field)}

    assert those("can_wait") == {
        "/chat/:username",
        "/chat/:username/read",
        "/chat/:username/lease",
    }
    assert those("is_probe") == {"/livez", "/readyz", "/metrics"}
    assert those("takes_any_host") == TABLE.any_host_paths == {"/livez", "/readyz"}
    assert those("takes_websockets") == {"/chat/:username/stream"}
    assert {names(route) for route in ROUTES if route.effect == "stored"} == {
        "POST /chat",
        "POST /chat/batch",
        "POST /chat/:username",
    }
    assert {route.path for route in ROUTES if route.audience == "operators"} == {
        "/ops",
        "/ops/runbook",
        "/ops/history",
        "/metrics",
    }
