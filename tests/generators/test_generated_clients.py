"""Clients that others' generators make from the OpenAPI document compile, and work.

The commands are those of docs/api.md.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from config.settings import PROJECT_ROOT
from tests.generators.conftest import Served

_API = PROJECT_ROOT / "docs" / "api.md"
#: openapi-python-client's own template of this module does not pass mypy's strict mode.
_MYPY = "[mypy]\nstrict = true\n[mypy-chat_api.client]\nignore_errors = true\n"
_TSC = (
    *("npx", "tsc", "--strict", "--noUncheckedIndexedAccess", "--exactOptionalPropertyTypes"),
    *("--target", "es2022", "--module", "nodenext", "--lib", "es2022,dom,dom.iterable"),
)


def documented(language: str, *containing: str) -> str:
    """Return the block of docs/api.md about generated clients that contains these texts."""
    section = _API.read_text(encoding="utf-8").partition("\n## Generated clients\n")[2]
    for block in re.findall(rf"^```{language}\n(.*?)^```$", section, re.MULTILINE | re.DOTALL):
        if all(text in block for text in containing):
            return str(block)
    raise LookupError(f"no block of {language} in docs/api.md has {containing}")


def at(served: Served, text: str) -> str:
    """Return a text of the document with the address of this service, and with its token."""
    assert "http://127.0.0.1:8080" in text
    return text.replace("http://127.0.0.1:8080", served.base).replace("TOKEN", served.token)


def run(folder: Path, *command: str | Path) -> str:
    """Run a command in a folder and return its whole output. It must succeed."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(folder), "NO_COLOR": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.stdout}"
    return done.stdout


def generate(folder: Path, served: Served, tool: str) -> str:
    """Run the documented command of a generator, which may warn of nothing. Return its output."""
    output = run(folder, "bash", "-ec", at(served, documented("sh", tool, "openapi.json")))
    assert not re.search(r"warn|error|omitted|unsupported|⚠", output, re.IGNORECASE), output
    return output


def test_a_typescript_client_compiles_and_works(
    served: Served, folder: Path, packages: Path
) -> None:
    (folder / "node_modules").symlink_to(packages / "node_modules")
    (folder / "package.json").write_text('{"type": "module"}', encoding="utf-8")
    generate(folder, served, "openapi-typescript")
    types = (folder / "chat.d.ts").read_text(encoding="utf-8")
    # What the generator does not understand, it types like this.
    assert ": Record<string, never>;" not in types
    untyped = re.findall(r"^ *(.*): unknown;$", types, re.MULTILINE)
    # An event stream has no type, an object may have further fields, and browsers use some files.
    files = {'"application/manifest+json"', '"image/png"'}
    assert {*untyped} <= {'"text/event-stream"', "[name: string]", "[key: string]", *files}
    shown = at(served, documented("ts", "createClient"))
    (folder / "shown.ts").write_text(shown, encoding="utf-8")
    run(folder, *_TSC, "uses_typescript.ts", "shown.ts")
    run(folder, "node", "uses_typescript.js", served.base, served.token)
    assert "lunch?" in run(folder, "node", "shown.js")


def test_a_python_client_compiles_and_works(served: Served, folder: Path) -> None:
    output = generate(folder, served, "openapi-python-client")
    assert output.splitlines() == ["Generating chat_api"], output
    shown = at(served, documented("python", "chat_api"))
    (folder / "shown.py").write_text(shown, encoding="utf-8")
    (folder / "mypy.ini").write_text(_MYPY, encoding="utf-8")
    run(folder, sys.executable, "-m", "mypy", "uses_python.py", "shown.py", "chat_api")
    run(folder, sys.executable, "uses_python.py", served.base, served.token)
    assert "lunch?" in run(folder, sys.executable, "shown.py")
    examples_survive(folder, served.base)


def examples_survive(folder: Path, base: str) -> None:
    """Check that the generated models lose nothing of the document's examples."""
    with urlopen(f"{base}/openapi.json") as answer:
        document = json.load(answer)
    examples = [*examples_in(document["paths"])]
    assert len(examples) > 200
    (folder / "examples.json").write_text(json.dumps(examples), encoding="utf-8")
    (folder / "examples.py").write_text(
        "import functools, json, pathlib\nfrom chat_api import models\n"
        "text = functools.partial(json.dumps, sort_keys=True)\n"
        "for name, example in json.loads(pathlib.Path('examples.json').read_text('utf-8')):\n"
        "    made = getattr(models, name).from_dict(example)\n"
        "    same = text(made.to_dict()).replace('+00:00', 'Z') == text(example)\n"
        "    assert same, (name, example)\n"
        "    assert not made.additional_properties, (name, example)\n",
        encoding="utf-8",
    )
    run(folder, sys.executable, "examples.py")


def examples_in(node: Any) -> Iterator[tuple[str, Any]]:
    """Yield each example of a model, with the name of the model."""
    if isinstance(node, list):
        for each in node:
            yield from examples_in(each)
    elif isinstance(node, dict):
        model = node.get("schema", {}).get("$ref", "").rpartition("/")[2]
        values = [each["value"] for each in node.get("examples", {}).values()]
        for value in [*values, *([node["example"]] if "example" in node else ())]:
            if model and isinstance(value, dict):
                yield model, value
        for each in node.values():
            yield from examples_in(each)
