"""Thousands of requests that are made up from the OpenAPI document, by Schemathesis.

All its phases and checks, against the service as a process; schemathesis.toml says which of its
judgements are not ours, and why.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from config.settings import PROJECT_ROOT
from tests.support.server import Server

pytestmark = pytest.mark.contract


def test_what_is_made_up_from_the_document_is_answered_as_it_says(
    mongo_uri: str, tmp_path: Path
) -> None:
    # A read that is made up waits as long as it likes, for nobody.
    with Server(tmp_path, "--mongo-uri", mongo_uri, CHAT_MAX_WAIT_S="0.05") as server:
        st = [sys.executable, "-m", "schemathesis.cli"]
        options = ["--config-file", str(Path(__file__).with_name("schemathesis.toml"))]
        told = subprocess.run(
            [*st, *options, "run", f"{server.base}/openapi.json"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(PROJECT_ROOT), "NO_COLOR": "1"},
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=240,
            check=False,
        )
        assert told.returncode == 0, told.stdout + told.stderr
        assert "Traceback" not in server.errors()
