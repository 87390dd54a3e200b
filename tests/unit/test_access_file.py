"""The access file on a disk: which changes are noticed, and which are read later."""

import errno
import os
from pathlib import Path

import pytest

from chat_service.access import control
from chat_service.access.control import AccessFile, AccessUnusable
from tests.support.access import everybody, write


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The path of an access file with all holders."""
    path = tmp_path / "access.toml"
    write(path, everybody())
    return path


@pytest.fixture
def file(path: Path, monkeypatch: pytest.MonkeyPatch) -> AccessFile:
    """That file, read once. Its changes count at once."""
    monkeypatch.setattr(control, "_SETTLED_NS", 0)
    file = AccessFile(path, takes_tokens=True)
    file.read()
    return file


def test_a_file_is_read_again_only_after_a_change(path: Path, file: AccessFile) -> None:
    assert file.read_again() is None
    write(path, everybody(bob="-"))
    grants = file.read_again()
    assert grants is not None
    assert len(grants.tokens) == 5
    assert file.read_again() is None


def test_a_change_of_the_same_size_and_time_is_noticed(path: Path, file: AccessFile) -> None:
    before = path.stat()
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"team-*"', '"mate-*"'), encoding="utf-8")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert file.read_again() is not None


def test_a_swapped_link_is_noticed(tmp_path: Path, file: AccessFile, path: Path) -> None:
    # As for the secrets of Kubernetes: the file is a link into a folder, which is a link.
    for name, text in (("one", everybody()), ("two", everybody(bob="-"))):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "access.toml", text)
    (tmp_path / "data").symlink_to("one")
    path.unlink()
    path.symlink_to(Path("data", "access.toml"))
    assert file.read_again() is not None
    (tmp_path / "new").symlink_to("two")
    os.replace(tmp_path / "new", tmp_path / "data")
    grants = file.read_again()
    assert grants is not None
    assert len(grants.tokens) == 5


def test_a_file_that_is_being_written_is_read_later(
    path: Path, file: AccessFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "_SETTLED_NS", 3600 * 10**9)
    path.write_text("", encoding="utf-8")
    assert file.read_again() is None
    path.write_text(everybody(bob="-"), encoding="utf-8")
    assert file.read_again() is None
    monkeypatch.setattr(control, "_SETTLED_NS", 0)
    grants = file.read_again()
    assert grants is not None
    assert len(grants.tokens) == 5


def test_a_time_in_the_future_delays_nothing(path: Path, file: AccessFile) -> None:
    write(path, everybody(bob="-"))
    os.utime(path, (4e9, 4e9))
    assert file.read_again() is not None


def test_a_broken_file_is_reported_once(path: Path, file: AccessFile) -> None:
    write(path, "[[token]]")
    with pytest.raises(AccessUnusable, match=r"access\.toml: \[\[token\]\] 1: name"):
        file.read_again()
    assert file.read_again() is None
    path.unlink()
    with pytest.raises(AccessUnusable, match="cannot be read: No such file"):
        file.read_again()
    assert file.read_again() is None
    write(path, everybody())
    assert file.read_again() is not None


def test_a_file_that_could_not_be_read_is_read_again(
    path: Path, file: AccessFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> str:
        raise OSError(errno.EIO, "Input/output error")

    write(path, everybody(bob="-"))
    with monkeypatch.context() as broken:
        broken.setattr(Path, "read_text", fail)
        for _ in range(2):
            with pytest.raises(AccessUnusable, match="cannot be read: Input/output error"):
                file.read_again()
    assert file.read_again() is not None


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"\xff", "is not UTF-8"), (everybody().encode(), r"\[\[token\]\] needs access=tokens")],
)
def test_an_unusable_file_is_refused(content: bytes, said: str, path: Path) -> None:
    path.write_bytes(content)
    with pytest.raises(AccessUnusable, match=said):
        AccessFile(path, takes_tokens=False).read()


def test_a_byte_order_mark_is_ignored(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbf" + everybody().encode())
    assert len(AccessFile(path, takes_tokens=True).read().tokens) == 6
