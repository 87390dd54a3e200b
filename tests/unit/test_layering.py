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


#: The modules of `workers`, from the ground up: each imports only modules that stand before it.
WORKERS = """
    errors commands clock ids routing loop_lag backoff
    work_item tracing batch queue metrics circuit_breaker waiters
    store.base store.driver store.schema store.index_keeper store.connection
    store.leases store.idempotent_reads store.lifecycle store.change_stream store.mongo
    store.diagnostics
    storage claim_rollback engine claims arrival_listener shard maintenance pool
    mongod.die_with_parent mongod.ballast mongod.exit_reason mongod.embedded
""".split()  # noqa: SIM905 - a list of 37 lines is harder to read


def worker_imports(name: str) -> set[str]:
    """The modules of `workers` that one of them imports."""
    path = PROJECT_ROOT / "workers" / f"{name.replace('.', '/')}.py"
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("workers"):
            package = (node.module or "").removeprefix("workers").removeprefix(".")
            # `from workers import pool` imports a module, `from workers.pool import x` does not.
            modules = {f"{package}.{alias.name}".lstrip(".") for alias in node.names}
            found |= modules & set(WORKERS) or {package}
    return found


@pytest.mark.parametrize("name", WORKERS)
def test_a_module_of_workers_imports_only_what_stands_below_it(name: str) -> None:
    below = WORKERS[: WORKERS.index(name)]
    assert worker_imports(name) <= set(below), f"{name} imports a module that is not below it"


def test_the_order_of_workers_is_complete() -> None:
    folder = PROJECT_ROOT / "workers"
    names = {
        path.relative_to(folder).with_suffix("").as_posix().replace("/", ".")
        for path in folder.rglob("*.py")
        if path.name != "__init__.py"
    }
    assert names == set(WORKERS)
