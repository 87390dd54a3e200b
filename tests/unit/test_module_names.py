"""Docstrings and comments name modules, and things in modules, that exist."""

import importlib
import re
from pathlib import Path

import pytest

from config.settings import PROJECT_ROOT

PACKAGES = ("chat_service", "workers", "config")
#: A dotted name in backquotes that begins with one of the packages.
NAME = re.compile(rf"`((?:{'|'.join(PACKAGES)})(?:\.\w+)+)")
FILES = sorted(path for each in PACKAGES for path in (PROJECT_ROOT / each).rglob("*.py"))


def exists(name: str) -> bool:
    """Return whether a module has this name, or a module and what is in it have."""
    module, _, rest = name, "", ""
    while module:
        try:
            found: object = importlib.import_module(module)
        except ModuleNotFoundError:
            module, _, last = module.rpartition(".")
            rest = f"{last}.{rest}"
            continue
        for attribute in filter(None, rest.split(".")):
            if not hasattr(found, attribute):
                return False
            found = getattr(found, attribute)
        return True
    return False


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PROJECT_ROOT)))
def test_every_name_of_a_module_exists(path: Path) -> None:
    names = set(NAME.findall(path.read_text(encoding="utf-8")))
    assert [name for name in sorted(names) if not exists(name)] == []


def test_a_name_that_does_not_exist_is_found() -> None:
    assert exists("workers.store.base.Store.insert")
    assert not exists("workers.store.base.Store.no_such_method")
    assert not exists("chat_service.access.reloading")
