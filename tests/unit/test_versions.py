"""The service and its client are released together, with one version."""

import shutil
import subprocess
import tomllib
from pathlib import Path

import chat_inbox
import chat_service
from config.settings import PROJECT_ROOT

FILES = (
    "pyproject.toml",
    "scripts/release",
    "chat_service/__init__.py",
    "clients/python/chat_inbox/version.py",
    "CHANGELOG.md",
    "clients/python/CHANGELOG.md",
)


def required_client(checkout: Path) -> str:
    """Return the requirement of the service on the client."""
    project = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (found,) = (each for each in project["dependencies"] if each.startswith("chat-inbox-client"))
    return str(found)


def test_the_service_needs_the_client_of_its_own_version() -> None:
    assert chat_inbox.__version__ == chat_service.__version__
    assert required_client(PROJECT_ROOT) == f"chat-inbox-client=={chat_service.__version__}"


def test_one_command_sets_all_versions(tmp_path: Path) -> None:
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROJECT_ROOT / name, tmp_path / name)
    subprocess.run([tmp_path / "scripts/release", "version", "12.0.1rc3"], check=True)
    assert required_client(tmp_path) == "chat-inbox-client==12.0.1rc3"
    for name in FILES[2:4]:
        code = (tmp_path / name).read_text(encoding="utf-8")
        assert '\n__version__ = "12.0.1rc3"\n' in code
    for name in FILES[4:]:
        assert "\n## [12.0.1rc3] - " in (tmp_path / name).read_text(encoding="utf-8")
