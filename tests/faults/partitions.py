"""Partitions of the network between two nodes of the service and a replica set of three.

Scenarios of `tests.faults.scenarios`, on the hosts of `tests.network.fleet`. Each gets a `Testbed`
under load, keeps a partition for so many seconds, and heals it. Clients reach both nodes at all
times.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from itertools import product
from typing import NamedTuple, TypeAlias

from tests.faults.testbed import Testbed

#: What is sent on these paths is dropped, each given as (sender, receiver).
Paths: TypeAlias = set[tuple[str, str]]
#: After this time requests that were on their way when a partition began have ended, in seconds.
_IN_FLIGHT_S = 1.0


class Hosts(NamedTuple):
    """The names of the hosts when the partition begins."""

    primary: str
    secondaries: tuple[str, ...]
    nodes: tuple[str, ...]


class Partition(NamedTuple):
    """What is dropped, which nodes find no primary until it is healed, and who elects another.

    If `is_deposed`, the primary must lose its office while the partition lasts.
    """

    cut: Callable[[Hosts], Paths]
    nodes_cut: tuple[int, ...] = ()
    is_deposed: bool = False


def _both(some: Iterable[str], others: Iterable[str]) -> Paths:
    return {path for one, other in product(some, others) for path in ((one, other), (other, one))}


def _from_primary(hosts: Hosts) -> Paths:
    return set(product((hosts.primary,), (*hosts.secondaries, *hosts.nodes)))


def _to_primary(hosts: Hosts) -> Paths:
    return set(product((*hosts.secondaries, *hosts.nodes), (hosts.primary,)))


def _from_node(hosts: Hosts) -> Paths:
    return set(product(hosts.nodes[:1], (hosts.primary, *hosts.secondaries)))


def _to_node(hosts: Hosts) -> Paths:
    return set(product((hosts.primary, *hosts.secondaries), hosts.nodes[:1]))


def _nodes_from_primary(hosts: Hosts) -> Paths:
    return _both((hosts.primary,), hosts.nodes)


def _bridge(hosts: Hosts) -> Paths:
    return _both((hosts.primary,), hosts.secondaries[:1])


PARTITIONS: Mapping[str, Partition] = {
    "primary": Partition(lambda at: _from_primary(at) | _to_primary(at), is_deposed=True),
    "primary-mute": Partition(_from_primary, is_deposed=True),
    "primary-deaf": Partition(_to_primary, is_deposed=True),
    "node-mute": Partition(_from_node, nodes_cut=(0,)),
    "node-deaf": Partition(_to_node, nodes_cut=(0,)),
    "nodes": Partition(_nodes_from_primary, nodes_cut=(0, 1)),
    "bridge": Partition(_bridge),
}


def partition(name: str) -> Callable[[Testbed, int], Awaitable[None]]:
    """Return the scenario of one partition."""

    async def act(testbed: Testbed, times: int) -> None:
        await _part(testbed, PARTITIONS[name], times)

    act.__doc__ = f"Keep the partition `{name}` for this many seconds, and heal it."
    return act


async def all_in_turn(testbed: Testbed, times: int) -> None:
    """Keep each partition for this many seconds, or until the nodes serve. Heal it each time."""
    for what in PARTITIONS.values():
        await _part(testbed, what, times)


async def _part(testbed: Testbed, what: Partition, seconds: float) -> None:
    """Keep a partition for so many seconds, and until each node serves that can. Heal it.

    Record each node's outage: the longest time without an accepted post, from the beginning on, or
    from the healing on if the node found no primary before.
    """
    cluster, network, clients = testbed.cluster, testbed.fleet.network, testbed.clients
    primary = await cluster.primary()
    hosts = Hosts(
        cluster.host(primary),
        tuple(cluster.host(port) for port in await cluster.secondaries()),
        testbed.fleet.nodes,
    )
    ports = {number: server.port for number, server in enumerate(testbed.servers)}
    await testbed.run_load()
    network.drop_all(what.cut(hosts))
    began = time.monotonic()
    await asyncio.sleep(seconds)
    for number, port in ports.items():
        if number not in what.nodes_cut:
            await clients.first_success(began, port)
    if what.is_deposed:
        testbed.require(await cluster.primary() != primary, "another primary is elected")
    healed = time.monotonic()
    network.heal()
    for port in ports.values():
        await clients.first_success(healed, port)
    # A member that returns must not disturb them again.
    await cluster.complete()
    await testbed.run_load()
    ended = time.monotonic()
    for number, port in ports.items():
        is_cut = number in what.nodes_cut
        testbed.recovery_times.append(clients.outage(port, healed if is_cut else began, ended))
        accepted = sum(
            answer.status == 201
            and answer.port == port
            and began + _IN_FLIGHT_S < answer.began < answer.ended < healed
            for answer in clients.answers
        )
        testbed.require(
            bool(accepted) != is_cut,
            f"node {number}, {'cut off' if is_cut else 'not cut off'}, accepted {accepted} posts",
        )
