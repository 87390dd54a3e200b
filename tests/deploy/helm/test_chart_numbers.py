"""Every number of the chart that must match another one."""

import json
import re
from pathlib import Path

import pytest

from chat_service.capacity.coefficients import NODE_FULL
from chat_service.handlers.stream import KEEP_ALIVE_S
from config.settings import PROJECT_ROOT, Settings
from tests.deploy.helm.manifests import Manifests, quantity, rendered, variant
from tests.deploy.helm.rendering import VARIANTS
from tests.deploy.helm.test_chart_is_valid import operators_objects
from workers.store.connection import BUILD_S
from workers.store.driver import open_client

DEFAULTS = Settings()
#: Bytes of a process and of a WebSocket: docs/operations.md#memory, docs/performance.md#figures.
PROCESS_BYTES, SOCKET_BYTES = 50 * 2**20, 20 * 2**10
#: Connections to a server beside the pool: the driver's monitor, and what measures round trips.
MONITORS, MEMBERS = 2, 3
#: Atlas: connections to each node of an M10, its smallest dedicated cluster, on 2026-11.
ATLAS_M10_CONNECTIONS = 1500
#: nginx and ingress-nginx close an idle connection to a pod after this many seconds, Envoy after an
#: hour.
NGINX_IDLE_S, ENVOY_IDLE_S = 60, 3600
#: Within this many seconds, the nodes and the ingress controller learn that a pod ends.
ENDPOINTS_S = 5
#: A process with telemetry takes up to this much longer to exit (docs/observability.md).
TELEMETRY_S = 3
#: How much longer than the drain a supervisor should wait (docs/operations.md#start-and-stop).
SUPERVISOR_S = 5

every_variant = pytest.mark.parametrize("name", VARIANTS)


def failing_s(probe: dict[str, int]) -> float:
    """Return the most seconds until a probe has failed for good."""
    return probe["periodSeconds"] * probe["failureThreshold"] + probe["timeoutSeconds"]


def longest_request_s(settings: Settings) -> float:
    """Return the seconds after which every request but a stream is answered."""
    return settings.max_wait_s + settings.deadline_s


def annotations(manifests: Manifests) -> dict[str, str]:
    """Return the annotations of the ingress."""
    found: dict[str, str] = manifests.named("Ingress")["metadata"]["annotations"]
    return found


def slow_drain() -> Manifests:
    """Return the manifests for settings far from the defaults."""
    return rendered(
        "--set settings.drain_delay_s=45,settings.drain_timeout_s=120,settings.max_wait_s=55 "
        "--set settings.deadline_s=60,settings.mongo_wait_s=300,settings.max_batch_bytes=16777216 "
        "--set settings.bodies_max_bytes=67108864 ",
        "atlas.yaml",
        "ingress.yaml",
    )


@every_variant
def test_the_service_accepts_the_settings(name: str) -> None:
    settings = variant(name).settings()
    assert settings.mongo_uri
    assert settings.host == settings.ops_host == "0.0.0.0"


@every_variant
def test_the_listed_settings_are_the_defaults(name: str) -> None:
    # Those that values.yaml repeats because the chart computes with them.
    settings = variant(name).settings()
    for each in (
        "drain_timeout_s",
        "max_wait_s",
        "deadline_s",
        "max_body_bytes",
        "max_batch_bytes",
    ):
        assert getattr(settings, each) == getattr(DEFAULTS, each), each
    assert settings.processes == DEFAULTS.processes


@pytest.mark.parametrize("manifests", [variant("everything"), slow_drain()], ids=["usual", "slow"])
def test_the_grace_period_covers_the_whole_drain(manifests: Manifests) -> None:
    settings = manifests.settings()
    drain_s = settings.drain_delay_s + settings.drain_timeout_s
    grace_s = manifests.pod["terminationGracePeriodSeconds"]
    assert grace_s >= drain_s + SUPERVISOR_S + TELEMETRY_S
    assert "preStop" not in json.dumps(manifests.pod)


@every_variant
def test_pods_leave_the_service_before_they_stop(name: str) -> None:
    manifests = variant(name)
    delay_s = manifests.settings().drain_delay_s
    assert failing_s(manifests.container["readinessProbe"]) < delay_s
    assert delay_s > ENDPOINTS_S


@pytest.mark.parametrize("manifests", [variant("atlas"), slow_drain()], ids=["usual", "slow"])
def test_the_startup_probe_outlasts_the_wait_for_the_database(manifests: Manifests) -> None:
    settings, probe = manifests.settings(), manifests.container["startupProbe"]
    allowed_s = probe["periodSeconds"] * probe["failureThreshold"]
    # Ten minutes for an index. If it takes longer, the database goes on without the pod.
    assert settings.mongo_wait_s + 600 <= allowed_s < BUILD_S
    assert manifests.named("Deployment")["spec"]["progressDeadlineSeconds"] > allowed_s


def test_a_busy_pod_is_not_restarted() -> None:
    probe = variant("atlas").container["livenessProbe"]
    # The alert for a slow event loop is a tenth of a second; a restart is for a process that hangs.
    assert failing_s(probe) >= 60 > 10 * DEFAULTS.deadline_s
    assert probe["timeoutSeconds"] >= DEFAULTS.deadline_s


@pytest.mark.parametrize(
    "manifests", [variant("ingress"), slow_drain(), variant("everything")], ids=["1", "2", "3"]
)
def test_the_ingress_waits_longer_than_any_request(manifests: Manifests) -> None:
    settings, found = manifests.settings(), annotations(manifests)
    for prefix in ("nginx.ingress.kubernetes.io/proxy-", "nginx.org/proxy-"):
        for kind in ("read", "send"):
            timeout_s = int(found[f"{prefix}{kind}-timeout"].removesuffix("s"))
            assert timeout_s > longest_request_s(settings)
            # A silent stream sends a comment that often.
            assert timeout_s > 2 * KEEP_ALIVE_S
        assert found[f"{prefix}next-upstream"] == "off"
    for size in ("nginx.ingress.kubernetes.io/proxy-body-size", "nginx.org/client-max-body-size"):
        assert int(found[size]) == max(settings.max_batch_bytes, settings.max_body_bytes)


@pytest.mark.parametrize(("name", "idle_s"), [("ingress", NGINX_IDLE_S), ("gateway", ENVOY_IDLE_S)])
def test_the_proxy_closes_idle_connections_first(name: str, idle_s: float) -> None:
    assert variant(name).settings().idle_timeout_s > idle_s


def test_the_gateway_limits_no_stream_and_repeats_nothing() -> None:
    (rule,) = variant("gateway").named("HTTPRoute")["spec"]["rules"]
    assert rule["timeouts"] == {"request": "0s"}
    assert rule["retry"] == {"attempts": 0}
    assert rendered("--set httpRoute.retry=null", "atlas.yaml", "gateway.yaml").named("HTTPRoute")[
        "spec"
    ]["rules"][0].keys() == rule.keys() - {"retry"}


@every_variant
def test_the_memory_suffices_for_all_limits(name: str) -> None:
    manifests = variant(name)
    settings, resources = manifests.settings(), manifests.container["resources"]
    working = settings.processes * (
        PROCESS_BYTES + settings.shards * settings.queue_max_bytes + settings.bodies_max_bytes
    )
    waiting = settings.processes * settings.waiters_max * SOCKET_BYTES
    (tmp,) = [each for each in manifests.pod["volumes"] if each["name"] == "tmp"]
    # In memory, and so counted.
    files = quantity(tmp["emptyDir"]["sizeLimit"])
    requested = quantity(resources["requests"]["memory"])
    assert requested > working + waiting + files
    # A quarter is left for clients that do not read their answers, and for the allocator.
    assert quantity(resources["limits"]["memory"]) > 1.25 * requested


@every_variant
def test_a_process_has_a_core(name: str) -> None:
    manifests = variant(name)
    resources = manifests.container["resources"]
    if name != "small":
        assert quantity(resources["requests"]["cpu"]) >= manifests.settings().processes
    assert quantity(resources["limits"]["cpu"]) > manifests.settings().processes


async def test_the_database_has_enough_connections() -> None:
    client = open_client("pymongo", "mongodb://db.invalid/")
    pool = client.options.pool_options.max_pool_size
    await client.close()
    assert pool is not None
    manifests = variant("everything")
    pods = manifests.named("HorizontalPodAutoscaler")["spec"]["maxReplicas"] + 1  # maxSurge
    each = manifests.settings().processes * (pool + MONITORS)
    assert pods * each < ATLAS_M10_CONNECTIONS


def test_waiting_clients_fit_into_the_files_of_a_container() -> None:
    # containerd's limit of open files for a container is systemd's, 524,288. Three quarters of the
    # connections may wait.
    assert DEFAULTS.waiters_max * 4 / 3 < 524_288
    # nginx reaches a pod from one address, which has 28,232 ports by default.
    assert DEFAULTS.waiters_max * 4 / 3 < 28_232


def test_a_full_log_evicts_no_pod() -> None:
    # Azure keeps five files of 50 MiB of each log, more than others do. They count as storage.
    logs = 5 * 50 * 2**20
    for container in (
        *variant("newrelic").pod["containers"],
        *variant("newrelic").pod["initContainers"],
    ):
        assert quantity(container["resources"]["limits"]["ephemeral-storage"]) > 2 * logs


def test_a_rolling_update_takes_no_pod_away() -> None:
    spec = variant("atlas").named("Deployment")["spec"]
    assert spec["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    # The autoscaler owns this number. With it, each upgrade would go back to it.
    assert "replicas" not in spec
    assert variant("small").named("Deployment")["spec"]["replicas"] == 1


def test_the_autoscaler_removes_pods_slowly() -> None:
    spec = variant("ingress").named("HorizontalPodAutoscaler")["spec"]
    down, up = spec["behavior"]["scaleDown"], spec["behavior"]["scaleUp"]
    drain_s = variant("ingress").pod["terminationGracePeriodSeconds"]
    assert down["stabilizationWindowSeconds"] >= 600
    assert all(each["type"] == "Pods" and each["value"] == 1 for each in down["policies"])
    assert all(each["periodSeconds"] > drain_s for each in down["policies"])
    assert up["stabilizationWindowSeconds"] == 0
    assert spec["minReplicas"] >= 3


def test_the_autoscaler_falls_back_to_the_processor() -> None:
    def metrics(name: str) -> list[str]:
        spec = variant(name).named("HorizontalPodAutoscaler")["spec"]
        return [each["type"] for each in spec["metrics"]]

    assert metrics("atlas") == ["ContainerResource"]
    assert metrics("ingress") == ["Pods", "ContainerResource"]


def test_a_pod_is_full_where_the_capacity_model_says() -> None:
    cpu = variant("ingress").named("HorizontalPodAutoscaler")["spec"]["metrics"][-1]
    utilization = cpu["containerResource"]["target"]["averageUtilization"]
    assert utilization == 100 * NODE_FULL


def test_the_adapter_offers_the_autoscalers_metric() -> None:
    text = (PROJECT_ROOT / "deploy/helm/prometheus-adapter.yaml").read_text(encoding="utf-8")
    (metric,) = variant("ingress").named("HorizontalPodAutoscaler")["spec"]["metrics"][:1]
    assert f"as: {metric['pods']['metric']['name']}\n" in text
    # Its range has several scrapes in it, or a missed one would look like a fall of the load.
    interval = variant("ingress").named("ServiceMonitor")["spec"]["endpoints"][0]["interval"]
    (minutes,) = re.findall(r"\[(\d+)m\]", text)
    assert int(minutes) * 60 >= 4 * int(interval.removesuffix("s"))


def test_one_pod_at_a_time_may_be_evicted() -> None:
    for name in VARIANTS:
        spec = variant(name).named("PodDisruptionBudget")["spec"]
        # Not minAvailable, which with one pod lets no node be drained.
        assert spec["maxUnavailable"] == 1
        assert spec["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
        assert "minAvailable" not in spec


def test_the_operators_example_says_what_operations_says() -> None:
    page = (PROJECT_ROOT / "docs/database.md").read_text(encoding="utf-8")
    (mongo,) = [each for each in operators_objects() if each["kind"] == "MongoDBCommunity"]
    spec = mongo["spec"]
    role = json.loads(re.findall(r"runCommand\((\{\s+\"createRole\".*?\n\})\)", page, re.DOTALL)[0])
    (ours,) = spec["security"]["roles"]
    assert ours["role"] == role["createRole"]
    assert ours["privileges"] == role["privileges"]
    (settings,) = re.findall(r"Object\.assign\(config\.settings, \{(.*?)\}\)", page)
    told = {name: int(value) for name, value in re.findall(r"(\w+): (\d+)", settings)}
    assert spec["automationConfig"]["replicaSet"]["settings"] == told
    assert spec["members"] == MEMBERS
    # The chart uses what the operator makes.
    ours, mounted = variant("operator").pod, spec["users"][0]
    assert mounted["connectionStringSecretName"] in json.dumps(ours["volumes"])
    folder = variant("operator").container["volumeMounts"]
    (ca,) = [each["mountPath"] for each in folder if each["name"] == "mongo-ca"]
    assert mounted["additionalConnectionStringConfig"]["tlsCAFile"] == f"{ca}/ca.crt"
    cache_gb = spec["additionalMongodConfig"]["storage.wiredTiger.engineConfig.cacheSizeGB"]
    template = spec["statefulSet"]["spec"]["template"]["spec"]
    assert (
        cache_gb * 2**30 <= quantity(template["containers"][0]["resources"]["limits"]["memory"]) / 2
    )


def test_large_numbers_stay_whole(tmp_path: Path) -> None:
    # Helm reads the numbers of a file as floats, and could write 6.7108864e+07.
    file = tmp_path / "values.yaml"
    file.write_text("settings: {bodies_max_bytes: 67108864}", encoding="utf-8")
    assert rendered(f"--values={file}").environ["CHAT_BODIES_MAX_BYTES"] == "67108864"
    assert slow_drain().settings().max_batch_bytes == 16777216
