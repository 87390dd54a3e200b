"""`chat load`: its counts add up, and it leaves no messages behind."""

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
    result = chat("load", "--duration", "1s", "--connections", "8", "--inboxes", "20", *pace)
    (report,) = result.records
    assert result.code == 0
    assert report["errors"] == {}
    assert report["accepted"] > 50
    assert report["accepted"] == report["read"] + report["swept"]
    assert report["requests"] == sum(second["requests"] for second in report["per_second"])
    if pace:
        # On a busy machine, the last ones may be too late for the second.
        assert 200 < report["requests"] <= 302


def test_the_report_for_people_has_charts(chat: Chat) -> None:
    with Terminal(chat, "load", "--duration", "2.5s", "--connections", "4") as terminal:
        terminal.until(b"requests/s  p50")
        assert terminal.exit_code() == 0
        seen = terminal.seen.decode()
    for words in ("█", "requests/s  ", "p99 in ms", "accepted ", "= read "):
        assert words in seen


def test_an_interrupted_load_reports_its_results_so_far(chat: Chat) -> None:
    with Terminal(chat, "load", "--duration", "1h", "--connections", "4", "--json") as terminal:
        terminal.until(b"requests/s")
        terminal.ctrl_c()
        assert terminal.exit_code() == 130
        assert b'"missing":0' in terminal.seen


def test_a_load_survives_a_restart_and_counts_lost_connections(own_server: Server) -> None:
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
    assert "lost connections: " in out
    assert process.returncode == 1


async def test_inboxes_are_emptied_after_a_restart(
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


def test_more_connections_than_open_files_are_refused(
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
    assert b"at most 100 open files here; use fewer connections" in done.stderr
