"""A document that says what does not happen is found out."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from config.settings import PROJECT_ROOT
from tests.docs.running import Differs, Runner
from tests.support.blocks import Block, blocks

_ONE, _OTHER, _SHOWN = "1" * 32, "2" * 32, "a" * 32


@pytest.fixture
def runner(checkout: Path) -> Iterator[Runner]:
    """It runs commands that need no service."""
    made = Runner(checkout, "127.0.0.1:9")
    yield made
    made.close()


def block(language: str, text: str, marks: dict[str, str] | None = None) -> Block:
    """A block of a document that is not there."""
    return Block(PROJECT_ROOT / "README.md", 1, language, text, marks=marks or {})


def console(text: str, marks: dict[str, str] | None = None) -> Block:
    """Commands, and what they say."""
    return block("console", text, marks)


def test_an_output_that_is_another_one_is_found(runner: Runner) -> None:
    runner.run(console("$ echo hello\nhello\n"))
    for wrong in ("hullo\n", "", "hello\nhello\n"):
        with pytest.raises(Differs):
            runner.run(console(f"$ echo hello\n{wrong}"))


def test_dots_stand_for_any_lines(runner: Runner) -> None:
    runner.run(console("$ printf 'a\\nb\\nc\\n'\na\n...\nc\n"))
    with pytest.raises(Differs):
        runner.run(console("$ printf 'a\\nb\\nc\\n'\na\n...\nd\n"))


def test_a_command_that_fails_is_found(runner: Runner) -> None:
    with pytest.raises(Differs, match="exit 1"):
        runner.run(console("$ false\n"))
    with pytest.raises(Differs, match="exit 3"):
        runner.run(block("sh", "exit 3\ntrue\n"))
    with pytest.raises(Differs, match="NameError"):
        runner.run(block("python", "await nothing\n"))


def test_what_is_shown_for_an_id_stands_for_it_from_then_on(runner: Runner) -> None:
    runner.run(console(f"$ echo {_ONE}\n{_SHOWN}\n"))
    runner.run(console(f"$ echo is {_SHOWN}\nis {_SHOWN}\n"))
    with pytest.raises(Differs):
        runner.run(console(f"$ echo {_OTHER}\n{_SHOWN}\n"))


def test_what_runs_meanwhile_is_looked_at_after_the_next_block(runner: Runner) -> None:
    waiting = "$ until [ -e flag ]; do sleep 0.05; done; echo seen\nunseen\n"
    runner.run(console(waiting, {"meanwhile": ""}))
    with pytest.raises(Differs, match="seen"):
        runner.run(console("$ touch flag\n"))


def test_what_does_not_run_until_it_is_interrupted_is_found(runner: Runner) -> None:
    endless = "$ echo there; exec sleep 60\nthere\n"
    runner.run(console(endless, {"until Ctrl-C": ""}))
    with pytest.raises(Differs):
        runner.run(block("sh", "echo no\n", {"until Ctrl-C": ""}))


def test_a_comment_above_a_block_that_is_no_mark_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- not run -->\n```sh\ntrue\n```\n", encoding="utf-8")
    with pytest.raises(AssertionError, match=r"page\.md:3: not run"):
        blocks(page)
