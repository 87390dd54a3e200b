"""The recipe of a release, from the version to an installation from an index on this machine."""

import hashlib
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tornado.testing import bind_unused_port

from config.settings import PROJECT_ROOT
from tests.support.waiting import PATIENCE

_PIN = re.compile(r"^([\w.-]+)==([^ ]+) ", re.MULTILINE)
#: scripts/release makes its environment.
_PYTHON = PROJECT_ROOT / ".tox" / "release" / "bin" / "python"
#: A version that does not exist.
_VERSION = "9.8.7"
_CLEAN = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
_FOREIGN = 'raise ImportError("a package of the project was imported")\n'
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


def run(command: list[str]) -> None:
    """Run a command that must not see the packages of this checkout."""
    done = subprocess.run(
        command, capture_output=True, text=True, encoding="utf-8", env=_CLEAN, cwd="/"
    )
    assert done.returncode == 0, done.stdout + done.stderr


def requirements(name: str) -> Path:
    """Return a file of pins."""
    return PROJECT_ROOT / "requirements" / f"{name}.txt"


def test_the_bill_of_materials_lists_the_images_packages(built: Path) -> None:
    text = (built / f"chat_inbox-{_VERSION}.cdx.json").read_text(encoding="utf-8")
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
    assert (root["name"], root["version"]) == ("chat-inbox", _VERSION)
    assert all(component["licenses"] for component in bill["components"])
    listed = {component["purl"] for component in bill["components"]}
    pins = _PIN.findall(requirements("jwt").read_text(encoding="utf-8"))
    assert listed == {f"pkg:pypi/{name}@{version}" for name, version in pins}
    # The image has the packages of this file.
    dockerfile = (PROJECT_ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert "\nARG REQUIREMENTS=jwt\n" in dockerfile


def test_the_build_checks_the_wheels_of_every_image() -> None:
    # `scripts/release build` fails if a package of this file has no wheel for a machine.
    everything = set(_PIN.findall(requirements("otel").read_text(encoding="utf-8")))
    for name in ("serve", "jwt"):
        assert everything >= set(_PIN.findall(requirements(name).read_text(encoding="utf-8")))


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


def recipe(folder: Path, umask: int = 0o022) -> Path:
    """Copy the checkout to a folder, and commit it as the version `_VERSION`."""
    before = os.umask(umask)
    shutil.copytree(PROJECT_ROOT, folder, ignore=shutil.ignore_patterns(*_NOT_BUILT))
    # The environments are shared, because they take half a minute.
    setup = ["scripts/setup-venv", ".tox/release", str(requirements("release"))]
    subprocess.run(setup, cwd=PROJECT_ROOT, check=True)
    (folder / ".tox").symlink_to(PROJECT_ROOT / ".tox")
    in_recipe(folder, "git", "init", "--quiet")
    (folder / ".git" / "info" / "exclude").write_text(".tox\n", encoding="utf-8")
    in_recipe(folder, "scripts/release", "version", _VERSION)
    in_recipe(folder, "git", "add", "--all")
    in_recipe(folder, "git", "commit", "--quiet", "--message", "Release")
    os.umask(before)
    return folder


def in_recipe(folder: Path, *command: str, **environ: str) -> None:
    """Run a command of the recipe. Commits have the same time everywhere."""
    time = {"GIT_AUTHOR_DATE": "2026-01-02T03:04:05Z", "GIT_COMMITTER_DATE": "2026-01-02T03:04:05Z"}
    names = {
        f"GIT_{role}_{kind}": "nobody@example.org"
        for role in ("AUTHOR", "COMMITTER")
        for kind in ("NAME", "EMAIL")
    }
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **time, **names, **environ},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder `dist` of a build, whose single file is for this machine and Python."""
    project = recipe(tmp_path_factory.mktemp("recipe") / "project")
    this = f"{platform.machine()}-{sys.version_info.major}{sys.version_info.minor}"
    in_recipe(project, "scripts/release", "build", this)
    return project / "dist"


def test_a_release_has_checksums_and_the_changelogs_notes(built: Path) -> None:
    lines = (built / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    sums = {name: digest for digest, name in map(str.split, lines)}
    files = {file.name for file in built.iterdir()} - {"SHA256SUMS", "NOTES.md"}
    assert set(sums) == files
    for name, digest in sums.items():
        assert hashlib.sha256((built / name).read_bytes()).hexdigest() == digest
    assert {name.replace("-", "_").split(_VERSION)[1] for name in files} == {
        "_py3_none_any.whl",
        ".tar.gz",
        ".pex",
        ".cdx.json",
    }
    notes = (built / "NOTES.md").read_text(encoding="utf-8")
    assert "\n- `POST /chat` and `GET /chat/:username`: messages have a lifetime" in notes
    # Release pages show the end of a line as one.
    assert "\n  " not in notes


def test_two_builds_of_a_commit_give_the_same_bytes(built: Path, tmp_path: Path) -> None:
    again = recipe(tmp_path / "again", umask=0o077)
    in_recipe(again, "scripts/release", "packages", TZ="Asia/Tokyo")
    names = sorted(file.name for file in (again / "dist").iterdir())
    assert len(names) == 4
    for name in names:
        assert (again / "dist" / name).read_bytes() == (built / name).read_bytes(), name


def test_the_wheel_has_every_file_of_the_checkout(built: Path) -> None:
    with zipfile.ZipFile(built / f"chat_inbox-{_VERSION}-py3-none-any.whl") as archive:
        packed = {name.replace("chat_service/bundled/", "") for name in archive.namelist()}
    listed = subprocess.run(
        ["git", "ls-files", "chat_service", "config", "workers"],
        cwd=built.parent,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
    )
    assert set(listed.stdout.split()) == {name for name in packed if ".dist-info/" not in name}


@pytest.fixture(scope="module")
def index(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a package index on this machine, to which the recipe has uploaded."""
    sock, port = bind_unused_port()
    sock.close()
    folder = tmp_path_factory.mktemp("index")
    command = [str(_PYTHON.with_name("pypi-server")), "run", "--interface=127.0.0.1"]
    command += [f"--port={port}", "--passwords=.", "--authenticate=.", "--disable-fallback"]
    server = subprocess.Popen([*command, str(folder)], stderr=subprocess.DEVNULL, env=_CLEAN)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 30 * PATIENCE
        while not is_open(port):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        account = {"TWINE_USERNAME": "nobody", "TWINE_PASSWORD": "nothing"}
        in_recipe(
            built.parent, "scripts/release", "upload", TWINE_REPOSITORY_URL=f"{url}/", **account
        )
        yield f"{url}/simple/"
    finally:
        server.terminate()
        server.wait()


def is_open(port: int) -> bool:
    """Return whether something listens on a port of this machine."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_damaged_file_is_not_uploaded(built: Path, tmp_path: Path) -> None:
    project = tmp_path / "project"
    shutil.copytree(built.parent, project, symlinks=True)
    with (project / "dist" / f"chat_inbox-{_VERSION}.tar.gz").open("ab") as archive:
        archive.write(b"x")
    with pytest.raises(AssertionError, match=rf"chat_inbox-{_VERSION}.tar.gz: FAILED"):
        in_recipe(project, "scripts/release", "upload", TWINE_REPOSITORY_URL="http://127.0.0.1:1/")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with a project's own packages, which Python must not find."""
    folder = tmp_path / "project"
    for name in ("config.py", "config/__init__.py", "workers/__init__.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(_FOREIGN, encoding="utf-8")
    return folder


def try_out(
    chat: str, project: Path, mongo_uri: str, database: str, **environ: str
) -> subprocess.CompletedProcess[str]:
    """Serve with two processes in a project's folder, and post and read."""
    script = """
        set -eu
        "$0" --version
        exec 3< <(exec "$0" serve --port 0 --processes 2 --mongo-uri "$1")
        server=$!
        read -r _ _ CHAT_URL <&3
        export CHAT_URL
        "$0" send bob kept
        "$0" read bob
        kill "$server"
        wait "$server"
    """
    return subprocess.run(
        ["bash", "-c", script, chat, mongo_uri],
        cwd=project,
        env={
            **_CLEAN,
            "PYTHONPATH": str(project),
            "CHAT_MONGO_DATABASE": database,
            "CHAT_LOG_LEVEL": "warning",
            **environ,
        },
        capture_output=True,
        text=True,
        encoding="utf-8",
    )


def test_an_installation_serves_beside_a_projects_packages(
    index: str, tmp_path: Path, project: Path, mongo_uri: str, database: str
) -> None:
    environment = tmp_path / "environment"
    run([sys.executable, "-m", "venv", str(environment)])
    pip = [str(environment / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
    run([*pip, "install", "--quiet", "--require-hashes", "-r", str(requirements("serve"))])
    run([*pip, "install", "--quiet", f"--index-url={index}", f"chat-inbox=={_VERSION}"])
    run([*pip, "check"])
    # The project's packages are in the same environment, too.
    (packages,) = environment.glob("lib/python*/site-packages")
    shutil.copytree(project, packages, dirs_exist_ok=True)

    for program in ("chat", "chat-inbox"):
        done = try_out(str(environment / "bin" / program), project, mongo_uri, database)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"{_VERSION}\n")
        assert '"kept"' in done.stdout


def test_the_single_file_starts_without_a_network(
    built: Path, tmp_path: Path, project: Path, mongo_uri: str, database: str
) -> None:
    program = str(built / f"chat-inbox-{_VERSION}.pex")
    home = {"HOME": str(tmp_path / "home"), "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    # The first start, in a namespace without a network, unpacks the file.
    first = subprocess.run(
        ["unshare", "--map-root-user", "--net", program, "--version"],
        cwd=project,
        env={**_CLEAN, **home, "PYTHONPATH": str(project)},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert first.stdout == f"{_VERSION}\n", first.stderr
    done = try_out(program, project, mongo_uri, database, **home)
    assert done.returncode == 0, done.stderr
    assert '"kept"' in done.stdout


def test_the_client_takes_one_name_in_a_users_project(built: Path) -> None:
    with zipfile.ZipFile(built / f"chat_inbox_client-{_VERSION}-py3-none-any.whl") as archive:
        names = {name.partition("/")[0] for name in archive.namelist()}
        assert "chat_inbox/py.typed" in archive.namelist()
    assert names == {"chat_inbox", f"chat_inbox_client-{_VERSION}.dist-info"}
