"""The systemd unit has no error, and leaves the service little that it could do wrong."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from config.settings import PROJECT_ROOT

_FOLDER = PROJECT_ROOT / "deploy" / "systemd"
_UNIT = "chat-inbox.service"
#: systemd's measure of what a unit leaves open, from 0 to 10. The network is half of it.
_EXPOSURE_MAX = 1.3


def systemd_analyze(*arguments: str) -> str:
    """Run systemd-analyze and return everything that it says. It must succeed."""
    done = subprocess.run(
        ["systemd-analyze", "--no-pager", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_systemd_finds_no_error_in_the_unit(tmp_path: Path) -> None:
    text = (_FOLDER / _UNIT).read_text(encoding="utf-8")
    # It looks for the program, which is not installed here.
    assert "\nExecStart=/opt/chat-inbox/bin/chat serve\n" in text
    text = text.replace("=/opt/chat-inbox/bin/chat ", "=/bin/true ")
    (tmp_path / _UNIT).write_text(text, encoding="utf-8")
    assert _UNIT not in systemd_analyze("verify", "--man=no", str(tmp_path / _UNIT))


@pytest.mark.parametrize("more", [(), ("database.conf",)], ids=["embedded", "database"])
def test_the_unit_leaves_little_open(tmp_path: Path, more: tuple[str, ...]) -> None:
    units = tmp_path / "etc" / "systemd" / "system"
    (units / f"{_UNIT}.d").mkdir(parents=True)
    shutil.copy(_FOLDER / _UNIT, units)
    for name in more:
        shutil.copy(_FOLDER / name, units / f"{_UNIT}.d")
    said = systemd_analyze("security", "--offline=true", f"--root={tmp_path}", _UNIT)
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", said)
    assert found is not None
    assert float(found[1]) <= _EXPOSURE_MAX - 0.1 * len(more)
