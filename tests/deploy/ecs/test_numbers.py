"""The numbers of the template fit each other, the settings' defaults, and what was measured."""

import re
from functools import cache

from chat_service.handlers.stream import KEEP_ALIVE_S
from chat_service.server.listener import _SPARE_DESCRIPTORS
from chat_service.supervisor import _OVERTIME_S
from config import Settings
from tests.deploy.ecs.template import ROOT, Stack

DEFAULTS = Settings()
KIB, MIB = 1 << 10, 1 << 20


@cache
def stack() -> Stack:
    return Stack()


#: The longest outage while MongoDB elects a primary, with the settings that docs/database.md
#: advises; docs/reliability.md has the measurements.
_OUTAGE_S = 12


def drain_delay_s() -> float:
    return float(stack().environment()["CHAT_DRAIN_DELAY_S"])


def test_a_task_is_not_killed_while_it_drains() -> None:
    drained_s = drain_delay_s() + DEFAULTS.drain_timeout_s + _OVERTIME_S
    # Twice, because sending the last traces and closing the database may take some time.
    assert drained_s + _OVERTIME_S <= stack().container()["StopTimeout"]
    # The longest that Fargate allows.
    assert stack().container()["StopTimeout"] <= 120


def test_an_election_of_the_database_replaces_no_task() -> None:
    targets, check = stack().properties("Targets"), stack().container()["HealthCheck"]
    assert (
        targets["HealthCheckIntervalSeconds"] * (targets["UnhealthyThresholdCount"] - 1) > _OUTAGE_S
    )
    assert check["Interval"] * (check["Retries"] - 1) > _OUTAGE_S
    assert targets["HealthCheckTimeoutSeconds"] < targets["HealthCheckIntervalSeconds"]


def test_a_task_is_deregistered_after_its_longest_request() -> None:
    longest_s = DEFAULTS.max_wait_s + DEFAULTS.deadline_s
    delay_s = int(stack().attributes("Targets")["deregistration_delay.timeout_seconds"])
    assert delay_s > longest_s


def test_only_the_balancer_closes_idle_connections() -> None:
    idle_s = int(stack().attributes("Balancer")["idle_timeout.timeout_seconds"])
    # The service would close a connection on which a request is already on its way.
    assert idle_s < DEFAULTS.idle_timeout_s
    assert "CHAT_IDLE_TIMEOUT_S" not in stack().environment()
    # The service is silent for so long at most while a client waits.
    assert idle_s > DEFAULTS.max_wait_s + DEFAULTS.deadline_s
    assert idle_s > 2 * KEEP_ALIVE_S
    assert idle_s > DEFAULTS.write_timeout_s


def test_a_start_waits_for_the_database_unharmed() -> None:
    wait_s = float(stack().environment()["CHAT_MONGO_WAIT_S"])
    check = stack().container()["HealthCheck"]
    assert wait_s < check["StartPeriod"]
    assert check["StartPeriod"] <= stack().properties("Service")["HealthCheckGracePeriodSeconds"]


def documented_memory() -> tuple[float, float, float]:
    """Return the bytes of a process, an idle connection and a waiting client, as documented."""
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    memory = text[text.index("### Memory\n") :]
    process = re.search(r"^- ([\d.]+) MiB;$", memory, re.M)
    connection = re.search(
        r"^- ([\d.]+) KiB for an idle connection, up to ([\d.]+) KiB for a WebSocket ", memory, re.M
    )
    assert process is not None
    assert connection is not None
    return float(process[1]) * MIB, float(connection[1]) * KIB, float(connection[2]) * KIB


def test_the_memory_holds_all_that_the_settings_allow() -> None:
    container, task = stack().container(), stack().properties("Task")
    (files,) = container["Ulimits"]
    assert files["SoftLimit"] == files["HardLimit"]
    connections = files["HardLimit"] - _SPARE_DESCRIPTORS
    waiting = min(DEFAULTS.waiters_max, connections)
    # A process, its queues and bodies, and its connections.
    process, idle, waiter = documented_memory()
    used = (
        process
        + DEFAULTS.shards * DEFAULTS.queue_max_bytes
        + DEFAULTS.bodies_max_bytes
        + waiting * waiter
        + (connections - waiting) * idle
    )
    (directory,) = container["LinuxParameters"]["Tmpfs"]
    used += directory["Size"] * MIB
    used += (
        Stack(Telemetry="otlp", CollectorImage="collector").container("collector")["Memory"] * MIB
    )
    # The rest is for clients that do not read, with a megabyte each.
    assert used + 512 * MIB < int(task["Memory"]) * MIB


def test_a_process_has_a_processor_of_its_own() -> None:
    cpu = int(stack().properties("Task")["Cpu"])
    assert cpu == 1024 * int(stack().environment()["CHAT_PROCESSES"])


def test_scaling_aims_below_the_measured_capacity() -> None:
    figures = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    # What a request costs when a process gets 1,000 of them a second.
    row = re.search(r"^\| 1,000 requests/s, .* \| the service \| .* \| (\d+) µs \| ", figures, re.M)
    assert row is not None
    per_s = (
        float(
            stack().properties("ScalingPolicy")["TargetTrackingScalingPolicyConfiguration"][
                "TargetValue"
            ]
        )
        / 60
    )
    assert per_s <= 1000
    assert per_s * int(row[1]) / 1e6 <= 0.6


def test_scaling_is_slow_to_remove_tasks() -> None:
    policy = stack().properties("ScalingPolicy")["TargetTrackingScalingPolicyConfiguration"]
    metric = policy["PredefinedMetricSpecification"]
    assert metric["PredefinedMetricType"] == "ALBRequestCountPerTarget"
    assert "Balancer.LoadBalancerFullName" in str(metric["ResourceLabel"])
    assert "Targets.TargetGroupFullName" in str(metric["ResourceLabel"])
    assert policy["ScaleInCooldown"] >= 10 * policy["ScaleOutCooldown"]
    assert stack().properties("Scaling")["MinCapacity"] >= 3
    # Each deployment would set it, and undo what scaling has decided.
    assert "DesiredCount" not in stack().properties("Service")


def test_every_alert_reports_to_the_topic() -> None:
    for parameters, actions in (({}, []), ({"AlertTopic": "arn:aws:sns:1"}, ["arn:aws:sns:1"])):
        alerts = {
            name: each["Properties"]
            for name, each in Stack(**parameters).resources.items()
            if each["Type"] == "AWS::CloudWatch::Alarm"
        }
        assert len(alerts) == 5
        for name in alerts:
            properties = Stack(**parameters).properties(name)
            assert properties["AlarmActions"] == properties["OKActions"] == actions


def test_the_alert_for_slow_answers_can_be_off() -> None:
    assert "SlowAlert" not in Stack(SlowAfterSeconds="0").resources


def test_metrics_are_closed_unless_someone_scrapes_them() -> None:
    assert "MonitoringIngress" not in stack().resources
    opened = Stack(MonitoringSecurityGroup="sg-1").properties("MonitoringIngress")
    assert (opened["FromPort"], opened["SourceSecurityGroupId"]) == (9090, "sg-1")
    assert opened["FromPort"] == int(stack().environment()["CHAT_OPS_PORT"])
    assert stack().environment()["CHAT_OPS"] == "off"
