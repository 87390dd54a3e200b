"""A MongoDB that asks for access, as in production: users, roles, TLS and certificates.

The embedded binary runs as a replica set of one member, on a port of loopback.
"""

import base64
import contextlib
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pymongo import MongoClient
from pymongo.errors import PyMongoError

from tests.faults.mongod_cluster import free_port
from tests.support.certificates import Authority
from tests.support.waiting import PATIENCE
from workers.mongod import die_with_parent
from workers.mongod.embedded import find_mongod

ADMINISTRATOR, PASSWORD = "root", "p@ss/word"


class SecuredMongod:
    """A running mongod with an administrator. `requires_tls` adds TLS and users by certificate."""

    def __init__(self, folder: Path, *, requires_tls: bool) -> None:
        self._folder = folder
        self.port = free_port()
        self.authority = Authority(folder)
        self.host = f"127.0.0.1:{self.port}"
        #: Options of every connection string.
        self.options = "replicaSet=secure"
        self._arguments: tuple[str, ...] = ()
        if requires_tls:
            self.options += f"&tls=true&tlsCAFile={self.authority.certificate}"
            server = self.authority.issue("mongod.test").together(folder / "mongod-both.pem")
            self._arguments = (
                *("--tlsMode", "requireTLS", "--tlsCertificateKeyFile", str(server)),
                *("--tlsCAFile", str(self.authority.certificate)),
                # Users with a password have no certificate.
                "--tlsAllowConnectionsWithoutCertificates",
            )

    def __enter__(self) -> "SecuredMongod":
        key = self._folder / "members.key"
        key.write_bytes(base64.b64encode(secrets.token_bytes(96)))
        key.chmod(0o600)
        data = self._folder / "data"
        data.mkdir(mode=0o700)
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-I", "-S", die_with_parent.__file__, str(os.getpid())),
                *(find_mongod(""), "--dbpath", str(data), "--port", str(self.port)),
                *("--bind_ip", "127.0.0.1", "--nounixsocket", "--replSet", "secure"),
                *("--auth", "--keyFile", str(key), *self._arguments),
                *("--wiredTigerCacheSizeGB", "0.25", "--oplogSize", "64", "--quiet"),
                *("--logpath", str(self._folder / "mongod.log")),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._make_administrator()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def uri(self, name: str = ADMINISTRATOR, password: str = PASSWORD, more: str = "") -> str:
        """Return the connection string of a user with a password."""
        escaped = password.replace("@", "%40").replace("/", "%2F")
        return f"mongodb://{name}:{escaped}@{self.host}/?{self.options}{more}"

    @contextlib.contextmanager
    def administrator(self) -> Iterator[MongoClient[dict[str, Any]]]:
        """Yield a client that may do everything."""
        with MongoClient[dict[str, Any]](self.uri()) as client:
            yield client

    def create_user(
        self, name: str, roles: Sequence[Any], password: str | None = "secret-word"
    ) -> None:
        """Create a user, of a certificate with this name if there is no password."""
        with self.administrator() as client:
            if password is None:
                client["$external"].command("createUser", name, roles=roles)
            else:
                client.admin.command("createUser", name, pwd=password, roles=roles)

    def _make_administrator(self) -> None:
        """Make the replica set and its first user, from this machine, where that is allowed."""
        options = self.options.replace("replicaSet=secure", "directConnection=true")
        deadline = time.monotonic() + 20 * PATIENCE
        with MongoClient[dict[str, Any]](
            f"mongodb://{self.host}/?{options}", serverSelectionTimeoutMS=500
        ) as client:
            members = [{"_id": 0, "host": self.host}]
            while True:
                try:
                    with contextlib.suppress(PyMongoError):
                        client.admin.command(
                            "replSetInitiate", {"_id": "secure", "members": members}
                        )
                    if client.admin.command("hello")["isWritablePrimary"]:
                        break
                except PyMongoError:
                    pass
                assert time.monotonic() < deadline, "the database did not start"
                time.sleep(0.05)
            client.admin.command("createUser", ADMINISTRATOR, pwd=PASSWORD, roles=["root"])
