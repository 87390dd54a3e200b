"""Values of the chart: wrong ones are refused with what to do, right ones arrive unchanged."""

import json
from pathlib import Path

import pytest
import yaml

from tests.deploy.helm import settings_schema
from tests.deploy.helm.manifests import Manifests, rendered, variant
from tests.deploy.helm.rendering import CHART, NAMESPACE, RELEASE, Refused, template
from tests.deploy.helm.tools import helm
from tests.support.dashboard import alerts, dashboard

#: Wrong values, and what Helm says of them.
WRONG = {
    "--set replica=3": "additional properties 'replica' not allowed",
    "--set settings.prot=80": "at '/settings': additional properties 'prot' not allowed",
    "--set settings.port=80": "additional properties 'port' not allowed",
    "--set settings.mongo_uri=x": "additional properties 'mongo_uri' not allowed",
    "--set settings.drain_delay_s=0": "at '/settings/drain_delay_s': minimum: got 0, want 5",
    "--set settings.processes=0": "at '/settings/processes': minimum: got 0, want 1",
    "--set settings.access=tokens": "additional properties 'access' not allowed",
    "--set settings.max_wait_s=soon": "at '/settings/max_wait_s': got string, want number",
    "--set access.mode=on": "at '/access/mode': value must be one of",
    "--set replicas=0": "at '/replicas': minimum: got 0, want 1",
    "--set podDisruptionBudget.maxUnavailable=0": "minimum: got 0, want 1",
    "--set networkPolicy.clients[0].namespace=x": "additional properties 'namespace' not allowed",
    "--set image.tag=1": "at '/image/tag': got number, want string",
    "--set image.repository=registry.example/chat:1": "at '/image/repository'",
    "--set image.repository=": "image.repository: name the image",
    "--set mongodb.existingSecret=": "mongodb: set existingSecret",
    "--set mongodb.uri=mongodb://db/": "set existingSecret or uri, not both",
    "--set mongodb.existingSecret= --set mongodb.uri=redis://db/": "at '/mongodb/uri'",
    "--set access.mode=tokens": "access.mode=tokens needs the access file",
    "--set access.existingSecret=x": "access.mode=off does not use the access file",
    "--set access.mode=jwt": "needs settings.jwt_issuer and settings.jwt_audience",
    "--set autoscaling.minReplicas=20": "minReplicas is greater than maxReplicas",
    "--set ingress.enabled=true": "ingress.hosts: name at least one host",
    "--set httpRoute.enabled=true": "httpRoute.parentRefs: name the Gateway",
    "--set telemetry.enabled=true": "set endpoint, or enable the sidecar",
    "--set telemetry.sidecar.enabled=true": "set telemetry.enabled, too",
}


@pytest.mark.parametrize("options", WRONG)
def test_wrong_values_are_refused_with_the_reason(options: str) -> None:
    with pytest.raises(Refused) as raised:
        rendered(options)
    assert WRONG[options] in str(raised.value)


def test_without_values_the_chart_says_what_it_needs() -> None:
    done = helm("template", RELEASE, str(CHART))
    assert done.returncode
    assert "image.repository: name the image that you have built and pushed" in done.stderr


def test_prometheus_needs_a_token_where_the_service_does() -> None:
    with pytest.raises(Refused, match="Prometheus needs a token that has the right `ops`"):
        rendered("--set monitoring.serviceMonitor.tokenSecret=", "atlas.yaml", "ingress.yaml")


def test_the_schema_lists_exactly_the_settings() -> None:
    schema = json.loads(settings_schema.SCHEMA.read_text(encoding="utf-8"))
    assert schema["properties"]["settings"] == settings_schema.described(), (
        "run: python -m tests.deploy.helm.settings_schema"
    )


def test_the_schema_knows_every_value() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))

    def names(schema: dict[str, object]) -> object:
        properties = schema.get("properties")
        if not isinstance(properties, dict):
            return None
        assert schema["additionalProperties"] is False
        return {name: names(each) for name, each in properties.items()}

    def known(given: object, told: object) -> None:
        if isinstance(told, dict):
            assert isinstance(given, dict)
            assert given.keys() <= told.keys()
            for name, value in given.items():
                known(value, told[name])

    schema = json.loads(settings_schema.SCHEMA.read_text(encoding="utf-8"))
    told = names(schema)
    assert isinstance(told, dict)
    known(values, told)
    # `global` is Helm's own, for a chart that includes this one.
    assert set(told) == {*values, "global"}


@pytest.mark.parametrize(
    "uri",
    [
        "mongodb://chat:p%40ss%2Fw%22rd%27$`{}#&*!|>-?@db1,db2/?replicaSet=rs0&w=majority",
        "mongodb+srv://chat:{{.Values}}%s\\n@cluster.example.mongodb.net/?appName=a:b",
        "mongodb://chät:geheimnü@db/?replicaSet=rs0",
    ],
)
def test_a_connection_string_arrives_unchanged(uri: str, tmp_path: Path) -> None:
    file = tmp_path / "values.yaml"
    file.write_text(json.dumps({"mongodb": {"uri": uri, "existingSecret": ""}}), encoding="utf-8")
    made = rendered(f"--values={file}")
    assert made.secret("mongo-uri") == uri
    everything_else = [each for each in made.objects if each["kind"] != "Secret"]
    password = uri.partition("@")[0].rpartition(":")[2]
    assert password not in json.dumps(everything_else, ensure_ascii=False)


def test_an_access_file_arrives_unchanged(tmp_path: Path) -> None:
    text = '[anonymous]\nsend = ["*"]\n\n[[token]]\nname = "wörker: {{ x }}"\nsha256 = "00"\n'
    file = tmp_path / "access.toml"
    file.write_text(text, encoding="utf-8")
    made = rendered(f"--set access.mode=tokens --set-file access.file={file}")
    assert made.secret("access.toml") == text
    assert made.settings().access_file == "/run/chat/access.toml"


def test_settings_arrive_unchanged(tmp_path: Path) -> None:
    given = {
        "trusted_proxies": ["10.0.0.0/8", "fd00::/8"],
        "allowed_hosts": ["chat.example.org"],
        "dead_letter": None,
        "mongo_database": "chat-1",
        "client_requests_per_s": 0.5,
        "storage_max_bytes": 123456789012,
        "log_level": "debug",
        "public_url": "https://chat.example.org/a?b={{c}}\"'",
        "max_text_bytes": 65536,
    }
    del given["dead_letter"]
    file = tmp_path / "values.yaml"
    file.write_text(json.dumps({"settings": given}), encoding="utf-8")
    settings = rendered(f"--values={file}").settings()
    assert settings.trusted_proxies == ("10.0.0.0/8", "fd00::/8")
    # Its own test asks the service by the name of its Service.
    assert settings.allowed_hosts == ("chat.example.org", f"{RELEASE}.{NAMESPACE}.svc")
    for name in given.keys() - {"trusted_proxies", "allowed_hosts"}:
        assert getattr(settings, name) == given[name], name


def test_only_what_needs_new_pods_replaces_them(tmp_path: Path) -> None:
    def pods(options: str) -> object:
        uri = "--set mongodb.existingSecret= --set mongodb.uri=mongodb://db/"
        return rendered(f"{uri} {options}").named("Deployment")["spec"]["template"]

    access = tmp_path / "access.toml"
    access.write_text("[anonymous]\n", encoding="utf-8")
    tokens = f"--set access.mode=tokens --set-file access.file={access}"
    before = pods(tokens)
    access.write_text('[anonymous]\nsend = ["*"]\n', encoding="utf-8")
    assert pods(tokens) == before
    assert pods("--set mongodb.uri=mongodb://db2/") != pods("")
    assert pods("--set settings.queue_max=1") != pods("")
    assert pods("--set autoscaling.maxReplicas=50") == pods("")


def test_two_releases_share_no_name_and_no_pod() -> None:
    one, other = (Manifests(template(("atlas.yaml",), release=name)) for name in ("a", "b"))

    def names(made: Manifests) -> set[tuple[str, str]]:
        return {(each["kind"], each["metadata"]["name"]) for each in made.objects}

    assert not names(one) & names(other)
    selectors = [
        made.named("Service", f"{name}-chat-inbox")["spec"]["selector"]
        for name, made in (("a", one), ("b", other))
    ]
    assert selectors[0] != selectors[1]
    long = Manifests(template(("atlas.yaml",), release="r" * 53))
    assert max(len(name) for _, name in names(long)) <= 63


def test_the_alerts_are_those_of_the_project() -> None:
    made = variant("ingress")
    source = yaml.safe_load(
        (CHART.parents[1] / "prometheus/alerts.yml").read_text(encoding="utf-8")
    )
    job = f"{NAMESPACE}/{RELEASE}"
    expected = json.loads(json.dumps(source).replace(r"job=\"chat-inbox\"", f'job=\\"{job}\\"'))
    spec = made.named("PrometheusRule")["spec"]
    assert spec == expected
    assert len(spec["groups"][0]["rules"]) == len(alerts())
    for rule in spec["groups"][0]["rules"]:
        assert f'job="{job}"' in rule["expr"]
        assert 'job="chat-inbox"' not in rule["expr"]
    (endpoint,) = made.named("ServiceMonitor")["spec"]["endpoints"]
    assert {"targetLabel": "job", "replacement": job} in endpoint["relabelings"]


def test_the_alerts_link_to_the_address_of_the_runbook() -> None:
    url = "https://ops.example.org/ops/runbook"
    option = f"--set monitoring.prometheusRule.runbookUrl={url}"
    spec = rendered(option, "atlas.yaml", "ingress.yaml").named("PrometheusRule")["spec"]
    for rule in spec["groups"][0]["rules"]:
        assert rule["annotations"]["runbook_url"].startswith(f"{url}#"), rule["alert"]


def test_the_dashboard_is_that_of_the_project() -> None:
    made = variant("ingress").named("ConfigMap", f"{RELEASE}-dashboard")
    assert json.loads(made["data"]["chat-inbox.json"]) == dashboard()
    # Kubernetes' limit for an object is a mebibyte.
    assert len(json.dumps(made)) < 2**19


def test_prometheus_selects_the_port_with_the_metrics() -> None:
    made = variant("ingress")
    monitor = made.named("ServiceMonitor")["spec"]
    services = [each for each in made.objects if each["kind"] == "Service"]
    selected = [
        each
        for each in services
        if monitor["selector"]["matchLabels"].items() <= each["metadata"]["labels"].items()
    ]
    (service,) = selected
    (port,) = service["spec"]["ports"]
    assert port["name"] == monitor["endpoints"][0]["port"]
    numbers = {each["name"]: each["containerPort"] for each in made.container["ports"]}
    assert numbers[port["targetPort"]] == made.settings().ops_port
    # What clients use has no way to that port.
    (public,) = made.named("Service")["spec"]["ports"]
    assert numbers[public["targetPort"]] == made.settings().port
    assert made.settings().ops == "off"


def test_the_network_policy_lets_out_only_what_is_needed() -> None:
    def ports(options: str, *files: str) -> set[int]:
        spec = rendered(options, *files).named("NetworkPolicy")["spec"]
        return {port["port"] for rule in spec["egress"] for port in rule["ports"]}

    assert ports("") == {53, 27015}
    jwt = "--set access.mode=jwt,settings.jwt_issuer=https://a,settings.jwt_audience=b"
    assert ports(jwt) == {53, 27015, 443}
    assert ports("", "operator.yaml", "newrelic.yaml") == {53, 27017, 443}
    direct = "--set telemetry.enabled=true,telemetry.endpoint="
    assert ports(f"{direct}http://otel.observability:4318") == {53, 27015, 4318}
    assert ports(f"{direct}https://otlp.example") == {53, 27015, 443}
    assert "NetworkPolicy" not in variant("small").kinds()


def test_the_own_certificate_changes_every_scheme() -> None:
    made = rendered("--set tls.secretName=chat-tls", "atlas.yaml", "ingress.yaml")
    assert made.settings().scheme == "https"
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert made.container[probe]["httpGet"]["scheme"] == "HTTPS"
    assert made.named("ServiceMonitor")["spec"]["endpoints"][0]["scheme"] == "https"
    found = made.named("Ingress")["metadata"]["annotations"]
    assert found["nginx.ingress.kubernetes.io/backend-protocol"] == "HTTPS"
    assert found["nginx.org/ssl-services"] == RELEASE
    environ = made.named("Pod", f"{RELEASE}-test")["spec"]["containers"][0]["env"]
    assert {"name": "SSL_CERT_FILE", "value": "/run/chat-tls/ca.crt"} in environ


def notes(options: str) -> str:
    """Return what Helm tells people after an installation."""
    done = helm(
        *("install", RELEASE, str(CHART), "--dry-run=client", f"--namespace={NAMESPACE}"),
        f"--values={CHART / 'examples/atlas.yaml'}",
        *options.split(),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.partition("NOTES:")[2]


def test_the_notes_name_the_next_steps_and_the_dangers() -> None:
    quiet = notes("")
    assert f"rollout status deployment/{RELEASE}" in quiet
    assert "WARNING" not in quiet
    public = "--set ingress.enabled=true,ingress.hosts={chat.example.org}"
    assert "everyone who reaches the service can read every inbox" in notes(public)
    assert "http://chat.example.org" in notes(public)
    tokens = "--set access.mode=tokens,access.existingSecret=x"
    assert "tokens travel in clear text" in notes(f"{public} {tokens}")
    safe = notes(f"{public} {tokens} --set ingress.tlsSecretName=tls")
    assert "WARNING" not in safe
    assert "https://chat.example.org" in safe
    assert "all clients count as one" in safe
    assert "with one pod" in notes("--set autoscaling.minReplicas=1")
    assert "no custom metrics" in notes("--set autoscaling.requestsPerSecond=1000")
