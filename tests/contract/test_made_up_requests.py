"""Thousands of requests that Schemathesis generates from the OpenAPI document.

All of its phases and checks run against the service as a separate process. schemathesis.toml lists
the checks that do not apply here, with reasons.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from config.settings import PROJECT_ROOT
from tests.support.server import Server

pytestmark = pytest.mark.contract


def test_generated_requests_get_documented_answers(mongo_uri: str, tmp_path: Path) -> None:
    # Generated long polls wait for nothing; keep them short.
    with Server(tmp_path, "--mongo-uri", mongo_uri, CHAT_MAX_WAIT_S="0.05") as server:
        st = [sys.executable, "-m", "schemathesis.cli"]
        options = ["--config-file", str(Path(__file__).with_name("schemathesis.toml"))]
        result = subprocess.run(
            [*st, *options, "run", f"{server.base}/openapi.json"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(PROJECT_ROOT), "NO_COLOR": "1"},
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=240,
            check=False,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        assert "Traceback" not in server.errors()
