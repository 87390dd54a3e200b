"""The functions of the database shell find the messages that the service stores."""

import json
import subprocess

import pytest

from config.settings import PROJECT_ROOT
from tests.support.provider import node
from workers.store.layout import LAYOUT_1, LAYOUT_2, Layout

NAMES = ("bob", "eve", "Zoë", "", "\U0001f600", "a b/c", "\u0000", "x" * 128)


@pytest.mark.parametrize("layouts", [(LAYOUT_1,), (LAYOUT_2,), (LAYOUT_1, LAYOUT_2)])
def test_the_shells_filter_is_that_of_the_service(layouts: tuple[Layout, ...]) -> None:
    functions = (PROJECT_ROOT / "scripts" / "mongo-shell.js").read_text(encoding="utf-8")
    indexes = [{"name": name} for layout in layouts for name in layout.indexes]
    script = (
        f"const db = {{messages: {{getIndexes: () => {json.dumps(indexes)}}}}};\n{functions}\n"
        f"console.log(JSON.stringify({json.dumps(NAMES)}.map(inbox)));"
    )
    ran = subprocess.run(
        [node(), "-e", script], capture_output=True, encoding="utf-8", check=True, timeout=60
    )
    # While a change of the schema is not complete, the old indexes find everything.
    assert json.loads(ran.stdout) == [layouts[0].inbox(name) for name in NAMES]
