"""TLS as an operator meets it: the start, the probes, and many clients that only half connect."""

import asyncio
import os
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from tests.process.test_connection_limit import DESCRIPTORS
from tests.support.certificates import Authority, Pair
from tests.support.code_path import CODE_PATH
from tests.support.server import Server


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """The authority whose certificates clients trust."""
    return Authority(tmp_path)


@pytest.fixture
def pair(authority: Authority) -> Pair:
    """The certificate of a service that clients know by another name than this machine's."""
    return authority.issue("chat.example.org")


def with_tls(pair: Pair) -> dict[str, str]:
    """Return the settings of a service with this certificate."""
    return {"CHAT_TLS_CERTIFICATE": str(pair.certificate), "CHAT_TLS_KEY": str(pair.key)}


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a command of `chat`."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "chat_service", *arguments],
        env={**os.environ, "PYTHONPATH": CODE_PATH, **environ},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )


def curl(authority: Authority, *arguments: str) -> str:
    """Run curl, which trusts this authority and must succeed."""
    return subprocess.run(
        ["curl", "-sS", "--fail", "--cacert", str(authority.certificate), *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
    ).stdout


@pytest.mark.parametrize("processes", ["1", "2"])
def test_the_probes_and_curl_work_with_tls(
    mongo_uri: str,
    database: str,
    tmp_path: Path,
    authority: Authority,
    pair: Pair,
    processes: str,
) -> None:
    arguments = ("--mongo-uri", mongo_uri, "--processes", processes)
    settings = {"CHAT_MONGO_DATABASE": database, **with_tls(pair)}
    server = Server(tmp_path, *arguments)
    server.environ.update(settings)
    with server:
        assert server.base == f"https://127.0.0.1:{server.port}"
        body = '{"text": "hello", "username": "bob"}'
        curl(authority, "-d", body, f"{server.base}/chat")
        assert "hello" in curl(authority, f"{server.base}/chat/bob")
        health = run("healthcheck", "--port", str(server.port), **with_tls(pair))
        assert (health.returncode, health.stderr) == (0, "")
        examined = run(
            *("doctor", "--text", "--port", str(server.port), "--mongo-uri", mongo_uri),
            *("--url", server.base),
            SSL_CERT_FILE=str(authority.certificate),
            **settings,
        )
        assert examined.returncode == 0, examined.stdout
        assert "expires in 29 days" in examined.stdout or "expires in 30 days" in examined.stdout
        assert server.base in examined.stdout


def test_a_client_refuses_a_service_that_it_cannot_trust(
    mongo_uri: str, database: str, tmp_path: Path, pair: Pair
) -> None:
    server = Server(tmp_path, "--mongo-uri", mongo_uri, CHAT_MONGO_DATABASE=database)
    server.environ.update(with_tls(pair))
    with server:
        sent = run("send", "bob", "hi", "--url", server.base)
        assert sent.returncode == 6
        (line,) = sent.stderr.splitlines()
        assert "certificate verify failed" in line
        assert "SSL_CERT_FILE" in line


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_start_with_a_wrong_key_says_so(
    mongo_uri: str, authority: Authority, pair: Pair, processes: str
) -> None:
    wrong = with_tls(Pair(pair.certificate, authority.issue("other").key))
    arguments = ("serve", "--port", "0", "--mongo-uri", mongo_uri, "--processes", processes)
    failed = run(*arguments, **wrong)
    assert failed.returncode == 2
    (line,) = failed.stderr.splitlines()
    assert "not the key of the certificate" in line
    assert "fail" in run("doctor", "--text", "--mongo-uri", mongo_uri, **wrong).stdout


def test_a_certificate_without_a_key_is_refused(pair: Pair) -> None:
    failed = run("serve", "--port", "0", CHAT_TLS_CERTIFICATE=str(pair.certificate))
    assert failed.returncode == 2
    assert "set both or neither" in failed.stderr


def test_the_doctor_warns_before_a_certificate_expires(
    mongo_uri: str, authority: Authority
) -> None:
    for days, state in ((5, "warn  tls"), (-1, "fail  tls")):
        settings = with_tls(authority.issue("chat.example.org", days=days))
        examined = run("doctor", "--text", "--mongo-uri", mongo_uri, **settings)
        assert state in examined.stdout


async def test_half_open_handshakes_lock_nobody_out(
    mongo_uri: str, database: str, tmp_path: Path, authority: Authority, pair: Pair
) -> None:
    server = Server(tmp_path, "--mongo-uri", mongo_uri, CHAT_MONGO_DATABASE=database)
    server.environ.update(with_tls(pair))
    server.wrapper = ("prlimit", f"--nofile={DESCRIPTORS}")
    with server:
        stalled = []
        for _ in range(DESCRIPTORS + 10):
            stalled.append(await asyncio.open_connection("127.0.0.1", server.port))
            stalled[-1][1].write(b"\x16\x03\x01\x02\x00\x01")
        context = ssl.create_default_context(cafile=str(authority.certificate))
        _, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=context)
        writer.close()
        # The first one waited longest.
        assert await stalled[0][0].read() == b""
        for _, each in stalled:
            each.close()
