"""The last version of the service that knows no schemas, from this project's own history."""

import os
import subprocess
import tarfile
from io import BytesIO
from pathlib import Path

from config.settings import PROJECT_ROOT

#: The last commit before messages had routes.
COMMIT = "882da1e1a19881156833815769664f931b8fee27"
_PACKAGES = ("chat_service", "config", "workers")


def missing() -> str:
    """Return what is missing to get the old version, or an empty string."""
    try:
        found = subprocess.run(
            ["git", "cat-file", "-e", f"{COMMIT}^{{commit}}"],
            cwd=PROJECT_ROOT,
            capture_output=True,
            check=False,
            env={**os.environ, "GIT_CEILING_DIRECTORIES": str(PROJECT_ROOT.parent)},
        )
    except FileNotFoundError:
        return "git, to get the old version"
    return "" if found.returncode == 0 else f"the project's history with the commit {COMMIT[:7]}"


def extract(folder: Path) -> Path:
    """Write the packages of the old version to a folder. Return what PYTHONPATH must be."""
    archive = subprocess.run(
        ["git", "archive", COMMIT, *_PACKAGES], cwd=PROJECT_ROOT, capture_output=True, check=True
    )
    with tarfile.open(fileobj=BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")
    return folder
