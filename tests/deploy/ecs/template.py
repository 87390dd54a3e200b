"""The templates of deploy/ecs as they are for given parameters, with their conditions decided."""

import re
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeAlias

from cfnlint.decode import cfn_yaml

ROOT = Path(__file__).parents[3]
TEMPLATES = ROOT / "deploy" / "ecs"

#: A template, or a part of one: what JSON can express.
Json: TypeAlias = Any

_ARN = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:"
#: Values of the parameters that have no default.
PARAMETERS = {
    "Version": "1.0.0",
    "Network": "vpc-1",
    "BalancerSubnets": "subnet-1,subnet-2,subnet-3",
    "BalancerNetworks": "10.40.0.0/24,10.40.1.0/24,10.40.2.0/24",
    "TaskSubnets": "subnet-4,subnet-5,subnet-6",
    "Domain": "chat.example.com",
    "Certificate": "arn:aws:acm:eu-central-1:123456789012:certificate/1",
    "MongoUriSecret": _ARN + "mongo-uri",
    "AccessSecret": _ARN + "access",
}
_NO_VALUE = {"Ref": "AWS::NoValue"}


def load(name: str) -> Json:
    """Return a template. Functions are dictionaries, such as `{"Ref": "Network"}`."""
    return _plain(cfn_yaml.load(str(TEMPLATES / name)))


class Stack:
    """The template chat.yaml with its parameters and conditions replaced by their values."""

    def __init__(self, **parameters: str) -> None:
        """Set some parameters to other values than their defaults, and those of `PARAMETERS`."""
        self.template = load("chat.yaml")
        declared = self.template["Parameters"]
        assert not set(parameters) - set(declared)
        defaults = {name: each["Default"] for name, each in declared.items() if "Default" in each}
        self.parameters: dict[str, Json] = {**defaults, **PARAMETERS, **parameters}
        assert set(self.parameters) == set(declared)
        self.conditions = {
            name: self._decide(each) for name, each in self.template["Conditions"].items()
        }
        #: By their logical names, as they are in the template, but with conditions decided.
        self.resources: dict[str, Json] = {
            name: self._decided(each)
            for name, each in self.template["Resources"].items()
            if self.conditions.get(each.get("Condition"), True)
        }

    def properties(self, name: str) -> Json:
        """Return the properties of a resource, with parameters replaced by their values."""
        return self._valued(self.resources[name]["Properties"])

    def container(self, name: str = "chat") -> Json:
        """Return the definition of a container of the task."""
        (found,) = (
            each for each in self.properties("Task")["ContainerDefinitions"] if each["Name"] == name
        )
        return found

    def environment(self, container: str = "chat") -> dict[str, str]:
        """Return the plain variables of a container."""
        return {
            each["Name"]: str(each["Value"]) for each in self.container(container)["Environment"]
        }

    def attributes(self, name: str) -> dict[str, str]:
        """Return the attributes of the balancer or of its target group."""
        properties = self.properties(name)
        pairs = properties.get("LoadBalancerAttributes") or properties["TargetGroupAttributes"]
        return {each["Key"]: each["Value"] for each in pairs}

    def broken_rules(self) -> list[str]:
        """Return what the template's rules say against the parameters."""
        return [
            each["AssertDescription"]
            for rule in self.template["Rules"].values()
            if self._decide(rule["RuleCondition"])
            for each in rule["Assertions"]
            if not self._decide(each["Assert"])
        ]

    def _decide(self, condition: Json) -> bool:
        ((function, value),) = condition.items()
        match function:
            case "Fn::Equals":
                left, right = (self._valued(each) for each in value)
                return str(left) == str(right)
            case "Fn::Not":
                return not self._decide(value[0])
            case "Fn::Or":
                return any(self._decide(each) for each in value)
        raise AssertionError(function)

    def _decided(self, node: Json) -> Json:
        """Return a part of the template without `Fn::If` and `AWS::NoValue`."""
        if isinstance(node, dict):
            if set(node) == {"Fn::If"}:
                name, yes, no = node["Fn::If"]
                return self._decided(yes if self.conditions[name] else no)
            items = {key: self._decided(each) for key, each in node.items()}
            return {key: each for key, each in items.items() if each != _NO_VALUE}
        if isinstance(node, list):
            return [each for each in map(self._decided, node) if each != _NO_VALUE]
        return node

    def _valued(self, node: Json) -> Json:
        """Return a part of the template in which parameters have their values."""
        if isinstance(node, dict):
            if set(node) == {"Ref"} and node["Ref"] in self.parameters:
                value = self.parameters[node["Ref"]]
                kind = self.template["Parameters"][node["Ref"]]["Type"]
                is_list = kind == "CommaDelimitedList" or kind.startswith("List<")
                return value.split(",") if is_list else value
            if set(node) == {"Fn::Sub"}:
                known = self.parameters
                return re.sub(
                    r"\$\{(\w+)\}",
                    lambda found: str(known.get(found[1], found[0])),
                    node["Fn::Sub"],
                )
            if set(node) == {"Fn::Join"}:
                separator, parts = node["Fn::Join"]
                return separator.join(self._valued(parts))
            return {key: self._valued(each) for key, each in node.items()}
        if isinstance(node, list):
            return [self._valued(each) for each in node]
        return node


def _plain(node: Json) -> Json:
    """Return what cfn-lint has read as plain dictionaries, lists, strings and numbers."""
    if isinstance(node, dict):
        return {str(key): _plain(each) for key, each in node.items()}
    if isinstance(node, list):
        return [_plain(each) for each in node]
    return str(node) if isinstance(node, str) else deepcopy(node)
