"""Thousands of requests that Schemathesis generates from the OpenAPI document.

All of its phases and checks run against the service as a separate process. schemathesis.toml lists
the checks that do not apply here, with reasons.
"""

import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

from tests.support.code_path import CODE_PATH
from tests.support.server import Server

pytestmark = pytest.mark.contract

_TOKEN = "cht_contract"


@pytest.mark.parametrize("access", ["off", "tokens"])
def test_generated_requests_get_documented_answers(
    mongo_uri: str, database: str, tmp_path: Path, access: str
) -> None:
    options = ["--config-file", str(Path(__file__).with_name("schemathesis.toml"))]
    # Generated long polls wait for nothing; keep them short.
    environ = {"CHAT_MAX_WAIT_S": "0.05", "CHAT_MONGO_DATABASE": database}
    if access != "off":
        config, environ["CHAT_ACCESS_FILE"] = _with_token(tmp_path)
        environ["CHAT_ACCESS"] = access
        options = ["--config-file", str(config)]
    with Server(tmp_path, "--mongo-uri", mongo_uri, port=0, **environ) as server:
        st = [sys.executable, "-m", "schemathesis.cli"]
        result = subprocess.run(
            [*st, *options, "run", f"{server.base}/openapi.json"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": CODE_PATH, "NO_COLOR": "1"},
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=900,
            check=False,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        assert "Traceback" not in server.errors()


def _with_token(folder: Path) -> tuple[Path, str]:
    """Write a configuration that sends a token and checks refusals, and the token's access file.

    It generates fewer requests: what a token changes is the same for each of them.
    """
    file = folder / "access.toml"
    file.write_text(
        f'[[token]]\nname = "worker"\nsha256 = "{sha256(_TOKEN.encode()).hexdigest()}"\n'
        'send = ["*"]\nread = ["*"]\nops = true\n',
        encoding="utf-8",
    )
    usual = Path(__file__).with_name("schemathesis.toml").read_text(encoding="utf-8")
    config = folder / "schemathesis.toml"
    changed = usual.replace("max-examples = 100", "max-examples = 15")
    changed = changed.replace("ignored_auth.enabled = false", "ignored_auth.enabled = true")
    assert changed.count("= 15") == changed.count("ignored_auth.enabled = true") == 1
    changed = f'headers = {{ Authorization = "Bearer {_TOKEN}" }}\n{changed}'
    config.write_text(changed, encoding="utf-8")
    return config, str(file)
