"""The objects of the chart, and what is in them."""

import base64
import shlex
from functools import cache
from typing import Any

import yaml

from config.load import load_settings
from config.settings import Settings
from tests.deploy.helm.rendering import RELEASE, VARIANTS, template

#: The address that the file with the connection string has in tests of settings.
URI = "mongodb://chat:secret@db.example/?replicaSet=rs0"


class Manifests:
    """All objects that the chart makes of some values."""

    def __init__(self, text: str) -> None:
        self.objects: list[dict[str, Any]] = [each for each in yaml.safe_load_all(text) if each]

    def named(self, kind: str, name: str = RELEASE) -> dict[str, Any]:
        """Return one object. Raise LookupError if it is missing."""
        for each in self.objects:
            if each["kind"] == kind and each["metadata"]["name"] == name:
                return each
        raise LookupError(f"no {kind} {name}")

    def kinds(self) -> set[str]:
        """Return the kinds of all objects."""
        return {each["kind"] for each in self.objects}

    @property
    def pod(self) -> dict[str, Any]:
        """The specification of the service's pods."""
        found: dict[str, Any] = self.named("Deployment")["spec"]["template"]["spec"]
        return found

    @property
    def container(self) -> dict[str, Any]:
        """The service's container."""
        found: dict[str, Any] = self.pod["containers"][0]
        return found

    @property
    def environ(self) -> dict[str, str]:
        """The environment of the service, without values that Kubernetes inserts."""
        found: dict[str, str] = dict(self.named("ConfigMap")["data"])
        for each in self.container.get("env", ()):
            found[each["name"]] = each.get("value", "inserted")
        return found

    def settings(self) -> Settings:
        """Return the settings that the service gets from its environment. It accepts them."""
        environ = self.environ
        for name in [name for name in environ if name.endswith("_FILE") and "ACCESS" not in name]:
            del environ[name]
        return load_settings({}, environ | {"CHAT_MONGO_URI": URI})

    def secret(self, key: str) -> str:
        """Return a value of the chart's own Secret."""
        return base64.b64decode(self.named("Secret")["data"][key]).decode()


@cache
def variant(name: str) -> Manifests:
    """Return the manifests of one set of values."""
    return Manifests(template(VARIANTS[name]))


def rendered(options: str = "", *files: str) -> Manifests:
    """Return the manifests for an example and further options of helm."""
    return Manifests(template(files or ("atlas.yaml",), *shlex.split(options)))


def quantity(text: str) -> float:
    """Return the value of a quantity of Kubernetes, such as 500m or 1Gi."""
    units = {"m": 1e-3, "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30}
    for unit, factor in units.items():
        if text.endswith(unit):
            return float(text.removesuffix(unit)) * factor
    return float(text)
