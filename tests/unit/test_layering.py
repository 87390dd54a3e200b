"""Imports between the packages go from front end to engine to store, and never back."""

import ast
from collections.abc import Iterator

import pytest

from config.settings import PROJECT_ROOT

#: What the modules of a package must not import. Other projects import the client, so it knows
#: nothing of this one.
FORBIDDEN = {
    "config": ("chat_service", "workers", "chat_inbox", "tornado", "pymongo", "motor", "bson"),
    "workers": ("chat_service", "config", "chat_inbox", "tornado"),
    "chat_service": ("pymongo", "motor", "bson"),
    "clients/python": ("chat_service", "workers", "config", "tests", "tornado", "msgspec"),
}
#: Only these modules may use the settings; all others take plain arguments.
COMPOSITION = {f"chat_service/{name}.py" for name in ("wiring", "service", "supervisor")} | {
    f"chat_service/cli/{name}.py"
    for name in (
        "options",
        "commands/inspect",
        "commands/migrate",
        "commands/probes",
        "commands/serve",
        "doctor/command",
        "doctor/host",
    )
}


def imports(package: str) -> Iterator[tuple[str, str]]:
    """Yield each file of a package with each module that it imports."""
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


def test_only_the_wiring_holds_settings() -> None:
    holders = {name for name, module in imports("chat_service") if module.startswith("config")}
    assert holders <= COMPOSITION


def test_only_the_stores_modules_know_the_driver() -> None:
    for name, module in imports("workers"):
        if module.partition(".")[0] in ("pymongo", "bson", "motor"):
            assert name.startswith(("workers/store/", "workers/mongod/")), (
                f"{name} imports {module}"
            )


def test_only_the_command_line_uses_the_client() -> None:
    for name, module in imports("chat_service"):
        if module.partition(".")[0] == "chat_inbox":
            assert name.startswith("chat_service/cli/"), f"{name} imports {module}"


@pytest.mark.parametrize("package", ["loadgen", "capacity"])
def test_independent_packages_import_no_sibling(package: str) -> None:
    for name, module in imports(f"chat_service/{package}"):
        if module.split(".")[0] in ("chat_service", "workers", "config"):
            assert module.startswith(f"chat_service.{package}"), f"{name} imports {module}"


#: The modules of `workers`, from the bottom to the top. Each imports only modules before it.
WORKERS = """
    errors commands clock ids routing ticks loop_lag backoff cancellation dead_letters
    work_item tracing batch batch_pacing fair_queue queue metrics circuit_breaker waiters
    watched_inboxes
    store.base store.driver store.driver_errors store.layout store.schema store.schema_version
    store.guard store.sharding store.raw_commands store.targeted store.index_keeper store.expiry
    store.observed_operation store.connection store.inserts store.moves store.leases
    store.idempotent_reads store.lifecycle store.change_stream store.node_history store.fleet
    store.confirmations store.mongo
    store.finding store.replica_set store.diagnostics store.inspection
    store.backfill store.node_versions store.migration_record store.migration store.migration_plan
    inbox_quotas storage claim_rollback engine term_check claims arrival_listener single_calls shard
    leadership pending maintenance pool
    mongod.die_with_parent mongod.ballast mongod.foreign_files mongod.exit_reason mongod.embedded
""".split()  # noqa: SIM905 - a list with a line for each is harder to read


def worker_imports(name: str) -> set[str]:
    """Return the modules of `workers` that one of them imports."""
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


#: The parts of chat_service, from the top to the bottom. A part may import those of lower rows.
LAYERS = (
    ("__main__",),
    ("cli",),
    ("service",),
    ("supervisor", "wiring", "routes"),
    ("server", "openapi"),
    ("handlers",),
    ("streaming", "metrics", "otlp"),
    ("access",),
    ("api",),
)
#: Parts that import no other part of chat_service. Only `cli` may import them.
LEAVES = ("loadgen", "capacity")
ROW = {part: row for row, parts in enumerate(LAYERS) for part in parts}


def modules() -> dict[str, set[str]]:
    """Return the modules of chat_service, each with the modules of chat_service it imports."""
    names = {}
    for path in (PROJECT_ROOT / "chat_service").rglob("*.py"):
        relative = path.relative_to(PROJECT_ROOT).with_suffix("")
        names[".".join(relative.parts).removesuffix(".__init__")] = path
    found: dict[str, set[str]] = {}
    for name, path in names.items():
        targets = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                module = node.module or ""
                for alias in node.names:
                    imported = f"{module}.{alias.name}"
                    targets.add(imported if imported in names else module)
            elif isinstance(node, ast.Import):
                targets.update(alias.name for alias in node.names)
        found[name] = {each for each in targets if each in names and each != name}
    return found


def part_of(module: str) -> str:
    """Return the part of chat_service that a module belongs to; empty for the package itself."""
    return (*module.split("."), "")[1]


def test_parts_of_chat_service_import_only_lower_parts() -> None:
    wrong = []
    for module, imported in modules().items():
        part = part_of(module)
        for other in map(part_of, imported):
            # The package itself holds the version.
            if other in ("", part):
                continue
            is_lower = part in ROW and other in ROW and ROW[part] < ROW[other]
            if not (is_lower or (part == "cli" and other in LEAVES)):
                wrong.append(f"{module} imports {other}")
    assert not wrong, "\n".join(wrong)


def test_every_part_of_chat_service_has_a_row() -> None:
    parts = {part_of(module) for module in modules()} - {""}
    assert parts == {*ROW, *LEAVES}


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    graph = modules()
    done: set[str] = set()

    def walk(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join((*way[way.index(module) :], module))
        if module not in done:
            for each in graph[module]:
                walk(each, (*way, module))
            done.add(module)

    for module in graph:
        walk(module, ())
