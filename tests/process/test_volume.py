"""Volume: a burst over many connections, and texts in many languages."""

import asyncio
import os
import random
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.load import Connection
from tests.support.server import Server

#: The burst has this many posts and as many reads. The figures in the docs are from 20000.
BURST = int(os.environ.get("TEST_BURST", "4000"))
#: A folder of `fortune` files (texts separated by lines of %). Their texts are tested as well.
FORTUNES = os.environ.get("TEST_FORTUNES", "")

TEXTS = [
    "Die Axt im Haus erspart den Zimmermann. — Schiller, „Wilhelm Tell“",
    "L'œuvre naïve d'un garçon très fâché, à Noël…",
    "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.",
    "いろはにほへと ちりぬるを わかよたれそ つねならむ",
    "키스의 고유조건은 입술끼리 만나야 하고 특별한 기술은 필요치 않다.",
    "דג סקרן שט בים מאוכזב ולפתע מצא חברה",
    "صِف خَلقَ خَودِ كَمِثلِ الشَمسِ إِذ بَزَغَت",
    "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण का सर्वनाश",
    '👩‍👩‍👧‍👦 🏳️‍🌈 e\u0301 \u202e \U0010ffff \ufffe \x00 \x1b[2J "quoted" \\ / <script>',
    "",
    "\n\t ",
]


def texts() -> list[str]:
    """Return the texts above, and every fortune in the folder."""
    found = list(TEXTS)
    for path in sorted(Path(FORTUNES).rglob("*") if FORTUNES else ()):
        if path.is_file() and not path.is_symlink() and path.suffix not in (".dat", ".u8"):
            content = path.read_bytes().decode("utf-8", "ignore")
            found += [text for text in content.split("\n%\n") if len(text.encode()) <= 65536]
    return found


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """The port of a server with an embedded mongod."""
    with Server(tmp_path, "--data-dir", str(tmp_path / "data")) as server:
        yield urlsplit(server.base).port or 0


async def test_a_burst_over_256_connections_is_accounted_for(port: int) -> None:
    connections = await asyncio.gather(*(Connection.open(port) for _ in range(256)))
    posted: dict[str, list[str]] = {}
    read: list[str] = []
    left = BURST

    async def press(connection: Connection, number: int) -> None:
        nonlocal left
        choose = random.Random(number)
        while left > 0:
            left -= 1
            username = f"user-{choose.randrange(1000)}"
            posted.setdefault(username, []).append(await connection.post(username, "x"))
            reader = f"user-{choose.randrange(1000)}"
            read.extend(message["id"] for message in await connection.read(reader))

    await asyncio.gather(*(press(each, number) for number, each in enumerate(connections)))
    for username in posted:
        read.extend(message["id"] for message in await connections[0].read(username))
    for connection in connections:
        connection.close()
    assert sorted(read) == sorted(each for ids in posted.values() for each in ids)
    assert len(read) >= BURST


async def test_texts_in_all_scripts_come_back_once_and_in_order(port: int) -> None:
    everything = texts()
    inboxes = [f"inbox-{number}" for number in range(1000)]
    connections = await asyncio.gather(*(Connection.open(port) for _ in range(32)))
    sent: dict[str, dict[int, list[str]]] = {name: {} for name in inboxes}

    async def send(connection: Connection, sender: int) -> None:
        for position in range(sender, len(everything), len(connections)):
            name = inboxes[position % len(inboxes)]
            await connection.post(name, f"{sender}:{everything[position]}")
            sent[name].setdefault(sender, []).append(everything[position])

    await asyncio.gather(*(send(each, number) for number, each in enumerate(connections)))
    ids: list[str] = []
    for name in inboxes:
        came: dict[int, list[str]] = {}
        for message in await connections[0].read(name):
            sender, _, text = message["text"].partition(":")
            came.setdefault(int(sender), []).append(text)
            ids.append(message["id"])
        assert came == sent[name]
    for connection in connections:
        connection.close()
    assert len(ids) == len(set(ids)) == len(everything)
