"""Three real mongods as one replica set, on loopback or on hosts. Each can be killed and paused."""

import asyncio
import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pymongo import AsyncMongoClient
from pymongo.errors import PyMongoError

from tests.network.hosts import LOOPBACK, Host
from workers.mongod.embedded import find_mongod


class ReplicaSet:
    """Members that are known by their ports, which all differ. Use as an async context."""

    def __init__(
        self,
        folder: Path,
        hosts: Sequence[Host] = (LOOPBACK, LOOPBACK, LOOPBACK),
        settings: Mapping[str, int] | None = None,
        arguments: Sequence[str] = (),
    ) -> None:
        """One member runs on each host, with these arguments. `settings` change MongoDB's default
        election settings.
        """
        self._arguments = arguments
        self._folder = folder
        self._hosts = {free_port(): host for host in hosts}
        self._ports = list(self._hosts)
        self._settings = dict(settings or {})
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self.uri = f"mongodb://{','.join(map(self._address, self._ports))}/?replicaSet=chaos"

    async def __aenter__(self) -> "ReplicaSet":
        for port in self._ports:
            self.start(port)
        configuration = {
            "_id": "chaos",
            "members": [
                {"_id": number, "host": self._address(port)}
                for number, port in enumerate(self._ports)
            ],
            "settings": self._settings,
        }
        client: AsyncMongoClient[Any] = AsyncMongoClient(
            self._address(self._ports[0]), directConnection=True
        )
        async with asyncio.timeout(90):
            while True:
                with contextlib.suppress(PyMongoError):
                    await client.admin.command("replSetInitiate", configuration)
                    break
                await asyncio.sleep(0.1)
        await client.close()
        await self.primary()
        return self

    async def __aexit__(self, *_: object) -> None:
        for process in self._processes.values():
            process.send_signal(signal.SIGCONT)
            process.kill()
        for process in self._processes.values():
            process.wait()

    def start(self, port: int) -> None:
        """Start or restart a member."""
        data = self._folder / f"member-{port}"
        data.mkdir(mode=0o700, exist_ok=True)
        host = self._hosts[port]
        self._processes[port] = subprocess.Popen(
            [
                *(*host.prefix, find_mongod("")),
                *("--dbpath", str(data), "--port", str(port), "--bind_ip", host.address),
                *("--replSet", "chaos", "--networkMessageCompressors", "disabled"),
                *("--wiredTigerCacheSizeGB", "0.25", "--oplogSize", "256", "--nounixsocket"),
                *("--logpath", str(data / "mongod.log"), "--logappend", "--quiet"),
                *self._arguments,
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def pid(self, port: int) -> int:
        """Return the id of a member's process."""
        return self._processes[port].pid

    def host(self, port: int) -> str:
        """Return the name of the host of a member."""
        return self._hosts[port].name

    def _address(self, port: int) -> str:
        return f"{self._hosts[port].address}:{port}"

    async def primary(self) -> int:
        """Return the primary's port, once there is one with a majority."""
        client: AsyncMongoClient[Any] = AsyncMongoClient(
            self.uri, serverSelectionTimeoutMS=500, w="majority"
        )
        async with asyncio.timeout(90):
            while True:
                try:
                    await client.chaos.probe.update_one({"_id": 0}, {"$inc": {"n": 1}}, upsert=True)
                    address = await client.primary
                    if address is not None:
                        await client.close()
                        return address[1]
                except PyMongoError:
                    await asyncio.sleep(0.05)

    async def complete(self) -> None:
        """Wait until every member has a write that is made now.

        A killed member calls itself a secondary before it rolls back the writes that only it had.
        Until it has done that, it does not count, and killing another member would leave one of
        three. A member that is stuck in this state, as MongoDB 6.0.5 sometimes is, is restarted.
        """
        client: AsyncMongoClient[Any] = AsyncMongoClient(
            self.uri, serverSelectionTimeoutMS=500, w=len(self._ports), wTimeoutMS=2000
        )
        began = time.monotonic()
        async with asyncio.timeout(120):
            while True:
                with contextlib.suppress(PyMongoError):
                    await client.chaos.probe.update_one({"_id": 0}, {"$inc": {"n": 1}}, upsert=True)
                    break
                if time.monotonic() > began + 20:
                    began = time.monotonic()
                    with contextlib.suppress(PyMongoError):
                        await self._restart_stuck(client)
                await asyncio.sleep(0.1)
        await client.close()

    async def _restart_stuck(self, client: AsyncMongoClient[Any]) -> None:
        status = await client.admin.command("replSetGetStatus")
        states = {member["name"]: member["stateStr"] for member in status["members"]}
        sys.stderr.write(f"a member does not recover; restarting it: {states}\n")
        for name, state in states.items():
            if state not in ("PRIMARY", "SECONDARY"):
                port = int(name.rpartition(":")[2])
                self.kill(port)
                self.start(port)

    async def secondaries(self) -> list[int]:
        """Return the ports of the secondaries."""
        primary = await self.primary()
        return [port for port in self._ports if port != primary]

    def kill(self, port: int) -> None:
        """SIGKILL a member."""
        self._processes[port].kill()
        self._processes[port].wait()

    def pause(self, port: int) -> None:
        """SIGSTOP a member."""
        self._processes[port].send_signal(signal.SIGSTOP)

    def resume(self, port: int) -> None:
        """SIGCONT a member."""
        self._processes[port].send_signal(signal.SIGCONT)

    async def elect(self, port: int) -> None:
        """Make a member the primary, and wait until it is."""
        client: AsyncMongoClient[Any] = AsyncMongoClient(self._address(port), directConnection=True)
        async with asyncio.timeout(90):
            while not (await client.admin.command("hello"))["isWritablePrimary"]:
                # It may not have the last writes yet.
                with contextlib.suppress(PyMongoError):
                    await client.admin.command("replSetStepUp")
        await client.close()

    async def step_down(self) -> float:
        """Make the primary step down, as for maintenance. Return the moment at which it did."""
        before = await self.primary()
        client: AsyncMongoClient[Any] = AsyncMongoClient(self.uri)
        async with asyncio.timeout(90):
            while await self.primary() == before:
                # It may close the connection, or find no member that is up to date.
                with contextlib.suppress(PyMongoError):
                    await client.admin.command({"replSetStepDown": 20})
                moment = time.monotonic()
        await client.close()
        return moment


def free_port() -> int:
    """Return a port of this machine on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
