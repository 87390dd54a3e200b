"""deploy/ecs: what the validators say of the CloudFormation templates."""

from pathlib import Path

import pytest
from cfnlint import ManualArgs
from cfnlint.api import lint_file

TEMPLATES = Path(__file__).parents[2] / "deploy" / "ecs"


@pytest.mark.parametrize("path", sorted(TEMPLATES.glob("*.yaml")), ids=lambda path: path.name)
def test_cfn_lint_finds_nothing(path: Path) -> None:
    # "I": advice counts, too.
    assert lint_file(path, config=ManualArgs(include_checks=["I"])) == []
