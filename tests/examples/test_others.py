"""Apprise and HTTPie send to the service, with the lines of examples/."""

import json
import re
import shutil
from pathlib import Path

from pymongo import MongoClient

from tests.conftest import Connect, StartService
from tests.examples.conftest import EXAMPLES, Ended, run
from tests.pages.access import Tokens
from tests.support.client import ChatClient


async def use(program: str, *arguments: str, **environ: str) -> Ended:
    """Run a program that is installed beside the tests."""
    path = shutil.which(program)
    assert path is not None
    return await run(path, *arguments, **environ)


def apprise_config(chat: ChatClient, folder: Path) -> str:
    """Return a file with the example's configuration, for the service of the test."""
    text = (EXAMPLES / "apprise.conf").read_text(encoding="utf-8")
    file = folder / "apprise.conf"
    file.write_text(text.replace("127.0.0.1:8080", chat.base.removeprefix("http://")), "utf-8")
    return str(file)


async def test_apprise_sends_a_text_for_a_day(
    chat: ChatClient, mongo_uri: str, database: str, tmp_path: Path
) -> None:
    text = '100% "full" & <b>caf\u00e9</b>\nsecond line'
    config = apprise_config(chat, tmp_path)
    sent = await use("apprise", "--config", config, "--tag", "ops", "--body", text)
    assert sent.code == 0, sent
    with MongoClient[dict[str, object]](mongo_uri, tz_aware=True) as client:
        (stored,) = client[database]["messages"].find({"username": "ops"})
    lifetime = stored["expires_at"] - stored["created_at"]  # type: ignore[operator]
    assert lifetime.total_seconds() == 86400
    assert await chat.texts("ops") == [text]


async def test_apprise_reports_a_refusal(chat: ChatClient, tmp_path: Path) -> None:
    config = apprise_config(chat, tmp_path)
    failed = await use("apprise", "--config", config, "--tag", "ops", "--body", "x" * 70000)
    assert failed.code == 1
    assert await chat.texts("ops") == []


async def test_apprise_sends_a_token(
    start_service: StartService, connect: Connect, tokens: Tokens
) -> None:
    token = tokens.add("apprise", send=["ops"])
    tokens.add("ops", read=["ops"])
    chat = connect(await start_service(access="tokens", access_file=str(tokens.path)))
    example = (EXAMPLES / "apprise.conf").read_text(encoding="utf-8")
    (line,) = re.findall(r"^# ops=(jsons://.+)$", example, re.MULTILINE)
    url = line.replace("jsons://chat.example", chat.base.replace("http", "json", 1))
    refused = await use("apprise", "--body", "hello", url)
    assert refused.code == 1
    sent = await use("apprise", "--body", "hello", url.replace("cht_...", token))
    assert sent.code == 0, sent


async def test_a_session_of_httpie_keeps_the_token(
    start_service: StartService, connect: Connect, tokens: Tokens, tmp_path: Path
) -> None:
    token = tokens.add("bob", send=["bob"], read=["bob"])
    chat = connect(await start_service(access="tokens", access_file=str(tokens.path)))
    common = ("--ignore-stdin", "--check-status", f"--session={tmp_path / 'bob.json'}")
    home = {"HOME": str(tmp_path)}
    first = ("POST", f"{chat.base}/chat", "username=bob", "text=lunch?", "timeout:=60")
    sent = await use("http", *common, *first, "-A", "bearer", "-a", token, **home)
    assert sent.code == 0, sent
    read = await use("http", *common, f"{chat.base}/chat/bob", **home)
    assert [each["text"] for each in json.loads(read.output)] == ["lunch?"]
    refused = await use("http", "--ignore-stdin", "--check-status", f"{chat.base}/chat/bob", **home)
    assert refused.code == 4
