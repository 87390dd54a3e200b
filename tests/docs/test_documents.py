"""The commands and programs in the documents work and have the documented output."""

from pathlib import Path

import pytest

from config.settings import PROJECT_ROOT
from tests.deploy.helm.tools import install
from tests.docs.running import Differs, Runner
from tests.support.blocks import blocks, documents
from tests.support.server import Server

_WITH_BLOCKS = [
    document
    for document in documents()
    if any("not run" not in block.marks for block in blocks(document))
]


@pytest.mark.parametrize(
    "document", _WITH_BLOCKS, ids=lambda path: path.relative_to(PROJECT_ROOT).as_posix()
)
def test_a_document_matches_reality(document: Path, checkout: Path, server: Server) -> None:
    if "\nhelm " in document.read_text(encoding="utf-8"):
        (checkout / ".venv/bin/helm").symlink_to(install() / "bin/helm")
    runner = Runner(checkout, server.base.removeprefix("http://"))
    wrong = []
    try:
        for block in blocks(document):
            if "not run" not in block.marks:
                try:
                    runner.run(block)
                except Differs as error:
                    wrong.append(f"{block.place}: {error}")
    finally:
        runner.close()
    assert not wrong, "\n".join(wrong)
