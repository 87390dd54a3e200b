"""What scripts/release makes: wheels that work, and for the image a bill of materials."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from chat_service import __version__
from config.settings import PROJECT_ROOT

_PIN = re.compile(r"^([\w.-]+)==([^ ]+) ", re.MULTILINE)
#: scripts/release makes its environment.
_PYTHON = PROJECT_ROOT / ".tox" / "release" / "bin" / "python"
_NOT_BUILT = (
    ".git",
    ".venv*",
    ".tox",
    "data",
    "*_cache",
    "__pycache__",
    "build",
    "*.egg-info",
    "dist",
)
#: Validates a bill of materials with the library of those who define the format.
_VALIDATE = """
import sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
fault = JsonStrictValidator(SchemaVersion.V1_6).validate_str(sys.stdin.read())
sys.exit(fault and str(fault))
"""


def release(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run scripts/release."""
    command = [str(PROJECT_ROOT / "scripts" / "release"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8")


def requirements(name: str) -> Path:
    """Return a file of pins."""
    return PROJECT_ROOT / "requirements" / f"{name}.txt"


def test_the_bill_of_materials_lists_the_images_packages(tmp_path: Path) -> None:
    file = tmp_path / "bill.json"
    done = release("sbom", str(file))
    assert done.returncode == 0, done.stderr
    text = file.read_text(encoding="utf-8")
    valid = subprocess.run(
        [str(_PYTHON), "-c", _VALIDATE],
        input=text,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert valid.returncode == 0, valid.stderr

    bill = json.loads(text)
    root = bill["metadata"]["component"]
    assert (root["name"], root["version"]) == ("chat-inbox", __version__)
    assert all(component["licenses"] for component in bill["components"])
    listed = {component["purl"] for component in bill["components"]}
    pins = _PIN.findall(requirements("jwt").read_text(encoding="utf-8"))
    assert listed == {f"pkg:pypi/{name}@{version}" for name, version in pins}
    # The image has the packages of this file.
    dockerfile = (PROJECT_ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert "\nARG REQUIREMENTS=jwt\n" in dockerfile


def test_each_package_has_a_wheel_for_both_machines() -> None:
    # This file has the packages of all others that an image can have.
    everything = set(_PIN.findall(requirements("otel").read_text(encoding="utf-8")))
    for name in ("serve", "jwt"):
        assert everything >= set(_PIN.findall(requirements(name).read_text(encoding="utf-8")))
    done = release("wheels", str(requirements("otel")))
    assert done.returncode == 0, done.stderr


def test_a_package_for_one_machine_only_is_noticed(tmp_path: Path) -> None:
    pins = dict(_PIN.findall(requirements("jwt").read_text(encoding="utf-8")))
    pin = f"uvloop=={pins['uvloop']}"
    command = [
        str(_PYTHON),
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--dest",
        str(tmp_path),
    ]
    command += ["--only-binary=:all:", "--python-version=3.13", "--platform=manylinux_2_17_x86_64"]
    subprocess.run([*command, pin], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    file = tmp_path / "requirements.txt"
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    file.write_text(f"{pin} --hash=sha256:{digest}\n", encoding="utf-8")
    done = release("wheels", str(file))
    assert done.returncode != 0
    assert "uvloop" in done.stderr


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the wheels of the service and of its client."""
    folder = tmp_path_factory.mktemp("wheels")
    for project in (PROJECT_ROOT, PROJECT_ROOT / "clients" / "python"):
        # The build writes into the project's folder, and another test may be building.
        copy = folder / "source" / project.name
        shutil.copytree(project, copy, ignore=shutil.ignore_patterns(*_NOT_BUILT))
        command = [str(_PYTHON), "-m", "build", "--wheel", "--no-isolation", "--outdir"]
        subprocess.run([*command, str(folder), str(copy)], check=True, capture_output=True)
    return folder


def test_the_wheels_give_a_working_command(wheels: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", tmp_path], check=True)
    pip = [str(tmp_path / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
    install = [*pip, "install", "--quiet", "--require-hashes", "-r", str(requirements("serve"))]
    subprocess.run(install, check=True)
    install = [*pip, "install", "--quiet", "--no-index", f"--find-links={wheels}", "chat-inbox"]
    subprocess.run(install, check=True)
    subprocess.run([*pip, "check"], check=True)

    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    chat = [str(tmp_path / "bin" / "chat")]
    shown = subprocess.run([*chat, "--version"], capture_output=True, env=clean, check=True)
    assert shown.stdout.decode().strip() == __version__
    refused = subprocess.run(
        [*chat, "count", "bob", "--url", "http://127.0.0.1:1"],
        capture_output=True,
        env=clean,
        check=False,
    )
    assert (refused.returncode, b"no answer from" in refused.stderr) == (6, True), refused.stderr


def test_the_client_takes_one_name_in_a_users_project(wheels: Path) -> None:
    (wheel,) = wheels.glob("chat_inbox_client-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name.partition("/")[0] for name in archive.namelist()}
        assert "chat_inbox/py.typed" in archive.namelist()
    assert names == {"chat_inbox", f"chat_inbox_client-{__version__}.dist-info"}
