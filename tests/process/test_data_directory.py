"""The embedded mongod: unusual paths, foreign files, a lost socket, and why it ended."""

import asyncio
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.process.test_serving import refusal
from tests.support.client import ChatClient
from tests.support.server import Server, mongods_on
from tests.support.waiting import eventually


async def keeps_a_message(server: Server) -> bool:
    """Return whether the service accepts a message and returns it."""
    chat = ChatClient(server.base)
    try:
        await chat.post("bob", "x")
        return await chat.texts("bob") == ["x"]
    finally:
        chat.close()


async def test_a_mongod_whose_socket_is_deleted_is_restarted(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    with Server(tmp_path, "--data-dir", str(data_dir)) as server:
        (before,) = mongods_on(data_dir)
        (data_dir / "mongod.sock").unlink()

        async def another_runs() -> bool:
            running = mongods_on(data_dir)
            return len(running) == 1 and running != [before]

        await eventually(another_runs, 30)

        async def serves() -> bool:
            chat = ChatClient(server.base)
            try:
                return (await chat.request("GET", "/chat/bob")).code == 200
            finally:
                chat.close()

        await eventually(serves, 30)
        assert await keeps_a_message(server)
        assert "the socket of mongod was deleted" in server.errors()


@pytest.mark.parametrize("processes", [1, 2])
async def test_each_restart_of_mongod_is_counted_once(tmp_path: Path, processes: int) -> None:
    data_dir = tmp_path / "data"
    arguments = ("--data-dir", str(data_dir), "--processes", str(processes))
    with Server(tmp_path, *arguments) as server:
        chat = ChatClient(server.base)
        assert await chat.metric("chat_mongod_restarts_total") == 0
        for number in (1, 2):
            (killed,) = mongods_on(data_dir)
            os.kill(killed, signal.SIGKILL)

            async def is_counted(killed: int = killed, number: int = number) -> bool:
                running = mongods_on(data_dir)
                is_restarted = len(running) == 1 and running != [killed]
                return is_restarted and await chat.metric("chat_mongod_restarts_total") == number

            await eventually(is_counted, 30)
        history = json.loads((await chat.request("GET", "/ops/history")).body)
        assert history["mongod_restarts"] == 2
        said = {each["name"]: each["says"] for each in history["state"]["conditions"]}
        assert "The embedded mongod ended 2 times" in said["mongod-restarts"]
        chat.close()


async def test_files_of_file_systems_and_git_are_ignored(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    (data_dir / "lost+found").mkdir(parents=True, mode=0o700)
    (data_dir / ".snapshot").mkdir()
    for name in (".gitkeep", ".DS_Store"):
        (data_dir / name).touch()
    with Server(tmp_path, "--data-dir", str(data_dir)) as server:
        assert await keeps_a_message(server)
    assert (data_dir / "lost+found").is_dir()


@pytest.mark.parametrize("name", ["a,b:c[d]", "50% ünï 'q'", "long-" * 25])
async def test_any_path_can_be_a_data_directory(tmp_path: Path, name: str) -> None:
    data_dir = tmp_path / name
    with Server(tmp_path, "--data-dir", str(data_dir)) as server:
        chat = ChatClient(server.base)
        kept = await chat.post("bob", "kept", 3600)
        chat.close()
        place = Path((data_dir / "socket-place").read_text(encoding="utf-8"))
        assert stat.S_IMODE(os.stat(place).st_mode) == 0o700
        # The socket is found even if the temporary directory is another one.
        environ = {**server.environ, "TMPDIR": str(tmp_path), "CHAT_DATA_DIR": str(data_dir)}
        words = (sys.executable, "-P", "-m", "chat_service", "mongo-uri")
        found = await asyncio.to_thread(
            subprocess.check_output, words, env=environ, text=True, encoding="utf-8"
        )
        assert place.name in found
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert place.name not in os.listdir(place.parent)
        server.start()
        chat = ChatClient(server.base)
        assert await chat.read("bob") == [("kept", kept)]
        chat.close()


async def test_two_copies_of_a_data_directory_do_not_meet(tmp_path: Path) -> None:
    data_dir, copy = tmp_path / "a:b", tmp_path / "c:d"
    with Server(tmp_path, "--data-dir", str(data_dir)) as server:
        server.signal(signal.SIGKILL)
        server.wait()
        shutil.copytree(data_dir, copy, ignore=shutil.ignore_patterns("*.lock", "lock"))
        (copy / "lock").touch()
        server.start()
        (tmp_path / "second").mkdir()
        with Server(tmp_path / "second", "--data-dir", str(copy)) as second:
            assert await keeps_a_message(second)
            assert await keeps_a_message(server)
            places = {(each / "socket-place").read_bytes() for each in (data_dir, copy)}
            assert len(places) == 2


#: A command prefix: run as user 1234 in the groups 1234 and 2000. This user may read every file,
#: such as a Python in the home of root, but write only its own files.
AS_ANOTHER_USER = (
    *("setpriv", "--reuid", "1234", "--regid", "1234", "--groups", "2000"),
    *("--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"),
)


def can_be_another_user() -> bool:
    """Return whether this machine can run a command as another user."""
    try:
        return subprocess.run([*AS_ANOTHER_USER, "true"], capture_output=True).returncode == 0
    except OSError:
        return False


@pytest.mark.skipif(not can_be_another_user(), reason="it cannot be run as another user here")
@pytest.mark.parametrize(("mode", "is_taken"), [(0o2775, True), (0o2777, False), (0o2755, False)])
async def test_a_volume_of_its_group_is_taken(mode: int, is_taken: bool) -> None:
    folder = Path("/var/tmp") / f"chat-test-{os.getpid()}-{mode:o}"
    folder.mkdir(mode=0o755)
    try:
        data_dir = folder / "data"
        data_dir.mkdir()
        os.chown(data_dir, 0, 2000)
        data_dir.chmod(mode)
        server = Server(folder, "--data-dir", str(data_dir))
        server.wrapper = AS_ANOTHER_USER
        if is_taken:
            with server:
                assert await keeps_a_message(server)
                (mongod,) = mongods_on(data_dir)
                assert os.stat(f"/proc/{mongod}").st_uid == 1234
        else:
            with pytest.raises(AssertionError, match="did not start"):
                server.start()
            assert server.process.returncode == 5
        assert stat.S_IMODE(data_dir.stat().st_mode) == mode
    finally:
        shutil.rmtree(folder)


def script(folder: Path, body: str) -> str:
    """Write a shell script that takes the place of mongod. Return its path."""
    program = folder / "mongod"
    program.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    program.chmod(0o755)
    return str(program)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("echo 'error while loading shared libraries: libcurl.so.4' >&2; exit 127", "libcurl.so.4"),
        ("kill -ILL $$", "was ended by SIGILL; this processor lacks instructions"),
        ("kill -KILL $$", "was ended by SIGKILL; the kernel does that if memory runs out"),
    ],
)
def test_the_reason_why_mongod_did_not_start_is_named(tmp_path: Path, body: str, said: str) -> None:
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    (data_dir / "WiredTiger").touch()
    # Errors of earlier runs must not be reported.
    (data_dir / "mongod.log").write_text('{"s":"F","msg":"of another day"}\n', encoding="utf-8")
    mongod = script(tmp_path, body)
    code, line = refusal(tmp_path, "--data-dir", str(data_dir), CHAT_MONGOD=mongod)
    assert code == 4
    assert said in line
    assert "of another day" not in line


def test_an_error_in_this_starts_log_is_named(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    body = (
        'while [ "$1" != --logpath ]; do shift; done\n'
        """echo '{"s":"F","msg":"it broke","attr":{"error":"since it was old"}}' >> "$2"\n"""
        "exit 62"
    )
    mongod = script(tmp_path, body)
    code, line = refusal(tmp_path, "--data-dir", str(data_dir), CHAT_MONGOD=mongod)
    assert code == 4
    assert "it ended with 62: it broke: since it was old (see " in line
