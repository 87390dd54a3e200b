"""The manifests of the chart for several sets of values. Only the standard library is needed.

`python -m tests.deploy.helm.rendering FOLDER` writes those for production into files, for checkov.
"""

import sys
from pathlib import Path

from tests.deploy.helm.tools import ROOT, helm

CHART = ROOT / "deploy/helm/chat-inbox"
EXAMPLES = CHART / "examples"
RELEASE, NAMESPACE = "chat-inbox", "chat"
#: What every set of values needs, if it names no database.
_DATABASE = "atlas.yaml"
#: The names of the sets, and their values files.
VARIANTS = {
    "atlas": ("atlas.yaml",),
    "operator": ("operator.yaml",),
    "small": ("small.yaml",),
    "ingress": (_DATABASE, "ingress.yaml"),
    "gateway": (_DATABASE, "gateway.yaml"),
    "newrelic": (_DATABASE, "newrelic.yaml"),
    "everything": ("operator.yaml", "ingress.yaml", "gateway.yaml", "newrelic.yaml"),
}


class Refused(Exception):
    """Helm does not render these values; the message is its own."""


def template(files: tuple[str, ...], *arguments: str, release: str = RELEASE) -> str:
    """Return the manifests for the values of these examples. Raise `Refused`."""
    values = [f"--values={EXAMPLES / name}" for name in files]
    done = helm("template", release, str(CHART), f"--namespace={NAMESPACE}", *values, *arguments)
    if done.returncode:
        raise Refused(done.stderr)
    return done.stdout


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    for name, files in VARIANTS.items():
        # Its image is on the machine itself, so no digest can pin it.
        if name == "small":
            continue
        (target / f"{name}.yaml").write_text(template(files), encoding="utf-8")
