"""The ballast exists while there is space, and frees its space when the disk is full."""

import os
from pathlib import Path

import pytest

from workers.mongod.ballast import SIZE_MAX, Ballast, free_bytes

#: What `statvfs` reports of a disk: its size and its free space, in bytes.
BIG, SMALL = 100 << 30, 256 << 20


class SetDisk:
    """Sets what the operating system reports of every disk."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch

    def __call__(self, size: int, free: int) -> None:
        fields = (4096, 4096, size >> 12, free >> 12, free >> 12, 0, 0, 0, 0, 255)
        self._monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result(fields))


@pytest.fixture
def set_disk(monkeypatch: pytest.MonkeyPatch) -> SetDisk:
    """Replaces the disk of the data directory by one with a given size and free space."""
    return SetDisk(monkeypatch)


def test_it_is_made_while_there_is_space(tmp_path: Path, set_disk: SetDisk) -> None:
    set_disk(BIG, BIG // 2)
    Ballast(tmp_path).fit()
    file = tmp_path / "ballast"
    assert file.stat().st_size == SIZE_MAX
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.stat().st_blocks * 512 >= SIZE_MAX, "its space is really taken"


def test_it_takes_a_sixteenth_of_a_small_disk(tmp_path: Path, set_disk: SetDisk) -> None:
    set_disk(SMALL, SMALL // 2)
    Ballast(tmp_path).fit()
    assert (tmp_path / "ballast").stat().st_size == SMALL // 16


def test_a_full_disk_gets_its_space_back_once(tmp_path: Path, set_disk: SetDisk) -> None:
    size = SMALL // 16
    set_disk(SMALL, SMALL // 2)
    Ballast(tmp_path).fit()
    set_disk(SMALL, size // 4)
    Ballast(tmp_path).fit()
    assert (tmp_path / "ballast").exists(), "a quarter of it is still free"
    set_disk(SMALL, size // 4 - 4096)
    Ballast(tmp_path).fit()
    assert not (tmp_path / "ballast").exists()
    set_disk(SMALL, 4 * size)
    Ballast(tmp_path).fit()
    assert not (tmp_path / "ballast").exists(), "it waits for more space than it takes"
    set_disk(SMALL, 4 * size + 4096)
    Ballast(tmp_path).fit()
    assert (tmp_path / "ballast").exists()


def test_no_part_of_it_stays_if_it_cannot_be_made(
    tmp_path: Path, set_disk: SetDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, offset: int, length: int) -> None:
        raise OSError(28, "No space left on device")

    set_disk(BIG, BIG // 2)
    monkeypatch.setattr(os, "posix_fallocate", refuse)
    Ballast(tmp_path).fit()
    assert not (tmp_path / "ballast").exists()


def test_a_folder_that_is_gone_has_no_known_space(tmp_path: Path) -> None:
    assert free_bytes(tmp_path) is not None
    assert free_bytes(tmp_path / "gone") is None
