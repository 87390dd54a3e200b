"""The tests of the documents find wrong documents."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from config.settings import PROJECT_ROOT
from tests.docs.running import Differs, Runner
from tests.support.blocks import Block, blocks

_ONE, _OTHER, _SHOWN = "1" * 32, "2" * 32, "a" * 32


@pytest.fixture
def runner(checkout: Path) -> Iterator[Runner]:
    """Return a runner for commands that need no service."""
    made = Runner(checkout, "127.0.0.1:9")
    yield made
    made.close()


def block(language: str, text: str, marks: dict[str, str] | None = None) -> Block:
    """Return a block of a document that does not exist."""
    return Block(PROJECT_ROOT / "README.md", 1, language, text, marks=marks or {})


def console(text: str, marks: dict[str, str] | None = None) -> Block:
    """Return a block of commands with their outputs."""
    return block("console", text, marks)


def test_a_wrong_output_is_found(runner: Runner) -> None:
    runner.run(console("$ echo hello\nhello\n"))
    for wrong in ("hullo\n", "", "hello\nhello\n"):
        with pytest.raises(Differs):
            runner.run(console(f"$ echo hello\n{wrong}"))


def test_dots_match_any_lines(runner: Runner) -> None:
    runner.run(console("$ printf 'a\\nb\\nc\\n'\na\n...\nc\n"))
    with pytest.raises(Differs):
        runner.run(console("$ printf 'a\\nb\\nc\\n'\na\n...\nd\n"))


def test_a_failing_command_is_found(runner: Runner) -> None:
    with pytest.raises(Differs, match="exit 1"):
        runner.run(console("$ false\n"))
    with pytest.raises(Differs, match="exit 3"):
        runner.run(block("sh", "exit 3\ntrue\n"))
    with pytest.raises(Differs, match="NameError"):
        runner.run(block("python", "await nothing\n"))


def test_a_command_looks_at_the_port_of_its_service(runner: Runner) -> None:
    runner.run(console("$ echo $CHAT_PORT $CHAT_URL\n9 http://127.0.0.1:8080\n"))


def test_an_id_is_the_same_in_later_blocks(runner: Runner) -> None:
    runner.run(console(f"$ echo {_ONE}\n{_SHOWN}\n"))
    runner.run(console(f"$ echo is {_SHOWN}\nis {_SHOWN}\n"))
    with pytest.raises(Differs):
        runner.run(console(f"$ echo {_OTHER}\n{_SHOWN}\n"))


def test_a_background_command_is_compared_after_the_next_block(runner: Runner) -> None:
    waiting = "$ until [ -e flag ]; do sleep 0.05; done; echo seen\nunseen\n"
    runner.run(console(waiting, {"meanwhile": ""}))
    with pytest.raises(Differs, match="seen"):
        runner.run(console("$ touch flag\n"))


def test_a_command_that_ends_before_ctrl_c_is_found(runner: Runner) -> None:
    endless = "$ echo there; exec sleep 60\nthere\n"
    runner.run(console(endless, {"until Ctrl-C": ""}))
    with pytest.raises(Differs):
        runner.run(block("sh", "echo no\n", {"until Ctrl-C": ""}))


def test_an_invalid_mark_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- not run -->\n```sh\ntrue\n```\n", encoding="utf-8")
    with pytest.raises(AssertionError, match=r"page\.md:3: not run"):
        blocks(page)


def test_a_document_starts_a_service_of_its_own(runner: Runner) -> None:
    fake = 'echo "listening on http://127.0.0.1:$CHAT_PORT"; exec sleep 60\n'
    before = runner.address
    for _ in range(2):
        runner.run(block("sh", fake, {"service": ""}))
        assert runner.address != before
        runner.run(
            console("$ echo 127.0.0.1:8080 $CHAT_URL\n127.0.0.1:8080 http://127.0.0.1:8080\n")
        )
        before = runner.address
    with pytest.raises(Differs, match="not there"):
        runner.run(block("sh", "echo not there\n", {"service": ""}))
