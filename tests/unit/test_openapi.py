"""The OpenAPI document is complete and valid, and agrees with the rules of the service."""

import json
import re
from collections.abc import Iterator, Mapping
from inspect import getmembers, isfunction, signature
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from tornado.httputil import HTTPHeaders

from chat_service.api import problems
from chat_service.api.identity import Right
from chat_service.api.problems import Effect, FieldError, Problem, of_service_error, problem_of
from chat_service.api.request_options import READ_KEY_MIN, idempotency_key
from chat_service.api.validation import LeaseBody, MessageBody, MessageLimits, new_message
from chat_service.openapi import inbox, others
from chat_service.wiring import terms_of
from config import Settings
from config.settings import PROJECT_ROOT
from tests.support.contract import Contract, document_of, routes_of
from workers import errors
from workers.commands import Finished

SETTINGS = Settings(mongo_uri="mongodb://nobody")
DOCUMENT = json.loads(document_of(SETTINGS))
SCHEMAS = DOCUMENT["components"]["schemas"]
PARAMETERS = DOCUMENT["components"]["parameters"]


def operations() -> Iterator[tuple[str, Any]]:
    """Yield each operation with its method and path."""
    for path, methods in DOCUMENT["paths"].items():
        for method, said in methods.items():
            yield f"{method.upper()} {path}", said


def nodes(node: Any) -> Iterator[dict[str, Any]]:
    """Yield each object in the document."""
    if isinstance(node, dict):
        yield node
    for each in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from nodes(each)


def validator(schema: Any) -> Draft202012Validator:
    """Return a validator for a schema that may refer to the document's components."""
    return Draft202012Validator({**schema, "components": DOCUMENT["components"]})


def test_the_document_is_valid() -> None:
    OpenAPIV31SpecValidator(DOCUMENT).validate()


def test_every_route_is_described_and_nothing_else() -> None:
    routes = {
        f"{method} " + re.sub(r":(\w+)", r"{\1}", route.path)
        for route in routes_of(SETTINGS)
        for method in route.methods
    }
    described = {name for name, _ in operations()}
    assert described == routes, "chat_service/openapi has an entry for each route"


def test_every_entry_describes_a_route() -> None:
    routes = {f"{method} {route.path}" for route in routes_of(SETTINGS) for method in route.methods}
    entries = {*inbox.operations(terms_of(SETTINGS)), *others.operations()}
    assert entries <= routes, "no entry is left of a route that was removed or renamed"


def test_every_operation_has_a_unique_name_and_a_description() -> None:
    names = [said["operationId"] for _, said in operations()]
    assert len(set(names)) == len(names)
    for name, said in operations():
        assert said["summary"], f"the handler of {name} has no docstring"
        assert said["description"], name


def test_consuming_operations_are_marked() -> None:
    consuming = {name for name, said in operations() if said.get("x-consumes")}
    assert consuming == {
        "GET /chat/{username}",
        "POST /chat/{username}/read",
        "POST /chat/{username}/lease",
        "POST /chat/{username}/ack",
        "GET /chat/{username}/stream",
    }
    for name, said in operations():
        if name in consuming:
            assert said["description"].startswith("Consumes: "), name
        elif name.startswith(("POST", "DELETE")):
            assert said["x-effect"], name
        else:
            assert "x-effect" not in said, name


def test_the_rights_in_force_are_in_it() -> None:
    assert not any("security" in said for _, said in operations())
    changed = msgspec.structs.replace(SETTINGS, access="tokens")
    guarded = json.loads(document_of(changed))
    schemes = set(guarded["components"]["securitySchemes"])
    for route in routes_of(changed):
        for method in route.methods:
            said = guarded["paths"][re.sub(r":(\w+)", r"{\1}", route.path)][method.lower()]
            assert said.get("x-right") == route.right
            ways = {name for way in said.get("security", ()) for name in way}
            assert ways == (schemes if route.right else set())
            if route.right:
                assert said["responses"]["401"]["headers"]["WWW-Authenticate"]


def all_problems() -> Iterator[Problem]:
    """Yield a problem of each kind that the service can answer with."""
    sample: dict[object, object] = {
        FieldError: FieldError("x", "y"),
        str: "x",
        bool: True,
        int: 1,
        Finished: Finished(1, False),
        Right: "read",
        Effect: "claimed",
        Mapping[str, str]: {},
    }
    from_errors = (of_service_error, problem_of)
    for _, function in getmembers(problems, isfunction):
        parameters = signature(function).parameters.values()
        is_ours = function.__module__ == problems.__name__ and function not in from_errors
        if is_ours and signature(function).return_annotation is Problem:
            positional = (each for each in parameters if each.kind != each.KEYWORD_ONLY)
            yield function(*(sample[each.annotation] for each in positional))
    for _, kind in getmembers(errors, lambda each: isinstance(each, type)):
        if issubclass(kind, errors.ServiceError) and kind is not errors.ServiceError:
            yield of_service_error(kind("x"), "claimed")


def test_every_problem_type_is_documented_with_its_status() -> None:
    sent = {(each.status, f"urn:chat:problem:{each.kind}") for each in all_problems()}
    described = {
        (node["properties"]["status"]["const"], kind)
        for node in nodes(DOCUMENT)
        if node.get("$ref") == "#/components/schemas/Problem" and "properties" in node
        for kind in node["properties"]["type"]["enum"]
    }
    assert described == sent
    prose = (PROJECT_ROOT / "docs/api.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d{3}) \| (`.*?) \|", prose, re.MULTILINE)
    told = {(int(status), kind) for status, kinds in rows for kind in re.findall("`(.*?)`", kinds)}
    assert {(status, f"urn:chat:problem:{kind}") for status, kind in told} == sent


def test_every_field_that_is_decoded_is_described() -> None:
    assert set(SCHEMAS["NewMessage"]["properties"]) == fields(MessageBody)
    lease = {*SCHEMAS["LeaseRelease"]["properties"], *SCHEMAS["LeaseExtension"]["properties"]}
    assert lease == fields(LeaseBody)


def fields(struct: type[msgspec.Struct]) -> set[str]:
    """Return the names of a struct's fields."""
    return {field.encode_name for field in msgspec.structs.fields(struct)}


def test_every_example_keeps_the_rules_that_it_is_an_example_of() -> None:
    seen = 0
    for node in nodes(DOCUMENT):
        if "schema" in node:
            examples = [each["value"] for each in node.get("examples", {}).values()]
            for example in [*examples, *([node["example"]] if "example" in node else [])]:
                validator(node["schema"]).validate(example)
                seen += 1
    assert seen > 50


def test_the_limits_in_force_are_in_it() -> None:
    changed = msgspec.structs.replace(
        SETTINGS, max_username_chars=7, max_text_bytes=77, max_timeout_s=777, max_batch_messages=77
    )
    document = json.loads(document_of(changed))
    message = document["components"]["schemas"]["NewMessage"]["properties"]
    assert message["username"]["maxLength"] == 7
    assert document["components"]["parameters"]["username"]["schema"]["maxLength"] == 7
    assert message["text"]["maxLength"] == 77
    assert message["timeout"]["maximum"] == 777
    batch = document["paths"]["/chat/batch"]["post"]["requestBody"]["content"]
    assert batch["application/json"]["schema"]["maxItems"] == 77


def accepts(schema: Any, value: object) -> bool:
    """Return whether a value is valid by the document."""
    return bool(validator(schema).is_valid(value))


VALUES = st.one_of(
    st.text(max_size=140),
    st.sampled_from([".", "..", "", "\x7f", "x" * 128, "x" * 129]),
    st.integers(-2, 2592002),
    st.floats(allow_nan=False, allow_infinity=False),
    st.none(),
    st.booleans(),
)


# Without a deadline, because a busy machine can delay any example.
@settings(deadline=None)
@given(
    message=st.fixed_dictionaries(
        {}, optional={"text": VALUES, "username": VALUES, "timeout": VALUES}
    )
)
def test_a_message_is_valid_there_where_it_is_accepted_here(message: dict[str, object]) -> None:
    def is_accepted() -> bool:
        try:
            new_message(json.dumps(message).encode(), MessageLimits(128, 65536, 60, 2592000))
        except Problem:
            return False
        return True

    assert accepts(SCHEMAS["NewMessage"], message) == is_accepted(), message


@pytest.mark.parametrize(("name", "length_min"), [("post-key", 1), ("read-key", READ_KEY_MIN)])
@settings(deadline=None)
@given(key=st.text(st.sampled_from('ab "\\~!\x7f\u00e9\t'), max_size=60))
def test_a_key_is_valid_there_where_it_is_accepted_here(
    name: str, length_min: int, key: str
) -> None:
    def is_accepted() -> bool:
        try:
            idempotency_key(HTTPHeaders({"Idempotency-Key": key}), length_min)
        except Problem:
            return False
        return True

    # Whitespace around a header's value is not part of it.
    key = key.strip()
    assert accepts(PARAMETERS[name]["schema"], key) == is_accepted(), key


def test_undocumented_answers_are_detected() -> None:
    document = json.loads(document_of(SETTINGS))
    good = {"X-Request-ID": "x", "Content-Type": "application/json"}
    body = b'[{"text":"x","id":"01a20bdacd390000b765d1a0c4bde3d1"}]'
    contract = Contract(document)
    contract.check("GET", "/chat/bob?limit=1", 200, good, body)
    wrong: list[tuple[str, int, dict[str, str], bytes]] = [
        ("/chat/bob", 202, good, body),
        ("/chat/bob", 200, {"Content-Type": "application/json"}, body),
        ("/chat/bob", 200, {**good, "Content-Type": "text/html"}, body),
        ("/chat/bob", 200, {**good, "X-Unread-Count": "1"}, body),
        ("/chat/bob", 200, {**good, "X-More": "yes"}, body),
        ("/chat/bob", 200, good, b'[{"text":"x"}]'),
        ("/chat/bob", 200, good, b'[{"text":"x","id":"1"}]'),
        ("/chat/bob", 200, good, body.replace(b'"text"', b'"extra":1,"text"')),
        ("/chat/bob/mary", 200, good, body),
        ("/livez", 404, good, b"{}"),
    ]
    for target, status, headers, sent in wrong:
        with pytest.raises(AssertionError):
            contract.check("GET", target, status, headers, sent)
    with pytest.raises(AssertionError):
        contract.check("HEAD", "/chat/bob", 200, {**good, "X-Unread-Count": "1"}, body)
    del document["paths"]["/chat/{username}"]["get"]["responses"]["200"]
    with pytest.raises(AssertionError, match=r"the answer 200 to GET /chat/\{username\} is not in"):
        Contract(document).check("GET", "/chat/bob", 200, good, body)
