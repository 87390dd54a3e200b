"""The names of tests are short."""

import re
from typing import Final

from config.settings import PROJECT_ROOT

#: A name has fewer characters than this, so that a report shows it in one line.
LONGEST: Final = 60


def test_test_names_are_short() -> None:
    found = [
        f"{path.relative_to(PROJECT_ROOT)}: {name}"
        for path in sorted((PROJECT_ROOT / "tests").rglob("*.py"))
        for name in re.findall(r"^\s*(?:async )?def (test_\w+)", path.read_text("utf-8"), re.M)
        if len(name) >= LONGEST
    ]
    assert not found, "\n".join(found)
