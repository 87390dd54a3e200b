"""Draws docs/pictures/terminal.svg, an animated recording of commands on a real service.

`python -m tests.docs.recording` makes it anew. A test runs the same commands and compares what they
print with the picture. The animation plays once, so that everything can be read in the end. A
browser that prefers reduced motion shows the whole text at once.
"""

import io
import os
import pty
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

from rich.console import Console
from rich.style import Style
from rich.terminal_theme import TerminalTheme
from rich.text import Text

from config.settings import PROJECT_ROOT
from tests.docs.running import VARIES
from tests.support.code_path import CODE_PATH
from tests.support.mongod import running_mongod
from tests.support.server import Server

PICTURE = PROJECT_ROOT / "docs" / "pictures" / "terminal.svg"
ADDRESS: Final = "127.0.0.1:8080"
COLUMNS: Final = 92
#: A comment and the commands that it describes. `LEASE` is the lease that was printed last.
SCENES: Final = {
    "no setup: a name is an inbox. The message expires in ten minutes": (
        "chat send bob 'lunch at one?' --timeout 10m",
    ),
    "it is read once": ("chat read bob", "chat read bob"),
    "plain HTTP, from any script": (
        f"curl -sd 'backup ok' {ADDRESS}/chat/ops",
        f"curl -s {ADDRESS}/chat/ops?wait=20",
    ),
    "a job is leased, and acknowledged when it is done": (
        "chat send jobs 'resize 17.png'",
        "chat lease jobs",
        "chat ack jobs LEASE",
    ),
    "a reminder for this evening": ("chat send bob 'lock the door' --in 8h --timeout 1h",),
}
_LEASE = re.compile(r"^lease ([0-9a-f]{32})", re.MULTILINE)
_BACKGROUND, _TEXT = (17, 27, 31), (214, 226, 224)
_COLORS = [
    *((17, 27, 31), (240, 128, 120), (122, 202, 152), (231, 190, 110)),
    *((120, 170, 240), (190, 160, 240), (108, 197, 209), (214, 226, 224)),
]
#: The height of a line that rich draws.
_ROW_PX = 24.4
_THEME = TerminalTheme(_BACKGROUND, _TEXT, _COLORS)
_PROMPT, _COMMAND = Style(color="cyan", bold=True), Style(bold=True)
_COMMENT = Style(color="green")
#: Seconds for a typed character, before an output, and before the next command.
_TYPING_S, _ANSWER_S, _READING_S = 0.03, 0.3, 0.6


def record(address: str) -> list[Text]:
    """Run the commands on the service at an address, each on a terminal of its own.

    Return all lines in the order of the screen. Raise CalledProcessError if a command fails. An
    exit code of 1 is no failure: `chat read` exits with it if there is nothing to read.
    """
    lines, lease = [], ""
    with tempfile.TemporaryDirectory() as name:
        chat = Path(name) / "chat"
        chat.write_text(f'#!/bin/sh\nexec {sys.executable} -P -m chat_service "$@"\n', "ascii")
        chat.chmod(0o755)
        for comment, commands in SCENES.items():
            lines.append(Text(f"# {comment}", _COMMENT))
            for command in commands:
                command = command.replace("LEASE", lease)
                lines.append(Text.assemble(("$ ", _PROMPT), (command, _COMMAND)))
                said = Text.from_ansi(_output(command.replace(ADDRESS, address), name, address))
                lease = next(iter(_LEASE.findall(said.plain)), lease)
                lines += said.split()
            lines.append(Text())
    return lines[:-1]


def _output(command: str, programs: str, address: str) -> str:
    environ = {key: value for key, value in os.environ.items() if not key.startswith("CHAT_")}
    environ |= {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": CODE_PATH,
        "CHAT_URL": f"http://{address}",
        "TERM": "xterm-256color",
    }
    environ.pop("NO_COLOR", None)
    ours, theirs = pty.openpty()
    with open(ours, "rb", buffering=0) as terminal:
        arguments = ["bash", "-c", command]
        process = subprocess.Popen(
            arguments, env=environ, stdin=theirs, stdout=theirs, stderr=theirs
        )
        os.close(theirs)
        said = _until_closed(terminal)
        code = process.wait()
    if code not in (0, 1):
        raise subprocess.CalledProcessError(code, arguments, said)
    return said.decode().replace("\r\n", "\n").rstrip("\n")


def _until_closed(terminal: io.FileIO) -> bytes:
    said = b""
    while True:
        try:
            more = terminal.read(4096)
        except OSError:
            # Linux answers EIO once no process has the terminal open.
            return said
        if not more:
            return said
        said += more


def draw(lines: list[Text]) -> str:
    """Return the recording as an SVG document. Lines longer than the terminal are wrapped."""
    console = Console(
        record=True,
        width=COLUMNS,
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
        legacy_windows=False,
        _environ={},
    )
    rules, at_s = [], 0.5
    rows = [(line, part) for line in lines for part in line.wrap(console, COLUMNS) or [Text()]]
    for row, (line, part) in enumerate(rows):
        console.print(part, soft_wrap=True)
        if line.plain.startswith("$ "):
            for_s = len(part) * _TYPING_S
            effect = f"type {for_s:.2f}s steps({len(part)}) {at_s + _READING_S:.2f}s both"
            at_s += _READING_S + for_s
        else:
            at_s += _ANSWER_S
            effect = f"appear 1ms {at_s:.2f}s both"
        rules.append(f'    [clip-path="url(#t-line-{row})"] {{{{ animation: {effect} }}}}')
    template = _TEMPLATE % (len(rows) * _ROW_PX + 36, "\n".join(rules))
    return str(console.export_svg(theme=_THEME, code_format=template, unique_id="t"))


#: The variables are those of rich; braces of CSS are doubled.
_TEMPLATE: Final = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} %.1f" role="img">
<title>A terminal: messages are sent, read once, leased and scheduled</title>
<style>
  text {{
    font: {char_height}px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
    white-space: pre
  }}
{styles}
  @keyframes appear {{ from {{ opacity: 0 }} }}
  @keyframes type {{
    from {{ clip-path: inset(-9px 100%% -9px 0) }}
    to {{ clip-path: inset(-9px -9px -9px 0) }}
  }}
  @media (prefers-reduced-motion: no-preference) {{
%s
  }}
</style>
<defs>
{lines}
</defs>
<rect width="100%%" height="100%%" rx="10" fill="#111b1f"/>
<g transform="translate(18, 14)">
{backgrounds}
{matrix}
</g>
</svg>
"""


def visible(document: str) -> list[str]:
    """Return the lines of text that a picture shows."""
    rows: dict[float, str] = {}
    for element in ElementTree.fromstring(document).iter("{http://www.w3.org/2000/svg}text"):
        at = float(element.attrib["y"])
        rows[at] = rows.get(at, "") + (element.text or "").strip("\n").replace("\xa0", " ")
    return [rows[at].rstrip() for at in sorted(rows)]


def normalized(lines: list[str]) -> list[str]:
    """Return lines in which ids, leases and times are the same in all runs."""
    return [VARIES.sub(lambda found: str(found.lastgroup), line) for line in lines]


def main() -> None:
    """Start a service, record, and write the picture."""
    with (
        tempfile.TemporaryDirectory() as name,
        running_mongod(Path(name) / "data") as uri,
        Server(Path(name), "--mongo-uri", uri, CHAT_MONGO_DATABASE="recording") as server,
    ):
        lines = record(server.base.removeprefix("http://"))
    PICTURE.write_text(draw(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
