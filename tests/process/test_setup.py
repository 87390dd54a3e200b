"""The first start from a checkout, with existing virtual environments in any state."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from config.settings import PROJECT_ROOT
from tests.support.waiting import PATIENCE

SETUP = PROJECT_ROOT / "scripts" / "setup-venv"
#: What the script needs besides Python.
_TOOLS = ("sh", "bash", "env", "cat", "cksum", "dirname", "readlink", "mkdir", "head")


def find_uv() -> str:
    """Return the path of a uv: the one on the PATH, or the one that scripts/test installs."""
    launcher = PROJECT_ROOT / ".tox" / "launcher" / "bin"
    found = shutil.which("uv") or shutil.which("uv", path=str(launcher))
    return found or pytest.skip("there is no uv; scripts/test installs one")


class Setup:
    """Creates an environment with one small package, in a path with a space and an umlaut."""

    def __init__(self, folder: Path) -> None:
        folder = folder / "a ü"
        folder.mkdir()
        self.venv = folder / "venv"
        self.file = folder / "requirements.txt"
        pinned = (PROJECT_ROOT / "requirements" / "serve.txt").read_text(encoding="utf-8")
        (click,) = re.findall(r"(?m)^click==.*\n(?:    .*\n)+", pinned)
        self.file.write_text(click, encoding="utf-8")

        #: The directory that is first on the PATH. There is no other uv on it.
        self.bin = folder / "bin"
        self.bin.mkdir()
        (self.bin / "python3").symlink_to(sys.executable)
        for tool in _TOOLS:
            (self.bin / tool).symlink_to(str(shutil.which(tool)))

    def command(self, *words: str) -> list[str]:
        """Return the command, with `words` as a prefix."""
        return [*words, str(SETUP), str(self.venv), str(self.file)]

    def environ(self, **environ: str) -> dict[str, str]:
        """Return the variables that it runs with."""
        of_uv = {name for name in os.environ if name.startswith(("UV_", "PIP_INDEX", "SETUP_"))}
        kept = {name: text for name, text in os.environ.items() if name not in of_uv}
        return {**kept, "PATH": str(self.bin), **environ}

    def __call__(self, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run the script, with `words` as a command prefix."""
        return subprocess.run(
            self.command(*words),
            env=self.environ(**environ),
            capture_output=True,
            encoding="utf-8",
            check=False,
        )

    def add(self, name: str, script: str) -> None:
        """Put a shell script on the PATH."""
        program = self.bin / name
        program.unlink(missing_ok=True)
        program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        program.chmod(0o755)

    def works(self) -> bool:
        """Return whether the package can be imported."""
        python = self.venv / "bin" / "python"
        done = subprocess.run(
            [python, "-I", "-c", "import click"], capture_output=True, check=False
        )
        return done.returncode == 0


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    """A setup that was never run."""
    return Setup(tmp_path)


@pytest.fixture
def setup_with_uv(setup: Setup) -> Setup:
    """A setup with a uv on the PATH."""
    (setup.bin / "uv").symlink_to(find_uv())
    return setup


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-"])
def test_a_closed_output_hinders_no_first_start(setup: Setup, closed: str) -> None:
    done = setup("sh", "-c", f'exec "$@" {closed}', "sh")
    assert (done.returncode, done.stderr, setup.works()) == (0, "", True)


def test_no_pip_setting_diverts_the_packages(setup: Setup, tmp_path: Path) -> None:
    elsewhere = str(tmp_path / "elsewhere")
    made = setup(
        "sh",
        PIP_USER="1",
        PIP_TARGET=elsewhere,
        PIP_PREFIX=elsewhere,
        PIP_ROOT=elsewhere,
        PIP_REQUIRE_VIRTUALENV="1",
        PIP_CONSTRAINT=elsewhere,
        PYTHONHOME=elsewhere,
        PYTHONPATH=elsewhere,
        PYTHONUSERBASE=elsewhere,
        CDPATH="/tmp",
        POSIXLY_CORRECT="1",
        HOME="",
    )
    assert made.returncode == 0, made.stderr
    assert setup.works()
    assert not Path(elsewhere).exists()
    again = setup()
    assert (again.returncode, again.stderr) == (0, "")


def test_no_uv_setting_diverts_the_packages(setup_with_uv: Setup, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    project = tmp_path / "project"
    project.mkdir()
    (project / "uv.toml").write_text(f"[pip]\ntarget = '{elsewhere}'\n", encoding="utf-8")
    made = setup_with_uv(
        *("sh", "-c", f'cd {project} && exec "$@"', "sh"),
        UV_TARGET=str(elsewhere),
        UV_PREFIX=str(elsewhere),
        UV_SYSTEM_PYTHON="1",
        UV_PYTHON="/none",
        UV_CONSTRAINT="/none",
        UV_OVERRIDE="/none",
        UV_EXCLUDE_NEWER="2001-01-01",
        UV_NO_VERIFY_HASHES="1",
        UV_PROJECT_ENVIRONMENT=str(elsewhere),
        VIRTUAL_ENV=str(elsewhere),
    )
    assert (made.returncode, made.stderr.count("\n")) == (0, 2), made.stderr
    assert "1 packages with uv" in made.stderr
    assert setup_with_uv.works()
    assert not elsewhere.exists()


def test_uv_installs_no_package_with_another_hash(setup_with_uv: Setup) -> None:
    pinned = setup_with_uv.file.read_text(encoding="utf-8")
    changed = re.sub("sha256:[0-9a-f]{8}", "sha256:00000000", pinned)
    setup_with_uv.file.write_text(changed, encoding="utf-8")
    failed = setup_with_uv()
    assert failed.returncode == 1
    assert "a package is not the one that is pinned" in failed.stderr
    assert not setup_with_uv.venv.exists()


@pytest.mark.parametrize(
    ("uv", "says"),
    [
        ("exit 127", "it wrote nothing"),
        ("echo \"error: unexpected argument '--no-project'\" >&2; exit 2", "unexpected argument"),
        ("exit 0", "No such file or directory"),
    ],
    ids=["broken", "old", "pretends"],
)
def test_pip_is_used_if_uv_does_not_work(setup: Setup, uv: str, says: str) -> None:
    setup.add("uv", uv)
    made = setup()
    assert made.returncode == 0, made.stderr
    (line,) = (line for line in made.stderr.splitlines() if "uv failed" in line)
    assert says in line or "ended with 127" in line
    assert "packages with pip" in made.stderr
    assert setup.works()


def test_without_a_network_it_says_so_and_keeps_the_old(setup: Setup) -> None:
    assert setup().returncode == 0
    with setup.file.open("a", encoding="utf-8") as file:
        file.write("# changed\n")
    setup.add("uv", "exit 1")
    environ = {"PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_RETRIES": "0", "PIP_NO_CACHE_DIR": "1"}
    failed = setup(PIP_CONFIG_FILE=os.devnull, PIP_FIND_LINKS="", **environ)
    assert failed.returncode == 1
    last = failed.stderr.splitlines()[-1]
    assert "the packages cannot be downloaded" in last
    assert "HTTPS_PROXY" in last
    assert setup.works()
    assert not list(setup.venv.parent.glob("*.former"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_during_installation_leaves_nothing(setup: Setup, number: signal.Signals) -> None:
    begun = setup.bin / "begun"
    setup.add("uv", f'echo $$ >"{begun}"; exec sleep 600')
    with subprocess.Popen(
        setup.command(), env=setup.environ(), stderr=subprocess.PIPE, encoding="utf-8"
    ) as process:
        deadline = time.monotonic() + 10 * PATIENCE
        while not begun.exists() or not begun.read_text("ascii").endswith("\n"):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(number)
        assert process.wait(10 * PATIENCE) == -number
        assert process.stderr is not None
        assert "nothing was installed" in process.stderr.read()
    assert not setup.venv.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(int(begun.read_text("ascii")), 0)


def test_an_old_python_is_named_with_what_to_do(setup: Setup) -> None:
    setup.add("python3", 'case "$1" in --version) echo Python 3.9.2 ;; *) exit 1 ;; esac')
    failed = setup()
    assert failed.returncode == 1
    assert "Python 3.11 or newer was not found (only Python 3.9.2)" in failed.stderr
    assert "SETUP_PYTHON" in failed.stderr


def test_a_log_gets_two_lines_and_no_progress(setup: Setup) -> None:
    made = setup()
    first, *_, last = made.stderr.splitlines()
    assert "faster with uv" in first
    assert re.search(r"installed 1 packages in \d+\.\d s", last)
    assert len(made.stderr.splitlines()) == 3
    assert "\r" not in made.stderr


def test_packages_that_pip_put_elsewhere_do_not_count(setup: Setup, tmp_path: Path) -> None:
    config = tmp_path / "pip.conf"
    config.write_text(f"[install]\ntarget = {tmp_path / 'elsewhere'}\n", encoding="utf-8")
    failed = setup(PIP_CONFIG_FILE=str(config))
    assert failed.returncode == 1
    said = failed.stderr.splitlines()[-2:]
    assert "click cannot be imported" in said[0]
    assert "pip config list" in said[0]
    assert not (setup.venv / ".installed").exists()
    assert setup().returncode == 0
    assert setup.works()


def test_an_environment_whose_python_has_gone_is_made_again(setup_with_uv: Setup) -> None:
    assert setup_with_uv().returncode == 0
    mark = setup_with_uv.venv / ".installed"
    for python in setup_with_uv.venv.glob("bin/python*"):
        python.unlink()
    (setup_with_uv.venv / "bin" / "python").symlink_to("/none/python3")
    made = setup_with_uv()
    assert (made.returncode, "setting up" in made.stderr) == (0, True)
    assert setup_with_uv.works()
    # An upgrade in place: the same link now points to another Python.
    mark.write_text(mark.read_text(encoding="ascii").replace("python3", "python2"), "ascii")
    assert "setting up" in setup_with_uv().stderr
    assert setup_with_uv.works()


def test_a_clone_under_autocrlf_has_scripts_that_run(tmp_path: Path) -> None:
    origin, clone = tmp_path / "origin", tmp_path / "clone"
    origin.mkdir()
    shutil.copytree(PROJECT_ROOT / "scripts", origin / "scripts")
    shutil.copy(PROJECT_ROOT / ".gitattributes", origin)
    git = ("git", "-c", "user.name=t", "-c", "user.email=t@test")
    for command in (
        (*git, "-C", str(origin), "init", "-q"),
        (*git, "-C", str(origin), "add", "-A"),
        (*git, "-C", str(origin), "commit", "-qm", "all"),
        (*git, "clone", "-q", "-c", "core.autocrlf=true", str(origin), str(clone)),
    ):
        subprocess.run(command, check=True, capture_output=True)
    shell = clone / "scripts" / "mongo-shell"
    assert b"\r" not in shell.read_bytes()
    for words in ((str(shell),), ("sh", str(shell))):
        shown = subprocess.run(
            [*words, "--help"], capture_output=True, encoding="utf-8", check=True
        )
        assert shown.stdout.startswith("usage: scripts/mongo-shell ")
