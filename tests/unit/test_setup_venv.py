"""What scripts/setup_venv.py makes of the outputs of uv and pip, and of the files with the pins."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from config.settings import PROJECT_ROOT


@pytest.fixture(scope="module")
def setup_venv() -> ModuleType:
    """The script as a module."""
    file = PROJECT_ROOT / "scripts" / "setup_venv.py"
    spec = importlib.util.spec_from_file_location("setup_venv", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("output", "advice"),
    [
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("failed to copy file: No space left on device (os error 28)", "the disk is full"),
        ("SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED]", "PIP_CERT"),
        ("invalid peer certificate: UnknownIssuer", "SSL_CERT_FILE"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQ", "is pinned"),
        ("error: Hash mismatch for `click==8.5.1`", "is pinned"),
        ("NewConnectionError: [Errno -3] Temporary failure in name resolution", "HTTPS_PROXY"),
        ("client error (Connect): dns error: failed to lookup address", "HTTPS_PROXY"),
        ("Cannot connect to proxy.', ProxyError('Connection refused'", "HTTPS_PROXY"),
        ("error: command 'gcc' failed: No such file or directory", "docker compose up"),
        ("something else", ""),
    ],
)
def test_a_failed_installation_names_the_fix(
    setup_venv: ModuleType, output: str, advice: str
) -> None:
    explained = setup_venv.explain(output)
    assert advice in explained
    assert bool(explained) == bool(advice)


def test_a_pin_with_a_condition_is_not_checked(setup_venv: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "pins.txt"
    lines = (
        "a==1.0 \\\n    --hash=sha256:1\nb-c==2 ; python_full_version < '3.15' \\\n    --hash=x\n"
    )
    file.write_text(lines, encoding="utf-8")
    assert setup_venv.pins_of([file, file]) == [("a", "1.0"), ("b-c", "")]


def test_a_python_without_venv_is_named_with_the_fix(
    setup_venv: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup_venv, "find_pip", lambda: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(setup_venv.SetupError, match="apt install python3-venv"):
        setup_venv.Setup(tmp_path / "venv", [], 0).run("mark")
    assert not (tmp_path / "venv").exists()


def test_a_nearly_full_disk_is_noticed_before_any_download(
    setup_venv: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup_venv.sys, "platform", "linux")
    monkeypatch.setattr(setup_venv.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(setup_venv.shutil, "disk_usage", _Disk)
    pins = [PROJECT_ROOT / "requirements" / "embedded.txt"]
    with pytest.raises(setup_venv.SetupError, match="only 1 MB left"):
        setup_venv.Setup(tmp_path / "venv", pins, 0).run("mark")


def test_an_environment_behind_a_link_is_updated(
    setup_venv: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup_venv.signal, "signal", lambda *_: None)
    monkeypatch.setattr(setup_venv, "_take_lock", lambda path: 0)
    monkeypatch.setattr(
        setup_venv.Setup, "_install", lambda setup: (setup._directory / "bin").mkdir(parents=True)
    )
    link, target = tmp_path / "venv", tmp_path / "elsewhere" / "venv"
    target.mkdir(parents=True)
    link.symlink_to(target)
    for mark in ("first", "second", "third"):
        assert setup_venv.main(link, mark, []) == 0
        assert (target / ".installed").read_text(encoding="utf-8").startswith(mark)
    assert link.is_symlink()
    assert [each.name for each in tmp_path.glob("*.former")] == []


class _Disk:
    """A disk with a free MB."""

    free = 1 << 20

    def __init__(self, path: Path) -> None:
        del path
