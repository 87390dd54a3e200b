"""The load generator: what it says adds up, and it leaves nothing behind."""

import asyncio
import re
import resource
import signal
import subprocess
import sys
from urllib.request import urlopen

import pytest

from chat_service.loadgen.generator import Load, LoadGenerator, Outcome, reads_of
from tests.cli.conftest import Chat
from tests.cli.terminal import Terminal
from tests.support.server import Server
from tests.support.waiting import PATIENCE


@pytest.mark.parametrize("pace", [[], ["--rate", "300"]])
def test_a_load_accounts_for_every_message(chat: Chat, pace: list[str]) -> None:
    ended = chat("load", "--duration", "1s", "--connections", "8", "--inboxes", "20", *pace)
    (told,) = ended.records
    assert ended.code == 0
    assert told["errors"] == {}
    assert told["accepted"] > 50
    assert told["accepted"] == told["read"] + told["swept"]
    assert told["requests"] == sum(second["requests"] for second in told["per_second"])
    if pace:
        assert told["requests"] == pytest.approx(300, abs=2)


def test_a_load_is_drawn_for_people(chat: Chat) -> None:
    with Terminal(chat, "load", "--duration", "2.5s", "--connections", "4") as terminal:
        terminal.until(b"requests/s  p50")
        assert terminal.ended() == 0
        seen = terminal.seen.decode()
    for words in ("█", "requests/s  ", "p99 in ms", "accepted ", "= read "):
        assert words in seen


def test_a_load_that_is_interrupted_tells_what_it_has(chat: Chat) -> None:
    with Terminal(chat, "load", "--duration", "1h", "--connections", "4", "--json") as terminal:
        terminal.until(b"requests/s")
        terminal.ctrl_c()
        assert terminal.ended() == 130
        assert b'"missing":0' in terminal.seen


def test_a_load_outlives_a_restart_and_counts_what_was_lost(own_server: Server) -> None:
    chat = Chat(own_server.base)
    process = subprocess.Popen(
        chat.command("load", "--duration", "4s", "--connections", "8", "--text"),
        stdout=subprocess.PIPE,
        env=chat.environ,
        encoding="utf-8",
    )

    def is_under_way() -> bool:
        with urlopen(f"{own_server.base}/metrics") as answer:
            accepted = re.search(rb"^chat_messages_accepted_total (\d+)", answer.read(), re.M)
        return accepted is not None and int(accepted[1]) > 100

    while not is_under_way():
        pass
    own_server.signal(signal.SIGKILL)
    own_server.wait()
    own_server.start()
    out, _ = process.communicate(timeout=30 * PATIENCE)
    assert "of lost connections" in out
    assert process.returncode == 1


async def test_the_inboxes_are_emptied_also_when_the_service_was_started_again_meanwhile(
    own_server: Server,
) -> None:
    load = Load(own_server.port, connections=4, seconds=0.1, users=20)
    outcomes: list[Outcome] = []
    generator = LoadGenerator(load, outcomes.append)
    await generator.connect()
    await generator.finish()
    own_server.signal(signal.SIGKILL)
    await asyncio.to_thread(own_server.wait)
    await asyncio.to_thread(own_server.start)
    await generator.send_all(reads_of(load))
    await generator.close()
    assert [each.status for each in outcomes] == [200] * 20


def test_connections_that_the_machine_does_not_allow_are_refused_before_the_first(
    chat: Chat,
) -> None:
    limited = (
        f"import os, resource, sys; resource.setrlimit({resource.RLIMIT_NOFILE}, (100, 100)); "
        "os.execv(sys.executable, sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", limited, *chat.command("load", "--connections", "90")],
        env=chat.environ,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 2
    assert b"100 open files: use fewer connections" in done.stderr
