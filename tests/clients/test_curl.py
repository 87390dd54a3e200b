"""curl, with the commands of docs/api.md."""

import asyncio
import json
from pathlib import Path

from tests.support.client import ChatClient
from tests.support.server import Server
from tests.support.waiting import eventually


async def curl(*arguments: str) -> str:
    """Run curl, which must succeed. Return its output."""
    process = await asyncio.create_subprocess_exec(
        "curl", "-sS", *arguments, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    return output.decode()


async def test_curl_long_polls_for_a_message(server: Server, chat: ChatClient) -> None:
    read = asyncio.create_task(curl(f"{server.base}/chat/bob?wait=20"))

    async def waits() -> bool:
        return await chat.metric("chat_waiters") == 1

    await eventually(waits)
    await curl("-d", '{"text": "hello", "username": "bob"}', f"{server.base}/chat")
    assert json.loads(await read)[0]["text"] == "hello"


async def test_a_killed_curl_long_poll_takes_nothing(server: Server, chat: ChatClient) -> None:
    process = await asyncio.create_subprocess_exec("curl", "-s", f"{server.base}/chat/bob?wait=20")

    async def waits(number: int) -> bool:
        return await chat.metric("chat_waiters") == number

    await eventually(lambda: waits(1))
    process.kill()
    await process.wait()
    await eventually(lambda: waits(0))
    await chat.post("bob", "hello")
    assert await chat.texts("bob") == ["hello"]


async def test_curl_repeats_a_keyed_post_and_a_keyed_read(server: Server) -> None:
    key = ("-H", "Idempotency-Key: 5d0f6a52-6cd4-4a0e-9a53-2ab1a34f3a1c")
    posts = [
        await curl(*key, "-d", '{"text": "pay 10", "username": "bob"}', f"{server.base}/chat")
        for _ in range(2)
    ]
    assert posts[0] == posts[1]
    reads = [await curl(*key, f"{server.base}/chat/bob") for _ in range(2)]
    assert reads[0] == reads[1]
    assert json.loads(reads[0])[0]["text"] == "pay 10"
    assert await curl(f"{server.base}/chat/bob") == "[]"


async def test_curl_posts_words_and_files_as_they_are(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "report.txt"
    file.write_bytes("caf\u00e9\r\n\n100 %&=\n".encode())
    inbox = f"{server.base}/chat/bob"
    for arguments in (
        ("-d", "Backup ok"),
        ("--data-binary", f"@{file}"),
        ("-H", "Content-Type:", "--data-binary", f"@{file}"),
        ("-H", "Content-Type: text/plain", "-H", "X-Timeout: 9", "-d", "hi"),
        ("-X", "POST", "-T", str(file)),
    ):
        assert json.loads(await curl(*arguments, inbox)).keys() == {"id"}
    texts = [each["text"] for each in json.loads(await curl(inbox))]
    text = file.read_bytes().decode()
    assert texts == ["Backup ok", text, text, "hi", text]
    refused = json.loads(await curl("-F", f"text=@{file}", inbox))
    assert (refused["status"], "--data-binary" in refused["detail"]) == (400, True)


async def test_curl_leases_and_acknowledges(server: Server) -> None:
    await curl("-d", '{"text": "hello", "username": "bob"}', f"{server.base}/chat")
    taken = json.loads(await curl("-X", "POST", f"{server.base}/chat/bob/lease?ttl=30"))
    lease = json.dumps({"lease": taken["lease"]})
    acknowledged = await curl("-d", lease, f"{server.base}/chat/bob/ack")
    assert acknowledged == '{"acknowledged":1}'


async def test_messages_of_a_killed_curl_stream_are_redelivered(
    server: Server, chat: ChatClient
) -> None:
    process = await asyncio.create_subprocess_exec(
        "curl", "-sN", f"{server.base}/chat/bob/stream", stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    await chat.post("bob", "hello")
    await process.stdout.readuntil(b'data: {"text":"hello"')
    process.kill()
    await process.communicate()
    assert await chat.texts("bob", "?wait=10") == ["hello"]


async def test_curl_posts_a_batch_and_revokes_a_message(server: Server, chat: ChatClient) -> None:
    messages = '[{"text": "a", "username": "bob"}, {"text": "b"}, {"text": "c", "username": "bob"}]'
    answer = await curl("-H", "Prefer: receipt", "-d", messages, f"{server.base}/chat/batch")
    first, bad, _ = json.loads(answer)["results"]
    assert bad["error"]["status"] == 400
    receipt = ("-H", f"X-Receipt: {first['receipt']}")
    asked = json.loads(await curl(*receipt, f"{server.base}/messages/{first['id']}/status"))
    assert (asked["status"], asked["at"]) == ("pending", None)
    await curl("-X", "DELETE", *receipt, f"{server.base}/messages/{first['id']}")
    assert await chat.texts("bob") == ["c"]
