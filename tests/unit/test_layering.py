"""The arrows between the packages: front end to engine to store, and none back."""

import ast
from collections.abc import Iterator

import pytest

from config.settings import PROJECT_ROOT

#: What the modules of a package must not import.
FORBIDDEN = {
    "config": ("chat_service", "workers", "tornado", "pymongo", "motor", "bson"),
    "workers": ("chat_service", "config", "tornado"),
    "chat_service": ("pymongo", "motor", "bson"),
}
#: Only these may hold the settings; everything else is given plain arguments.
COMPOSITION = {f"chat_service/{name}.py" for name in ("wiring", "service", "supervisor")} | {
    f"chat_service/cli/{name}.py"
    for name in ("options", "commands/probes", "commands/serve", "doctor/command", "doctor/host")
}


def imports(package: str) -> Iterator[tuple[str, str]]:
    """Each file of a package, and each module that it imports."""
    for path in sorted((PROJECT_ROOT / package).rglob("*.py")):
        name = path.relative_to(PROJECT_ROOT).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((name, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{name} has a relative import"
                yield name, node.module or ""


@pytest.mark.parametrize("package", FORBIDDEN)
def test_a_package_imports_nothing_that_it_must_not_know(package: str) -> None:
    for name, module in imports(package):
        assert module.partition(".")[0] not in FORBIDDEN[package], f"{name} imports {module}"


def test_settings_are_held_only_where_the_parts_are_put_together() -> None:
    holders = {name for name, module in imports("chat_service") if module.startswith("config")}
    assert holders <= COMPOSITION


def test_only_the_stores_modules_know_the_driver() -> None:
    for name, module in imports("workers"):
        if module.partition(".")[0] in ("pymongo", "bson", "motor"):
            assert name.startswith(("workers/store/", "workers/mongod/")), (
                f"{name} imports {module}"
            )


@pytest.mark.parametrize("package", ["client", "loadgen"])
def test_independent_packages_import_no_sibling(package: str) -> None:
    for name, module in imports(f"chat_service/{package}"):
        if module.split(".")[0] in ("chat_service", "workers", "config"):
            assert module.startswith(f"chat_service.{package}"), f"{name} imports {module}"
