"""docs/deployment.md: its commands fit the templates and AWS's API, and its costs add up."""

import re
import shlex
from functools import cache
from itertools import takewhile
from typing import Any

import botocore.session
import pytest
from botocore import xform_name

from chat_service.capacity.model import Demand, plan
from tests.deploy.ecs.costs import DOCUMENT, SIZES, Size, prices, rows
from tests.deploy.ecs.template import PARAMETERS, TEMPLATES, Stack, load
from tests.support.blocks import blocks

TEXT = DOCUMENT.read_text(encoding="utf-8")
#: Options of the command line itself.
_GLOBAL = {"--query", "--output"}
#: Commands that the command line has and the API lacks, with their options.
_OWN: dict[tuple[str, str], set[str]] = {
    ("cloudformation", "deploy"): {
        "--stack-name",
        "--template-file",
        "--capabilities",
        "--parameter-overrides",
    },
    ("logs", "tail"): {"--since", "--follow"},
    ("ecr", "get-login-password"): set(),
}


def commands() -> list[list[str]]:
    """Return the words of each `aws` command of the document."""
    text = "\n".join(each.text for each in blocks(DOCUMENT)) + "\n"
    text += "\n".join(re.findall(r"`(aws [^`]+)`", TEXT))
    text = text.replace("\\\n", " ")
    found = []
    for line in text.splitlines():
        # A command in `$(...)` may stand in another one.
        for start in re.finditer(r"(?:^|\$\(|\(\) \{ )aws ", line):
            words = shlex.split(_balanced(line[start.end() :]), posix=True)
            found.append([*takewhile(lambda word: word not in ("|", "&&", ";"), words)])
    return found


def _balanced(text: str) -> str:
    """Return a text up to a bracket that it does not open."""
    depth = 0
    for index, character in enumerate(text):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth < 0:
            return text[:index]
    # `} ` ends a function of the shell.
    return text.partition("; }")[0]


@cache
def service(name: str) -> Any:
    return botocore.session.get_session().get_service_model(name)


def options_of(words: list[str]) -> set[str]:
    """Return the options that a command has, or raise KeyError if AWS has no such command."""
    name, command = words[:2]
    if (name, command) in _OWN:
        return _OWN[name, command]
    if command == "wait":
        waiters = botocore.session.get_session().create_client
        config = waiters(name, "us-east-1", aws_access_key_id="x", aws_secret_access_key="x")
        waiter = words[2].replace("-", "_")
        assert waiter in config.waiter_names
        operation = config.get_waiter(waiter).config.operation
        shape = service(name).operation_model(operation).input_shape
    else:
        operations = {xform_name(each, "-"): each for each in service(name).operation_names}
        shape = service(name).operation_model(operations[command]).input_shape
    options: set[str] = set()
    for member, each in (shape.members if shape else {}).items():
        option = "--" + xform_name(member, "-")
        options |= {option, "--no-" + option[2:]} if each.type_name == "boolean" else {option}
    return options


def test_the_command_line_can_send_the_template() -> None:
    # A longer one would have to go through a bucket.
    assert (TEMPLATES / "chat.yaml").stat().st_size < 51_200


def test_the_document_has_many_commands() -> None:
    names = {tuple(each[:2]) for each in commands()}
    assert len(names) >= 15
    assert {("cloudformation", "deploy"), ("ecs", "update-service"), ("ecs", "wait")} <= names


@pytest.mark.parametrize("words", commands(), ids=lambda words: " ".join(words[:3]))
def test_aws_has_each_command_and_option(words: list[str]) -> None:
    used = {each for each in words if each.startswith("--")} - _GLOBAL
    assert used <= options_of(words)


def overrides(words: list[str]) -> dict[str, str]:
    start = words.index("--parameter-overrides") + 1
    given = takewhile(lambda word: not word.startswith("--"), words[start:])
    return dict(re.findall(r"(\w+)=(\$\([^)]*\)|\S+)", " ".join(given)))


def test_the_first_deployment_has_every_parameter() -> None:
    first, later = (
        overrides(each)
        for each in commands()
        if each[:2] == ["cloudformation", "deploy"] and "deploy/ecs/chat.yaml" in each
    )
    # These have no default, and the access file is needed with the default of Access.
    assert set(first) == set(PARAMETERS)
    assert set(later) == {"Version"}
    assert Stack(**dict.fromkeys(first, "x")).broken_rules() == []


def test_each_parameter_that_the_document_names_exists() -> None:
    declared = set(load("chat.yaml")["Parameters"]) | set(load("network.yaml")["Parameters"])
    ecs = TEXT.partition("## ECS")[2].partition("\n## ")[0]
    assert set(re.findall(r"\b([A-Z][a-z][A-Za-z]*)=(?!=)", ecs)) <= declared


def test_each_output_that_the_document_reads_exists() -> None:
    stacks = {"chat": load("chat.yaml")["Outputs"], "chat-network": load("network.yaml")["Outputs"]}
    read = re.findall(r"\boutput (chat|chat-network) (\w+)", TEXT)
    assert len(read) >= 8
    for stack, output in read:
        assert output in stacks[stack]


def test_the_network_has_outputs_for_the_parameters() -> None:
    outputs = set(load("network.yaml")["Outputs"]) - {"Addresses"}
    assert outputs <= set(load("chat.yaml")["Parameters"])


def test_the_costs_add_up() -> None:
    # On a difference: python -m tests.deploy.ecs.costs
    table = TEXT.partition("<!-- costs: begin -->")[2].partition("<!-- costs: end -->")[0]
    # The head, and what the sizes are.
    assert table.strip().splitlines()[4:] == rows(prices(TEXT))


@pytest.mark.parametrize(("size", "processors"), [*zip(SIZES, (2, 2, 8), strict=True)])
def test_each_size_carries_its_load_without_a_zone(size: Size, processors: int) -> None:
    left = size.tasks * 2 // 3
    it = plan(Demand(requests=size.requests, lifetime_s=3600, size=300, nodes=left))
    # Of a processor that may be half of one of those that the model was measured on.
    assert it.node_cores <= 0.5
    whole = plan(Demand(requests=size.requests, lifetime_s=3600, size=300, nodes=size.tasks))
    assert max(it.primary_cores, whole.primary_cores) <= processors * 0.6
