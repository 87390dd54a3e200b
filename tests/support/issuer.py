"""An issuer of JSON Web Tokens. It signs with cryptography alone, not with the service's library.

`Issuer` makes keys and tokens, also wrong ones; `KeyServer` serves keys over HTTP.
"""

import asyncio
import json
import ssl
import time
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from typing import Any, TypeAlias

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.web import Application, RequestHandler

ISSUER, AUDIENCE = "https://login.example", "chat"
PrivateKey: TypeAlias = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
#: Made once, because RSA keys take long.
KEYS: Mapping[str, PrivateKey] = {
    "RS256": rsa.generate_private_key(65537, 2048),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}


def encoded(data: bytes) -> str:
    """Return base64url without padding."""
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def number(value: int, length: int) -> str:
    """Return a number as a JSON Web Key has it."""
    return encoded(value.to_bytes(length, "big"))


def public_jwk(key: PrivateKey, kid: str, **more: Any) -> dict[str, Any]:
    """Return the public half of a key as a JSON Web Key."""
    members: dict[str, Any]
    if isinstance(key, rsa.RSAPrivateKey):
        numbers = key.public_key().public_numbers()
        n = number(numbers.n, key.key_size // 8)
        members = {"kty": "RSA", "n": n, "e": number(numbers.e, 3)}
    elif isinstance(key, ec.EllipticCurvePrivateKey):
        point = key.public_key().public_numbers()
        x, y = number(point.x, 32), number(point.y, 32)
        members = {"kty": "EC", "crv": "P-256", "x": x, "y": y}
    else:
        x = encoded(key.public_key().public_bytes_raw())
        members = {"kty": "OKP", "crv": "Ed25519", "x": x}
    return {**members, "kid": kid, **more}


def key_set(*algorithms: str) -> dict[str, Any]:
    """Return the public keys for these algorithms, or for all. The algorithm is the key's id."""
    return {"keys": [public_jwk(KEYS[name], name) for name in algorithms or KEYS]}


def signature(key: PrivateKey, data: bytes) -> bytes:
    """Return the signature with a key, by the only algorithm that it is for."""
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(data, padding.PKCS1v15(), SHA256())
    if isinstance(key, ec.EllipticCurvePrivateKey):
        r, s = decode_dss_signature(key.sign(data, ec.ECDSA(SHA256())))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")
    return key.sign(data)


def signed(header: Any, claims: Any, key: PrivateKey = KEYS["EdDSA"]) -> str:
    """Return a token with any header and claims, which may be bytes that are not JSON."""
    parts = [
        encoded(part if isinstance(part, bytes) else json.dumps(part).encode())
        for part in (header, claims)
    ]
    data = ".".join(parts)
    return f"{data}.{encoded(signature(key, data.encode()))}"


def claims(**changed: Any) -> dict[str, Any]:
    """Return the claims of bob for ten minutes. A claim that is changed to None is left out."""
    now = int(time.time())
    usual = {"iss": ISSUER, "aud": AUDIENCE, "sub": "bob", "iat": now, "exp": now + 600}
    return {name: value for name, value in {**usual, **changed}.items() if value is not None}


def token(algorithm: str = "EdDSA", *, kid: str | None = None, **changed: Any) -> str:
    """Return a valid token for bob, with some claims changed."""
    header = {"alg": algorithm, "kid": kid or algorithm, "typ": "at+jwt"}
    return signed(header, claims(**changed), KEYS[algorithm])


class KeyServer:
    """Serves documents by path on a port of this machine. Use as an async context."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        """Serve over https with a TLS context for servers, else over http."""
        #: A document as JSON, a status, or a place to redirect to. Other paths are 404.
        self.documents: dict[str, Any] = {"/keys": key_set()}
        self.requests: list[str] = []
        #: Answers wait for it.
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        sock, port = bind_unused_port()
        self.base = f"https://localhost:{port}" if tls else f"http://127.0.0.1:{port}"
        application = Application([("(/.*)", _Answer, {"server": self})])
        self._server = HTTPServer(application, ssl_options=tls)
        self._server.add_socket(sock)

    async def __aenter__(self) -> "KeyServer":
        return self

    async def __aexit__(self, *error: object) -> None:
        self.may_answer.set()
        self._server.stop()
        await self._server.close_all_connections()


class _Answer(RequestHandler):
    def initialize(self, server: KeyServer) -> None:
        self._of = server

    async def get(self, path: str) -> None:
        self._of.requests.append(path)
        await self._of.may_answer.wait()
        document = self._of.documents.get(path, 404)
        if isinstance(document, int):
            self.set_status(document)
        elif isinstance(document, str):
            self.redirect(document)
        else:
            self.write(document)
