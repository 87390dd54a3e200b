"""Each environment of tox.ini runs all tests that have its mark."""

import re
from configparser import ConfigParser

import pytest

from config.settings import PROJECT_ROOT
from tests.conftest import MARKED_FOLDERS

MARKS = ("bench", "chaos", "clients", "contract", "deploy", "fuzz", "generators")


@pytest.mark.parametrize("mark", MARKS)
def test_an_environment_names_the_files_of_its_tests(mark: str) -> None:
    tox = ConfigParser(interpolation=None)
    tox.read(PROJECT_ROOT / "tox.ini", encoding="utf-8")
    named = tuple(re.findall(r"tests/[\w./]+", tox[f"testenv:{mark}"]["commands"]))
    marked = [f"tests/{folder}" for folder, its in MARKED_FOLDERS.items() if its == mark] + [
        path.relative_to(PROJECT_ROOT).as_posix()
        for path in (PROJECT_ROOT / "tests").rglob("test_*.py")
        if re.search(rf"\bmark\.{mark}\b", path.read_text(encoding="utf-8"))
    ]
    assert marked
    assert [each for each in marked if not each.startswith(named)] == []
