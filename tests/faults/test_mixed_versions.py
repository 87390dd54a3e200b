"""Old and new nodes serve while the schema changes; `scripts/chaos-migration` runs more."""

import asyncio
from pathlib import Path

import pytest

from tests.faults import old_version
from tests.faults.mixed_versions import Run

pytestmark = pytest.mark.chaos


def test_no_message_is_lost_while_the_schema_changes(tmp_path: Path) -> None:
    if missing := old_version.missing():
        pytest.skip(f"it needs {missing}")
    result = asyncio.run(Run(tmp_path, messages=5000, pause_s=1).run())
    wrong = [f"{it.kind}: {it.what}"[:1500] for it in result.violations]
    assert not wrong, "\n".join(wrong)
    assert result.missing == 0
    assert result.counts["read"] > 5000
    assert {"to 2: fill", "to 2: drop", "to 1: unguard"} <= result.phases.keys()
