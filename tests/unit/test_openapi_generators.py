"""The OpenAPI document says nothing that generators of clients drop, rename or misread.

These rules come from openapi-typescript and openapi-python-client. tests/generators runs both.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from config import Settings
from tests.support.contract import document_of

_OPEN = Settings(mongo_uri="mongodb://nobody")
_GUARDED = msgspec.structs.replace(_OPEN, access="tokens")
#: What openapi-python-client can send. It drops any other media type from the client.
_SENT = {"application/json", "application/octet-stream"}
#: What it can receive, besides text.
_RECEIVED = re.compile(r"application/(json|octet-stream|[a-z]+\+json)|text/[a-z-]+")


@pytest.fixture(params=[_OPEN, _GUARDED], ids=["open", "guarded"], scope="module")
def document(request: pytest.FixtureRequest) -> Any:
    """Return the document of a service without and with access control."""
    return json.loads(document_of(request.param))


def operations(document: Any) -> Iterator[tuple[str, Any]]:
    """Yield each operation with its method and path."""
    for path, methods in document["paths"].items():
        for method, said in methods.items():
            yield f"{method.upper()} {path}", said


def schemas(node: Any, place: str = "#", *, is_schema: bool = False) -> Iterator[tuple[str, Any]]:
    """Yield each schema in the document with its place. Examples are values, not schemas."""
    if isinstance(node, list):
        for number, each in enumerate(node):
            yield from schemas(each, f"{place}/{number}", is_schema=is_schema)
    elif isinstance(node, dict):
        if is_schema:
            yield place, node
        for name, each in node.items():
            at = f"{place}/{name}"
            if name in ("example", "examples"):
                continue
            if name == "properties" or (name == "schemas" and place == "#/components"):
                for named, schema in each.items():
                    yield from schemas(schema, f"{at}/{named}", is_schema=True)
            else:
                parts = ("schema", "items", "oneOf", "anyOf", "allOf", "not")
                yield from schemas(each, at, is_schema=name in parts)


def test_an_enumeration_has_values_of_one_type(document: Any) -> None:
    seen = 0
    for place, schema in schemas(document):
        if "enum" in schema:
            seen += 1
            assert len({type(value) for value in schema["enum"]}) == 1, place
    assert seen > 20


def test_a_choice_is_not_between_constants(document: Any) -> None:
    # openapi-python-client would compare with the first one only, and raise for the others.
    for place, schema in schemas(document):
        for each in [*schema.get("oneOf", ()), *schema.get("anyOf", ())]:
            assert "const" not in each or each.get("type") == "boolean", place


def test_no_schema_has_a_default(document: Any) -> None:
    # openapi-typescript would make the field required, and openapi-python-client would send the
    # value, even if the service's own default is another by then. The description names it.
    for place, schema in schemas(document):
        assert "default" not in schema, place


def test_every_object_has_a_name(document: Any) -> None:
    # Generators would make one from the place, such as `BatchResultsResultsItemType0`.
    seen = 0
    for place, schema in schemas(document):
        if schema.get("type") == "object":
            seen += 1
            assert re.fullmatch(r"#/components/schemas/[A-Z][A-Za-z]+", place), place
    assert seen > 15


def test_every_enumeration_in_an_answer_has_a_name(document: Any) -> None:
    for place, schema in schemas(document):
        # The rules beside a reference narrow it for one status. Generators use the reference.
        if "enum" in schema and "/responses/" not in place and not place.endswith("/not"):
            assert re.fullmatch(r"#/components/schemas/[A-Z][A-Za-z]+", place), place


def test_no_schema_is_named_like_a_field_of_it(document: Any) -> None:
    # openapi-python-client would use one variable for both.
    for name, schema in document["components"]["schemas"].items():
        variable = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
        assert variable not in schema.get("properties", ()), name


def test_names_are_unique_in_every_language(document: Any) -> None:
    ids = [said["operationId"] for _, said in operations(document)]
    for names in (ids, list(document["components"]["schemas"])):
        assert len({re.sub(r"\W", "", name).lower() for name in names}) == len(names)
    for name in ids:
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", name), name


def test_parameters_of_an_operation_differ_by_name(document: Any) -> None:
    components = document["components"]["parameters"]
    for name, said in operations(document):
        references = [each["$ref"].rpartition("/")[2] for each in said.get("parameters", ())]
        names = [components[each]["name"].lower() for each in references]
        assert len(set(names)) == len(names), name


def test_every_body_is_of_a_type_that_clients_can_send(document: Any) -> None:
    for name, said in operations(document):
        assert set(said.get("requestBody", {}).get("content", ())) <= _SENT, name


def test_every_answer_is_of_a_type_that_clients_can_read(document: Any) -> None:
    for name, said in operations(document):
        for status, answer in said["responses"].items():
            for media, content in answer.get("content", {}).items():
                # The files of the pages are for browsers.
                is_image = media in ("image/svg+xml", "image/png")
                assert _RECEIVED.fullmatch(media) or is_image, (name, status)
                assert "schema" in content, (name, status)


def test_every_refusal_is_a_problem(document: Any) -> None:
    for name, said in operations(document):
        for status, answer in said["responses"].items():
            for content in answer.get("content", {}).values():
                if int(status) >= 400 and name != "GET /readyz":
                    problem = "#/components/schemas/Problem"
                    assert content["schema"]["$ref"] == problem, (name, status)
