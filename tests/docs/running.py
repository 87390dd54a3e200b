"""Runs the code blocks of one document in order, and compares their output with the document.

Some values differ from run to run: ids, receipts, leases, times, the name of this machine. When
such a value first appears in the document, it is linked to the value of this run. Later commands
that contain it get the value of this run, and later outputs must show the same value. A line `...`
matches any lines.
"""

import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

from tests.support.blocks import Block
from tests.support.code_path import code_path

_ADDRESS = "127.0.0.1:8080"
VARIES = re.compile(
    r"(?P<request>\b[0-9a-f]{12}-[0-9a-f]+\b)|(?P<id>\b[0-9a-f]{32}\b)"
    r"|(?P<time>\b\d{4}-\d\d-\d\dT[\d:.]+Z)"
    r'|(?<=X-Receipt: )(?P<receipt>[\w-]{32})|(?<="receipt":")(?P<inline>[\w-]{32})'
    r"|(?<=  receipt )(?P<said>[\w-]{32})|(?P<age>just now|\b\d+ s ago\b)"
    r"|(?<= on )(?P<host>web-1)(?=: )"
)
SHAPES = {
    "request": "[0-9a-f]{12}-[0-9a-f]+",
    "id": "[0-9a-f]{32}",
    "time": r"\d{4}-\d\d-\d\dT[\d:.]+Z",
    "receipt": r"[\w-]{32}",
    "inline": r"[\w-]{32}",
    "said": r"[\w-]{32}",
    "age": r"just now|\d+ s ago",
    "host": r"[\w.-]+",
}
#: These commands get a terminal, on which they print output for people and remarks.
_FOR_PEOPLE = re.compile(r"(?:^|[|] )(?:\w+=\S+ )*(?:(?:scripts/)?chat|http) ")
#: HTTPie writes the address of this machine without a host. It always colors what a terminal shows.
_PORT = re.compile(r"(?<=\s):8080(?=/)")
_COLOR = re.compile(r"\x1b\[[\d;]*m")
_WITHIN_S = 90.0
#: Runs a program from a document, which may use `await` anywhere.
_SNIPPET = """
import ast, asyncio, inspect, sys
from pathlib import Path
import chat_inbox as client
source = Path(sys.argv[1]).read_text(encoding="utf-8")
code = compile(source, sys.argv[1], "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
names = {"__name__": "__main__", **{name: getattr(client, name) for name in client.__all__}}
running = eval(code, names)
if inspect.iscoroutine(running):
    asyncio.run(running)
"""


class Differs(AssertionError):
    """The output differs from the document."""


class Running:
    """A command that was started. Its output so far is in a file."""

    def __init__(self, command: list[str], folder: Path, environ: dict[str, str]) -> None:
        self._output = folder / f".said-{time.monotonic_ns()}"
        self._errors = self._output.with_suffix(".errors")
        with self._output.open("wb") as output, self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        """Return what it has written to stdout."""
        return _COLOR.sub("", self._output.read_text(encoding="utf-8").replace("\r\n", "\n"))

    def ends(self) -> str:
        """Wait for it to succeed and return its output."""
        self._wait()
        if self.process.returncode:
            raise Differs(f"exit {self.process.returncode}: {self.said}{self._complaints()}")
        return self.said

    def is_interrupted_once(self, has_said: str) -> str:
        """Interrupt it once its output begins to match, and return the output."""
        self.wait_until(has_said)
        self.stop(signal.SIGINT)
        return self.said

    def wait_until(self, has_said: str) -> None:
        """Wait until its output begins to match. If it does not, stop it and raise `Differs`."""
        deadline = time.monotonic() + _WITHIN_S
        while not re.match(has_said, self.said):
            if time.monotonic() > deadline or self.process.poll() is not None:
                self.stop()
                raise Differs(f"its output: {self.said!r}{self._complaints()}")
            time.sleep(0.02)

    def stop(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End it and its child processes."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, number)
        self._wait()

    def _wait(self) -> None:
        try:
            self.process.wait(_WITHIN_S)
        except subprocess.TimeoutExpired as error:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            raise Differs(f"it does not end; its output: {self.said!r}") from error

    def _complaints(self) -> str:
        return "\n" + self._errors.read_text(encoding="utf-8")


class Runner:
    """Runs code blocks in a checkout, against the service at an address."""

    def __init__(self, folder: Path, address: str) -> None:
        self._folder = folder
        self.address = address
        #: Values in the document, and their values in this run.
        self._real: dict[str, str] = {}
        self._meanwhile: tuple[Running, Block, str] | None = None
        #: The service that the document started.
        self._service: Running | None = None

    def run(self, block: Block) -> None:
        """Run one block. Raise `Differs` if the result is not that of the document."""
        for command in block.first:
            self._start(["bash", "-c", self._realised(command)]).ends()
        before, self._meanwhile = self._meanwhile, None
        if "file" in block.marks:
            text = block.text.replace(_ADDRESS, self.address)
            (self._folder / block.marks["file"]).write_text(text, encoding="utf-8")
        elif "service" in block.marks:
            self._serve(block)
        elif block.language == "sh":
            self._run_script(block)
        elif block.language == "python":
            self._run_program(block)
        else:
            for command, output in block.commands():
                running = self._start_command(self._realised(command))
                if "meanwhile" in block.marks:
                    self._meanwhile = running, block, output
                else:
                    self._compare(running, block, output)
        if before is not None:
            self._compare(*before)

    def close(self) -> None:
        """Stop what is still running, if anything is."""
        if self._meanwhile is not None:
            self._meanwhile[0].stop()
        if self._service is not None:
            self._service.stop(signal.SIGINT)

    def _start_command(self, command: str) -> Running:
        if not _FOR_PEOPLE.search(command):
            return self._start(["bash", "-c", command])
        # Its remarks on the terminal are compared as well.
        return self._start(["script", "-qc", command, "/dev/null"], SHELL="/bin/bash", NO_COLOR="1")

    def _start(self, command: list[str], **environ: str) -> Running:
        path = f"{self._folder}/.venv/bin:{self._folder}/scripts:{os.environ['PATH']}"
        ours = {key: value for key, value in os.environ.items() if not key.startswith("CHAT_")}
        ours |= {"PYTHONPATH": code_path(self._folder), "PYTHONUNBUFFERED": "1", "PATH": path}
        # Commands for this machine look at the usual port, where another service may be.
        port = self.address.rpartition(":")[2]
        ours |= {"CHAT_URL": f"http://{self.address}", "CHAT_PORT": port}
        return Running(command, self._folder, ours | environ)

    def _run_script(self, block: Block) -> None:
        if "until Ctrl-C" not in block.marks:
            self._start(["bash", "-e", "-c", self._realised(block.text)]).ends()
            return
        running, has_said = self._start_service(block)
        running.is_interrupted_once(has_said)
        running.ends()

    def _serve(self, block: Block) -> None:
        """Start a service in place of the earlier one, and use it from now on."""
        if self._service is not None:
            self._service.stop(signal.SIGINT)
        self._service, has_said = self._start_service(block)
        self._service.wait_until(has_said)
        self.address = has_said.removeprefix("listening on http://").strip()

    def _start_service(self, block: Block) -> tuple[Running, str]:
        """Start a service on a free port. Return it, and what it says once it listens."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        command = self._realised(block.text.replace("8080", port))
        running = self._start(["bash", "-e", "-c", command], CHAT_PORT=port)
        return running, f"listening on http://127.0.0.1:{port}\n"

    def _run_program(self, block: Block) -> None:
        file = self._folder / f"snippet_{block.line}.py"
        file.write_text(block.text.replace(_ADDRESS, self.address), encoding="utf-8")
        running = self._start(["python", "-c", _SNIPPET, str(file)])
        said = running.is_interrupted_once(".") if "until Ctrl-C" in block.marks else running.ends()
        if "print(" in block.text and not said:
            raise Differs("it prints nothing")

    def _compare(self, running: Running, block: Block, output: str) -> None:
        pattern, names = self._pattern(output)
        if "until Ctrl-C" in block.marks:
            said = running.is_interrupted_once(pattern)
        else:
            said = running.ends()
        match = re.fullmatch(pattern + r"\s*", said)
        if match is None:
            raise Differs(f"the output is\n{said}\ninstead of\n{output}")
        self._real |= {text: match[name] for text, name in names.items()}

    def _realised(self, text: str) -> str:
        """Return a command with the values of this run."""
        for shown, real in self._real.items():
            text = text.replace(shown, real)
        text = _PORT.sub(f":{self.address.rpartition(':')[2]}", text)
        return text.replace(_ADDRESS, self.address)

    def _pattern(self, output: str) -> tuple[str, dict[str, str]]:
        """Return the pattern of an output, and the names of the groups with new values."""
        names: dict[str, str] = {}
        lines = []
        for line in output.splitlines():
            if line.strip() == "...":
                lines.append(r"(?:.*\n)*?")
                continue
            pieces, end = [], 0
            for found in VARIES.finditer(line):
                pieces.append(re.escape(self._realised(line[end : found.start()])))
                pieces.append(self._variable(found, names))
                end = found.end()
            pieces.append(re.escape(self._realised(line[end:])))
            lines.append("".join(pieces).rstrip() + r"[ \t]*\n?")
        return "".join(lines), names

    def _variable(self, found: "re.Match[str]", names: dict[str, str]) -> str:
        text, kind = found[0], str(found.lastgroup)
        if kind == "age":
            return f"(?:{SHAPES[kind]})"
        if text in self._real:
            return re.escape(self._real[text])
        if text in names:
            return f"(?P={names[text]})"
        names[text] = f"v{len(names)}"
        return f"(?P<{names[text]}>{SHAPES[kind]})"
