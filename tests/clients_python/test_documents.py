"""The documents of the client: its reference is current, and its examples run."""

import asyncio
import re
from importlib.util import module_from_spec, spec_from_file_location
from typing import Final

import pytest

from chat_service.service import Service
from config.settings import PROJECT_ROOT
from tests.support.middleman import base_of

CLIENT: Final = PROJECT_ROOT / "clients" / "python"
EXAMPLES: Final = re.findall(
    r"```python\n(.*?)```", (CLIENT / "README.md").read_text(encoding="utf-8"), re.DOTALL
)
#: Programs that end, and the worker that runs until it is stopped.
PROGRAMS: Final = [each for each in EXAMPLES if "SIGTERM" not in each]
(WORKER,) = [each for each in EXAMPLES if "SIGTERM" in each]


def test_the_reference_is_current() -> None:
    spec = spec_from_file_location("write_reference", CLIENT / "write_reference.py")
    assert spec is not None
    assert spec.loader is not None
    writer = module_from_spec(spec)
    spec.loader.exec_module(writer)
    is_current = (CLIENT / "REFERENCE.md").read_text(encoding="utf-8") == writer.reference()
    assert is_current, "run: PYTHONPATH=clients/python python clients/python/write_reference.py"


@pytest.mark.parametrize("number", range(6))
async def test_the_examples_of_the_readme_run(
    service: Service, number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(PROGRAMS) == 6
    code = PROGRAMS[number].replace("http://127.0.0.1:8080", base_of(service))
    await asyncio.to_thread(exec, compile(code, "README.md", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out
