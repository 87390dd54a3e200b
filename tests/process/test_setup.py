"""The first start from a checkout, with existing virtual environments in any state."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from config.settings import PROJECT_ROOT

SETUP = PROJECT_ROOT / "scripts" / "setup-venv"


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

    def __call__(self, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run the script, with `words` as a command prefix."""
        return subprocess.run(
            [*words, str(SETUP), str(self.venv), str(self.file)],
            env={**os.environ, **environ},
            capture_output=True,
            encoding="utf-8",
            check=False,
        )

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


def test_packages_that_pip_put_elsewhere_do_not_count(setup: Setup, tmp_path: Path) -> None:
    config = tmp_path / "pip.conf"
    config.write_text(f"[install]\ntarget = {tmp_path / 'elsewhere'}\n", encoding="utf-8")
    failed = setup(PIP_CONFIG_FILE=str(config))
    assert failed.returncode == 1
    assert "click cannot be imported" in failed.stderr
    assert "pip config list" in failed.stderr
    assert not (setup.venv / ".installed").exists()
    assert setup().returncode == 0
    assert setup.works()


def test_an_environment_whose_python_has_gone_is_made_again(setup: Setup) -> None:
    assert setup().returncode == 0
    mark = setup.venv / ".installed"
    for python in setup.venv.glob("bin/python*"):
        python.unlink()
    (setup.venv / "bin" / "python").symlink_to("/none/python3")
    made = setup()
    assert (made.returncode, "setting up" in made.stderr) == (0, True)
    assert setup.works()
    # An upgrade in place: the same link now points to another Python.
    mark.write_text(mark.read_text(encoding="ascii").replace("python3", "python2"), "ascii")
    assert "setting up" in setup().stderr
    assert setup.works()


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
