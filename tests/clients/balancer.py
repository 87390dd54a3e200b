"""The configuration of the balancer that is shipped, for nodes on this machine."""

from config.settings import PROJECT_ROOT


def balancer_configuration(*nodes: str) -> str:
    """Return `deploy/haproxy.cfg` for the nodes at these addresses, with `{port}` as its port.

    The places where it needs Docker are replaced. Each must occur exactly once.
    """
    configuration = (PROJECT_ROOT / "deploy" / "haproxy.cfg").read_text(encoding="utf-8")
    servers = "\n".join(f"    server node{number} {node}" for number, node in enumerate(nodes))
    for ours, here in (
        ("    bind :8080 ssl", "    bind 127.0.0.1:{port} ssl"),
        ("    bind :8080\n", "    bind 127.0.0.1:{port}\n"),
        ("    server-template chat 20 chat:8080", servers),
        # Docker's name server is not available here.
        ("resolvers containers resolve-prefer ipv4 init-addr none", ""),
    ):
        assert configuration.count(ours) == 1, ours
        configuration = configuration.replace(ours, here)
    return configuration
