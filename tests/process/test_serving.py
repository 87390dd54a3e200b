"""The server as users run it: signals, kills, its own mongod, and errors at start."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from tornado.simple_httpclient import HTTPStreamClosedError
from tornado.testing import bind_unused_port

from config.settings import PROJECT_ROOT
from tests.support.client import ChatClient
from tests.support.server import Server, mongods_on, wait_for_no_mongod
from tests.support.waiting import eventually


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A new data directory."""
    return tmp_path / "data"


async def test_messages_survive_a_restart_with_an_embedded_mongod(
    tmp_path: Path, data_dir: Path
) -> None:
    with Server(tmp_path, "--data-dir", str(data_dir)) as server:
        chat = ChatClient(server.base)
        message_id = await chat.post("bob", "kept", 3600)
        assert len(mongods_on(data_dir)) == 1
        assert os.stat(data_dir).st_mode & 0o777 == 0o700
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert mongods_on(data_dir) == []
        server.start()
        chat = ChatClient(server.base)
        assert await chat.read("bob") == [("kept", message_id)]


@pytest.mark.parametrize("zone", ["Europe/Berlin", "CET-1CEST,M3.5.0,M10.5.0/3"])
async def test_a_server_in_any_time_zone_gives_each_message_once(
    tmp_path: Path, mongo_uri: str, database: str, zone: str
) -> None:
    uri = ("--mongo-uri", mongo_uri)
    with Server(tmp_path, *uri, CHAT_MONGO_DATABASE=database, TZ=zone) as server:
        chat = ChatClient(server.base)
        message_id = await chat.post("bob", "lunch?", 60)
        assert await chat.read("bob") == [("lunch?", message_id)]
        assert await chat.read("bob") == []


def listening(pid: int) -> list[str]:
    """Return what a process listens on: paths of unix sockets, and addresses of TCP sockets."""
    links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
    inodes = {link[len("socket:[") : -1] for link in links if link.startswith("socket:[")}
    network = Path(f"/proc/{pid}/net")
    unix = [
        line.split() for line in (network / "unix").read_text(encoding="ascii").splitlines()[1:]
    ]
    found = [words[7] for words in unix if words[6] in inodes and words[3] == "00010000"]
    for kind in ("tcp", "tcp6"):
        tcp = [
            line.split() for line in (network / kind).read_text(encoding="ascii").splitlines()[1:]
        ]
        found += [words[1] for words in tcp if words[9] in inodes and words[3] == "0A"]
    return found


async def test_the_embedded_mongod_listens_only_in_its_directory(
    tmp_path: Path, data_dir: Path
) -> None:
    with Server(tmp_path, "--data-dir", str(data_dir)):
        (mongod,) = mongods_on(data_dir)
        assert listening(mongod) == [str(data_dir / "mongod.sock")]


async def test_no_mongod_outlives_a_server_that_was_killed(tmp_path: Path, data_dir: Path) -> None:
    with Server(tmp_path, "--data-dir", str(data_dir)) as server:
        server.signal(signal.SIGKILL)
        server.wait()
        wait_for_no_mongod(data_dir)


async def kill_under_load(server: Server, prefix: str) -> dict[str, list[str]]:
    """Post with 30 clients at once and kill the server. Return the accepted ids by inbox."""
    chat = ChatClient(server.base)
    acknowledged: dict[str, list[str]] = {f"{prefix}-{number}": [] for number in range(30)}

    async def post_until_killed(name: str) -> None:
        with contextlib.suppress(OSError, HTTPStreamClosedError):
            while True:
                acknowledged[name].append(await chat.post(name, "x", 3600))

    async def is_busy() -> bool:
        return sum(map(len, acknowledged.values())) >= 300

    posting = [asyncio.create_task(post_until_killed(name)) for name in acknowledged]
    await eventually(is_busy)
    server.signal(signal.SIGKILL)
    await asyncio.gather(*posting)
    server.wait()
    chat.close()
    return acknowledged


async def test_a_server_killed_under_load_keeps_accepted_messages(
    tmp_path: Path, data_dir: Path
) -> None:
    with Server(tmp_path, "--data-dir", str(data_dir)) as server:
        for kill in range(3):
            acknowledged = await kill_under_load(server, f"kill-{kill}")
            server.start()
            chat = ChatClient(server.base)
            for name, ids in acknowledged.items():
                read = [message.id for message in await chat.read(name)]
                # There may be one more, which was stored but not answered before the kill.
                assert read[: len(ids)] == ids
                assert len(read) <= len(ids) + 1
                assert await chat.read(name) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
async def test_ctrl_c_or_a_lost_terminal_loses_no_accepted_message(
    tmp_path: Path, data_dir: Path, number: signal.Signals
) -> None:
    with Server(tmp_path, "--data-dir", str(data_dir)) as server:
        chat = ChatClient(server.base)
        answered: list[str] = []

        async def post_until_refused(name: str) -> None:
            while True:
                try:
                    answered.append(await chat.post(name, "x", 3600))
                # A reset means that the port was closed while the client connected.
                except (ConnectionRefusedError, ConnectionResetError):
                    return

        posting = [asyncio.create_task(post_until_refused(f"u{n}")) for n in range(20)]

        async def is_busy() -> bool:
            return len(answered) >= 200

        await eventually(is_busy)
        os.killpg(server.process.pid, number)
        await asyncio.gather(*posting)
        assert server.wait() == 0
        server.start()
        chat = ChatClient(server.base)
        stored = [message.id for n in range(20) for message in await chat.read(f"u{n}")]
        assert sorted(stored) == sorted(answered)


async def test_a_mongod_that_dies_is_started_again(tmp_path: Path, data_dir: Path) -> None:
    with Server(tmp_path, "--data-dir", str(data_dir)) as server:
        chat = ChatClient(server.base)
        message_id = await chat.post("bob", "kept", 3600)
        os.kill(mongods_on(data_dir)[0], signal.SIGKILL)
        answers = []
        while 200 not in answers:
            response = await chat.request("GET", "/chat/bob")
            answers.append(response.code)
        assert set(answers) <= {200, 503}
        assert json.loads(response.body) == [{"text": "kept", "id": message_id}]


async def test_a_second_signal_stops_at_once(tmp_path: Path, data_dir: Path) -> None:
    arguments = ("--data-dir", str(data_dir))
    with Server(tmp_path, *arguments, CHAT_DRAIN_DELAY_S="60") as server:
        server.signal(signal.SIGTERM)

        async def is_stopping() -> bool:
            return "stopping" in server.errors()

        await eventually(is_stopping)
        server.signal(signal.SIGTERM)
        assert server.wait() == 130
        wait_for_no_mongod(data_dir)


async def test_a_moved_data_directory_keeps_its_messages(tmp_path: Path, data_dir: Path) -> None:
    with Server(tmp_path, "--data-dir", str(data_dir)) as server:
        message_id = await ChatClient(server.base).post("bob", "kept", 3600)
        server.signal(signal.SIGTERM)
        server.wait()
    # This path is too long for a socket.
    moved = tmp_path / ("long-" * 20)
    shutil.move(data_dir, moved)
    with Server(tmp_path, "--data-dir", str(moved)) as server:
        assert await ChatClient(server.base).read("bob") == [("kept", message_id)]


def refusal(folder: Path, *arguments: str, port: int = 0, **environ: str) -> tuple[int, str]:
    """Start a server that cannot start. Return its exit code and the last line of its log."""
    server = Server(folder, *arguments, port=port, **environ)
    with pytest.raises(AssertionError):
        server.start()
    lines = server.errors().strip().splitlines()
    assert "Traceback" not in server.errors()
    return server.wait(), lines[-1]


def test_a_data_directory_in_use_is_named_with_a_fix(tmp_path: Path, data_dir: Path) -> None:
    with Server(tmp_path, "--data-dir", str(data_dir)) as server:
        (tmp_path / "second").mkdir()
        code, line = refusal(tmp_path / "second", "--data-dir", str(data_dir))
        assert code == 5
        assert f"in use by process {server.process.pid}" in line
        assert "--data-dir" in line


def test_a_directory_of_other_files_is_left_as_it_was(tmp_path: Path) -> None:
    letters = tmp_path / "letters"
    letters.mkdir(mode=0o755)
    (letters / "letter").touch()
    code, said = refusal(tmp_path, "--data-dir", str(letters))
    assert (code, "has files that do not belong to a database, such as 'letter'" in said) == (
        5,
        True,
    )
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    code, said = refusal(tmp_path, "--data-dir", str(shared))
    assert (code, "is shared with other users" in said) == (5, True)
    assert [path.name for path in letters.iterdir()] == ["letter"]
    assert [oct(path.stat().st_mode) for path in (letters, shared)] == ["0o40755", "0o41777"]
    # What it advises works.
    assert f"such as {shared}/chat; or" in said
    assert said.rstrip().endswith(f"run: chmod 700 {shared}")
    shared.chmod(0o700)
    with Server(tmp_path, "--data-dir", str(shared)):
        pass


def test_a_taken_port_is_named_with_a_fix(tmp_path: Path, data_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, line = refusal(tmp_path, "--data-dir", str(data_dir), port=port)
        assert code == 3
        assert f"cannot listen on 127.0.0.1:{port}" in line
        assert "--port" in line


def test_an_unreachable_database_is_named_with_a_fix(tmp_path: Path) -> None:
    uri = "mongodb://127.0.0.1:1/?directConnection=true"
    code, line = refusal(tmp_path, "--mongo-uri", uri, CHAT_MONGO_WAIT_S="0")
    assert code == 4
    assert "--mongo-uri" in line
    assert "127.0.0.1:1: " in line
    assert "Topology" not in line


def test_all_bad_settings_are_named_at_once(tmp_path: Path) -> None:
    server = Server(tmp_path, "--port", "many", CHAT_SHARDS="0")
    with pytest.raises(AssertionError):
        server.start()
    assert server.wait() == 2
    said = server.errors()
    assert "--port: must be an integer" in said
    assert "CHAT_SHARDS" in said


def test_variables_of_a_service_link_do_not_prevent_a_start(
    tmp_path: Path, mongo_uri: str, database: str
) -> None:
    with Server(
        tmp_path,
        *("--mongo-uri", mongo_uri),
        CHAT_MONGO_DATABASE=database,
        CHAT_PORT="tcp://10.0.0.1:8080",
        CHAT_SERVICE_HOST="10.0.0.1",
        CHAT_OPS_PORT="tcp://10.0.0.2:9090",
        CHAT_ID="1",
        CHAT_DEADLIN_S="4",
        # There is no such proxy: the health check must not use it.
        http_proxy="http://127.0.0.1:1",
    ) as server:
        words = [*server.command[:-5], "healthcheck", "--port", str(server.port)]
        checked = subprocess.run(
            words, env=server.environ, capture_output=True, encoding="utf-8", check=False
        )
        assert (checked.returncode, checked.stderr) == (0, "")
        logged = [json.loads(line) for line in server.errors().splitlines()]
        warned = [line["event"] for line in logged if line["level"] == "warning"]
        assert [line.split()[0] for line in warned] == ["CHAT_DEADLIN_S", "CHAT_ID"]
        assert "did you mean CHAT_DEADLINE_S?" in warned[0]


def has_ipv6() -> bool:
    """Return whether this machine has IPv6, at least on its loopback interface."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
async def test_the_host_of_all_addresses_takes_ipv4_too(
    tmp_path: Path, mongo_uri: str, database: str
) -> None:
    arguments = ("--mongo-uri", mongo_uri, "--host", "::")
    with Server(tmp_path, *arguments, CHAT_MONGO_DATABASE=database) as server:
        for host in ("127.0.0.1", "[::1]"):
            chat = ChatClient(f"http://{host}:{server.port}")
            await chat.post("bob", "kept")
            chat.close()


def test_a_program_that_is_no_mongod_is_named(tmp_path: Path, data_dir: Path) -> None:
    code, line = refusal(tmp_path, "--data-dir", str(data_dir), CHAT_MONGOD="/bin/false")
    assert code == 4
    assert "/bin/false ended with 1 and wrote no log: is it a mongod?" in line


def test_the_database_shell_prints_help_without_a_database() -> None:
    script = str(PROJECT_ROOT / "scripts" / "mongo-shell")
    shown = subprocess.run([script, "--help"], capture_output=True, encoding="utf-8", check=True)
    assert shown.stdout.startswith("usage: scripts/mongo-shell ")
    assert shown.stderr == ""


def test_without_any_mongod_the_ways_out_are_named(tmp_path: Path) -> None:
    code, line = refusal(tmp_path, CHAT_MONGOD=str(tmp_path / "none"))
    assert code == 4
    assert "cannot be executed" in line


async def test_the_log_has_the_request_and_neither_text_nor_name(
    tmp_path: Path, mongo_uri: str, database: str
) -> None:
    arguments = ("--mongo-uri", mongo_uri)
    with Server(tmp_path, *arguments, CHAT_MONGO_DATABASE=database) as server:
        chat = ChatClient(server.base)
        await chat.post("secret-name", "secret-text")
        await chat.request("GET", "/chat/secret-name", None, X_Request_ID="find-me")
        await chat.request("POST", "/chat", b'{"text":"secret-text","username":1}')
        for path in ("/livez", "/readyz", "/metrics"):
            await chat.request("GET", path)
        await chat.request("HEAD", "/chat/secret-name")
        await chat.request("POST", "/chat/secret-name", b"secret-text")

        def requests() -> list[dict[str, object]]:
            lines = [json.loads(line) for line in server.errors().splitlines()]
            return [line for line in lines if line["event"] == "request"]

        async def all_are_logged() -> bool:
            return len(requests()) == 5

        await eventually(all_are_logged)
        assert [line["status"] for line in requests()] == [201, 200, 400, 200, 201]
        # Tornado served the last two, the fast path the others. All have the same hashes, also the
        # post that has the name in its body. A body that is refused has none.
        (client,) = {line["client"] for line in requests()}
        assert re.fullmatch("[0-9a-f]{12}", str(client))
        assert "127.0.0.1" not in "".join(
            line for line in server.errors().splitlines() if '"request"' in line
        )
        assert requests()[1]["id"] == "find-me"
        read, post = requests()[1], requests()[4]
        assert read["route"] == post["route"] == "/chat/:username"
        assert [line.get("inbox") for line in requests()] == [
            None if line["status"] == 400 else read["inbox"] for line in requests()
        ]
        assert "secret" not in server.errors()


def test_the_operators_port_is_logged_at_start(tmp_path: Path, data_dir: Path) -> None:
    sock, port = bind_unused_port()
    sock.close()
    with Server(tmp_path, "--data-dir", str(data_dir), CHAT_OPS_PORT=str(port)) as server:
        assert server.process.stdout is not None
        assert server.process.stdout.readline() == f"operators: http://127.0.0.1:{port}/ops\n"


def test_print_config_shows_every_setting_and_no_secret(tmp_path: Path) -> None:
    server = Server(tmp_path, "--print-config", CHAT_MONGO_URI="mongodb://user:hush@db/")
    command = subprocess.run(
        server.command, env=server.environ, capture_output=True, encoding="utf-8", check=True
    )
    shown = json.loads(command.stdout)
    assert shown["mongo_uri"] == "***"
    assert shown["queue_max"] == 4000
    assert "hush" not in command.stdout
