"""The numbers and names in the systemd unit agree with the service."""

import re
from collections.abc import Iterator

import pytest

from chat_service import supervisor
from chat_service.cli.exit_codes import ExitCode
from config import Settings
from config.environment import unknown_variables
from config.settings import PROJECT_ROOT
from workers.mongod import embedded

_FOLDER = PROJECT_ROOT / "deploy" / "systemd"
_FILES = ("chat-inbox.service", "database.conf")


def options(name: str) -> Iterator[tuple[str, str]]:
    """Yield the options of a file and their values, in order."""
    for line in (_FOLDER / name).read_text(encoding="utf-8").splitlines():
        if found := re.fullmatch(r"(\w+)=(.*)", line):
            yield found[1], found[2]


UNIT = dict(options("chat-inbox.service"))


def test_a_stop_has_time_for_a_drain() -> None:
    settings = Settings()
    drain_s = settings.drain_delay_s + settings.drain_timeout_s
    needed_s = drain_s + supervisor._OVERTIME_S + embedded.STOP_S
    assert needed_s < int(UNIT["TimeoutStopSec"]) <= 2 * needed_s


def test_systemd_learns_when_the_service_is_ready() -> None:
    assert UNIT["Type"] == "notify"
    # Of the service only, and not of a process that it starts: that is the default.
    assert "NotifyAccess" not in UNIT
    # A pause of the loop that clients can bear must not end the service.
    assert int(UNIT["WatchdogSec"]) >= 2 * Settings().deadline_s


def test_only_what_may_pass_leads_to_a_restart() -> None:
    assert UNIT["Restart"] == "on-failure"
    never = {int(code) for code in UNIT["RestartPreventExitStatus"].split()}
    assert never == {ExitCode.REFUSED, ExitCode.DATA_DIR}


def test_the_unit_has_descriptors_for_all_waits() -> None:
    settings = Settings()
    # A quarter of the connections is kept for other requests.
    assert int(UNIT["LimitNOFILE"]) * 0.75 > settings.waiters_max


@pytest.mark.parametrize("name", _FILES)
def test_the_unit_sets_only_settings(name: str) -> None:
    environ = dict(value.split("=", 1) for key, value in options(name) if key == "Environment")
    assert environ
    assert not unknown_variables(environ)


def test_secrets_come_as_credentials() -> None:
    values = dict(options("database.conf"))
    credential, _, _ = values["LoadCredential"].partition(":")
    assert values["Environment"] == f"CHAT_MONGO_URI_FILE=%d/{credential}"
