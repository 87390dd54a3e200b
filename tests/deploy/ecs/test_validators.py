"""What cfn-lint says of the templates, and what moto makes of them."""

import json
import warnings
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from cfnlint import ManualArgs
from cfnlint.api import lint, lint_file
from moto import mock_aws

from tests.deploy.ecs.template import TEMPLATES, Json, Stack, load

#: Moto cannot make these. `test_numbers` looks at them in the template.
_UNKNOWN = {
    "AWS::SecretsManager::Secret",
    "AWS::ApplicationAutoScaling::ScalableTarget",
    "AWS::ApplicationAutoScaling::ScalingPolicy",
    "AWS::CloudWatch::Alarm",
}


@pytest.mark.parametrize("path", sorted(TEMPLATES.glob("*.yaml")), ids=lambda path: path.name)
def test_cfn_lint_finds_nothing(path: Any) -> None:
    # "I": advice counts, too.
    assert lint_file(path, config=ManualArgs(include_checks=["I"])) == []


def test_cfn_lint_finds_a_seeded_mistake() -> None:
    text = (TEMPLATES / "chat.yaml").read_text(encoding="utf-8")
    wrong = text.replace("HealthCheckPath:", "HealthcheckPath:")
    assert "HealthcheckPath" in str(lint(wrong, config=ManualArgs()))


class Aws:
    """The stacks of both templates, made by moto in this process."""

    def __init__(self) -> None:
        secrets = boto3.client("secretsmanager")
        self.uri, self.access, log_key = (
            secrets.create_secret(Name=name, SecretString="x")["ARN"]
            for name in ("chat/mongo-uri", "chat/access", "log-key")
        )
        certificate = boto3.client("acm").request_certificate(DomainName="chat.example.com")
        network = self._make("network", load("network.yaml"), {})
        self.addresses = network.pop("Addresses")
        self.network = network
        parameters = {
            **network,
            "Certificate": certificate["CertificateArn"],
            "MongoUriSecret": self.uri,
            "AccessSecret": self.access,
        }
        stack = Stack(**parameters)
        made = {
            name: each for name, each in stack.resources.items() if each["Type"] not in _UNKNOWN
        }
        template = {**stack.template, "Resources": _without(made, "LogKey", log_key)}
        self.log_key = log_key
        self.outputs = self._make("chat", template, stack.parameters)
        ecs = boto3.client("ecs")
        self.task = ecs.describe_task_definition(taskDefinition=self.outputs["Task"])[
            "taskDefinition"
        ]

    def _make(self, name: str, template: Json, parameters: Json) -> dict[str, str]:
        """Make a stack, and return its outputs."""
        stacks = boto3.client("cloudformation")
        stacks.create_stack(
            StackName=name,
            TemplateBody=json.dumps(template),
            Capabilities=["CAPABILITY_IAM"],
            Parameters=[
                {"ParameterKey": key, "ParameterValue": str(value)}
                for key, value in parameters.items()
            ],
        )
        (stack,) = stacks.describe_stacks(StackName=name)["Stacks"]
        assert stack["StackStatus"] == "CREATE_COMPLETE"
        return {each["OutputKey"]: each["OutputValue"] for each in stack["Outputs"]}


def _without(node: Json, name: str, value: str) -> Json:
    """Return a part of a template in which a value takes the place of references to a resource."""
    if node == {"Ref": name}:
        return value
    if isinstance(node, dict):
        return {key: _without(each, name, value) for key, each in node.items()}
    return [_without(each, name, value) for each in node] if isinstance(node, list) else node


@pytest.fixture(scope="module")
def aws() -> Iterator[Aws]:
    with pytest.MonkeyPatch.context() as patch, mock_aws(), warnings.catch_warnings():
        patch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
        # Moto's own code uses what botocore deprecates.
        warnings.simplefilter("ignore")
        yield Aws()


def test_the_secrets_come_from_secrets_manager(aws: Aws) -> None:
    (chat,) = aws.task["containerDefinitions"]
    assert {each["name"]: each["valueFrom"] for each in chat["secrets"]} == {
        "CHAT_MONGO_URI": aws.uri,
        "CHAT_LOG_USERNAME_KEY": aws.log_key,
        "ACCESS_TOML": aws.access,
    }


def test_the_start_may_read_only_these_secrets() -> None:
    stack = Stack()
    (policy,) = stack.properties("StartRole")["Policies"]
    allowed = {
        action: each["Resource"]
        for each in policy["PolicyDocument"]["Statement"]
        for action in ([each["Action"]] if isinstance(each["Action"], str) else each["Action"])
    }
    assert allowed.pop("secretsmanager:GetSecretValue") == [
        stack.parameters["MongoUriSecret"],
        {"Ref": "LogKey"},
        stack.parameters["AccessSecret"],
    ]
    assert allowed.pop("ecr:GetAuthorizationToken") == "*"
    images = "arn:${AWS::Partition}:ecr:${AWS::Region}:${AWS::AccountId}:repository/chat-inbox"
    logs = {"Fn::GetAtt": ["Logs", "Arn"]}
    assert {action: resource for action, resource in allowed.items() if resource != images} == {
        "logs:CreateLogStream": logs,
        "logs:PutLogEvents": logs,
    }


def test_the_containers_are_confined(aws: Aws) -> None:
    (chat,) = aws.task["containerDefinitions"]
    assert chat["readonlyRootFilesystem"]
    assert chat["user"] == "10001:10001"
    assert chat["linuxParameters"]["capabilities"] == {"drop": ["ALL"]}
    assert chat["linuxParameters"]["initProcessEnabled"]
    # The program itself may do nothing in AWS.
    assert "taskRoleArn" not in aws.task
    assert "TaskRoleArn" not in Stack().properties("Task")


def test_the_balancer_checks_whether_tasks_are_ready(aws: Aws) -> None:
    balancers = boto3.client("elbv2")
    (group,) = balancers.describe_target_groups()["TargetGroups"]
    assert group["HealthCheckPath"] == "/readyz"
    assert (group["TargetType"], group["Port"]) == ("ip", 8080)
    (listener,) = balancers.describe_listeners(LoadBalancerArn=group["LoadBalancerArns"][0])[
        "Listeners"
    ]
    assert (listener["Protocol"], listener["Port"]) == ("HTTPS", 443)
    assert listener["DefaultActions"][0]["TargetGroupArn"] == group["TargetGroupArn"]


def test_only_the_balancer_reaches_the_tasks(aws: Aws) -> None:
    groups = boto3.client("ec2").describe_security_groups()["SecurityGroups"]
    by_id = {each["GroupId"]: each for each in groups}
    (rule,) = by_id[aws.outputs["TaskSecurityGroup"]]["IpPermissions"]
    assert (rule["FromPort"], rule["ToPort"], rule["IpRanges"]) == (8080, 8080, [])
    (pair,) = rule["UserIdGroupPairs"]
    (public,) = by_id[pair["GroupId"]]["IpPermissions"]
    assert (public["FromPort"], public["ToPort"]) == (443, 443)
    # Moto leaves the rule for all egress in, which CloudFormation replaces by these.
    egress = Stack().properties("TaskSecurityGroup")["SecurityGroupEgress"]
    assert [(each["FromPort"], each["ToPort"]) for each in egress] == [(27015, 27017), (443, 443)]
    (to_tasks,) = Stack().properties("BalancerSecurityGroup")["SecurityGroupEgress"]
    assert (to_tasks["FromPort"], to_tasks["ToPort"]) == (8080, 8080)


def test_the_network_gives_what_the_service_asks_for(aws: Aws) -> None:
    subnets = boto3.client("ec2").describe_subnets()["Subnets"]
    by_id = {each["SubnetId"]: each for each in subnets}
    for name in ("BalancerSubnets", "TaskSubnets"):
        assert len({by_id[each]["AvailabilityZone"] for each in aws.network[name].split(",")}) == 3
    networks = [by_id[each]["CidrBlock"] for each in aws.network["BalancerSubnets"].split(",")]
    assert aws.network["BalancerNetworks"] == ",".join(networks)
    assert len(aws.addresses.split(",")) == 3


@pytest.mark.parametrize("zone", "ABC")
def test_no_zone_needs_another_zone_for_its_nat(zone: str) -> None:
    resources = {
        name: each.get("Properties") for name, each in load("network.yaml")["Resources"].items()
    }
    association = resources[f"PrivateRoutes{zone}"]
    (route,) = (
        each
        for each in resources.values()
        if each
        and each.get("RouteTableId") == association["RouteTableId"]
        and "NatGatewayId" in each
    )
    public = resources[resources[route["NatGatewayId"]["Ref"]]["SubnetId"]["Ref"]]
    private = resources[association["SubnetId"]["Ref"]]
    assert public["AvailabilityZone"] == private["AvailabilityZone"]


def test_ecs_accepts_the_service_and_the_task(aws: Aws) -> None:
    # Moto's CloudFormation leaves much of them out. Here, botocore checks each field.
    ecs = boto3.client("ecs")
    collector = {"CollectorImage": "collector@sha256:1", "NewRelicSecret": aws.uri}
    stack = Stack(Telemetry="newrelic", **collector, **aws.network)
    task = _lower(_text(stack.properties("Task")))
    task = ecs.register_task_definition(**task)["taskDefinition"]
    assert [each["name"] for each in task["containerDefinitions"]] == ["chat", "collector"]
    ecs.create_cluster(clusterName="cluster")
    properties = stack.properties("Service")
    properties |= {"TaskDefinition": task["taskDefinitionArn"], "Cluster": "cluster"}
    properties["LoadBalancers"][0]["TargetGroupArn"] = aws.outputs["Targets"]
    network = properties["NetworkConfiguration"]["AwsvpcConfiguration"]
    network["SecurityGroups"] = [aws.outputs["TaskSecurityGroup"]]
    # The API has another name for it.
    del properties["EnableECSManagedTags"]
    service = ecs.create_service(serviceName="chat", **_lower(_text(properties)))["service"]
    assert service["launchType"] == "FARGATE"
    assert service["networkConfiguration"]["awsvpcConfiguration"]["assignPublicIp"] == "DISABLED"


def test_a_deployment_keeps_all_tasks_and_can_go_back() -> None:
    # Moto does not keep it.
    assert Stack().properties("Service")["DeploymentConfiguration"] == {
        "MinimumHealthyPercent": 100,
        "MaximumPercent": 200,
        "DeploymentCircuitBreaker": {"Enable": True, "Rollback": True},
    }


def test_the_balancer_accepts_all_attributes(aws: Aws) -> None:
    balancers, stack = boto3.client("elbv2"), Stack()
    (group,) = balancers.describe_target_groups()["TargetGroups"]
    balancers.modify_target_group_attributes(
        TargetGroupArn=group["TargetGroupArn"],
        Attributes=stack.properties("Targets")["TargetGroupAttributes"],
    )
    balancers.modify_load_balancer_attributes(
        LoadBalancerArn=group["LoadBalancerArns"][0],
        Attributes=stack.properties("Balancer")["LoadBalancerAttributes"],
    )
    found = balancers.describe_target_group_attributes(TargetGroupArn=group["TargetGroupArn"])
    kept = {each["Key"]: each["Value"] for each in found["Attributes"]}
    assert kept.items() >= stack.attributes("Targets").items()


def _lower(node: Json) -> Json:
    """Return the properties of a resource with the names of ECS's API."""
    if isinstance(node, dict):
        return {
            # The names of a log driver's options stay as they are.
            key[0].lower() + key[1:]: each if key == "Options" else _lower(each)
            for key, each in node.items()
        }
    return [_lower(each) for each in node] if isinstance(node, list) else node


def _text(node: Json) -> Json:
    """Return properties in which references to other resources are text."""
    if isinstance(node, dict):
        if len(node) == 1 and (set(node) & {"Ref", "Fn::GetAtt", "Fn::Sub"}):
            return "reference"
        return {key: _text(each) for key, each in node.items()}
    return [_text(each) for each in node] if isinstance(node, list) else node
