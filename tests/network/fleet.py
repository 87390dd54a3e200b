"""A replica set and nodes of the service on hosts of their own: `tests.network.hosts` joins them.

From a script, as root, in the environment of the tests, with PYTHONPATH=.:clients/python:

    async def main() -> None:
        with tempfile.TemporaryDirectory() as folder:
            async with Fleet(Path(folder), members=3, nodes=2) as fleet:
                fleet.delay_nodes(0.005)      # 10 ms of round trip between each node and member
                fleet.delay_members(0.0005)   # 1 ms between the members
                node = fleet.server(0, CHAT_SHARDS="8")
                with node:                    # starts it, and kills it at the end
                    print(node.base)          # http://198.18.x.y:port, for clients on this host
                    primary = fleet.cluster.host(await fleet.cluster.primary())
                    fleet.network.drop(primary, fleet.nodes[0])   # one way
                    fleet.network.heal()

A load generator that runs on the node's own host, with the prefix
`fleet.network.host(fleet.nodes[0]).prefix`, puts no load on the hub. To compare two checkouts, give
each its own server with `PYTHONPATH=code_path(checkout)` and `CHAT_MONGO_DATABASE`; both may be on
one host. A fleet of one member (`members=1`) has no round trips between members.
"""

import itertools
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path

from tests.faults.mongod_cluster import ReplicaSet, free_port
from tests.network.hosts import Network
from tests.support.server import Server

#: The replica set's settings that docs/database.md recommends for a short failover.
SHORT_FAILOVER: Mapping[str, int] = {
    "electionTimeoutMillis": 4000,
    "catchUpTimeoutMillis": 1000,
    "heartbeatTimeoutSecs": 3,
    "heartbeatIntervalMillis": 1000,
}
#: How often the kernel of a member's host repeats a packet that is not confirmed, as recommended
#: there: by default a secondary waits 30 s until a silent primary confirms its progress, and
#: meanwhile a majority has new writes only once a second.
_TCP_RETRIES = 4


class Fleet:
    """A replica set, and hosts for nodes. Use as an async context.

    `members` and `nodes` are the names of the hosts. It does not end the nodes that were started.
    """

    def __init__(
        self,
        folder: Path,
        *,
        members: int = 3,
        nodes: int = 2,
    ) -> None:
        self._folder = folder
        self._numbers = itertools.count()
        self.members = tuple(f"member-{number}" for number in range(members))
        self.nodes = tuple(f"node-{number}" for number in range(nodes))
        self.network = Network(folder, (*self.members, *self.nodes))
        self.cluster: ReplicaSet

    async def __aenter__(self) -> "Fleet":
        async with AsyncExitStack() as stack:
            stack.enter_context(self.network)
            hosts = [self.network.host(name) for name in self.members]
            for host in hosts:
                self.network.set_kernel(host, "net/ipv4/tcp_retries2", str(_TCP_RETRIES))
            self.cluster = ReplicaSet(self._folder, hosts, SHORT_FAILOVER)
            await stack.enter_async_context(self.cluster)
            await self.cluster.complete()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def server(self, node: int, *arguments: str, **environ: str) -> Server:
        """Return a service of one process on a node's host, not yet started."""
        host = self.network.host(self.nodes[node])
        folder = self._folder / f"server-{next(self._numbers)}"
        folder.mkdir()
        server = Server(
            folder,
            *("--host", host.address, "--processes", "1", "--mongo-uri", self.cluster.uri),
            *arguments,
            port=free_port(),
            **environ,
        )
        server.wrapper = host.prefix
        return server

    def delay_nodes(self, seconds: float) -> None:
        """Delay what nodes and members send to each other, one way."""
        for node in self.nodes:
            for member in self.members:
                self.network.link_delay(node, member, seconds)

    def delay_members(self, seconds: float) -> None:
        """Delay what members send to each other, one way."""
        for one, other in itertools.combinations(self.members, 2):
            self.network.link_delay(one, other, seconds)
