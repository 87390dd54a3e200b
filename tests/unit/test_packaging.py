"""What pyproject.toml puts into the wheel is what the checkout has."""

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from config.settings import PROJECT_ROOT

_SETUPTOOLS: dict[str, Any] = tomllib.loads(
    (PROJECT_ROOT / "pyproject.toml").read_text(encoding="utf-8")
)["tool"]["setuptools"]


def test_the_wheel_has_every_package() -> None:
    folders = {
        each.parent.relative_to(PROJECT_ROOT)
        for top in ("chat_service", "config", "workers")
        for each in (PROJECT_ROOT / top).rglob("__init__.py")
    }
    assert {folder_of(package) for package in _SETUPTOOLS["packages"]} == folders


def test_the_wheel_takes_one_name_in_an_environment() -> None:
    assert {package.partition(".")[0] for package in _SETUPTOOLS["packages"]} == {"chat_service"}


def test_packages_of_an_environment_in_the_checkout_are_others() -> None:
    """A `.pth` file of `.venv` may have imported one of the same name."""
    program = f"""
import sys, types
other = sys.modules["config"] = types.ModuleType("config")
other.__file__ = {str(PROJECT_ROOT / ".venv" / "lib" / "config" / "__init__.py")!r}
import chat_service, config
print(config.__file__)
"""
    run = subprocess.run(
        [sys.executable, "-c", program],
        cwd=PROJECT_ROOT,
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    assert Path(run.stdout.strip()) == PROJECT_ROOT / "config" / "__init__.py"


def folder_of(package: str) -> Path:
    """Return the folder of the checkout that has a package's files."""
    for prefix, folder in _SETUPTOOLS["package-dir"].items():
        if package == prefix or package.startswith(f"{prefix}."):
            return Path(folder, *package.removeprefix(prefix).split("."))
    return Path(*package.split("."))
