"""Settings: where they come from, which source wins, and all that is wrong said at once."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from config import Settings, SettingsError, load_settings
from config.load import describe
from config.settings import PROJECT_ROOT
from config.table import markdown_table


def test_without_any_source_the_defaults_are_in_force() -> None:
    assert load_settings({}, {}) == Settings()


def test_the_command_line_wins_over_the_environment_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "chat.toml"
    file.write_text(
        'port = 1\nshards = 3\nallowed_hosts = ["a.test", "b.test"]\n', encoding="utf-8"
    )
    environ = {"CHAT_PORT": "2", "CHAT_BATCH_MAX": "7", "HOME": "/home/somebody"}
    settings = load_settings({"port": "3"}, environ, file)
    assert (settings.port, settings.shards, settings.batch_max) == (3, 3, 7)
    assert settings.allowed_hosts == ("a.test", "b.test")


def test_words_of_the_environment_become_values() -> None:
    environ = {
        "CHAT_ALLOWED_HOSTS": "a.test, b.test,",
        "CHAT_DEADLINE_S": "7.5",
        "CHAT_DATA_DIR": "/var/lib/chat",
        "CHAT_MONGO_DRIVER": "motor",
    }
    settings = load_settings({}, environ)
    assert settings.allowed_hosts == ("a.test", "b.test")
    assert settings.deadline_s == 7.5
    assert settings.data_dir == Path("/var/lib/chat")
    assert settings.mongo_driver == "motor"


def test_a_secret_may_be_in_a_file_and_is_never_shown(tmp_path: Path) -> None:
    secret = tmp_path / "uri"
    secret.write_text("mongodb://user:hush@db/\n", encoding="utf-8")
    settings = load_settings({}, {"CHAT_MONGO_URI_FILE": str(secret)})
    assert settings.mongo_uri == "mongodb://user:hush@db/"
    assert describe(settings)["mongo_uri"] == "***"
    assert "hush" not in str(describe(settings))


def test_all_that_is_wrong_is_said_at_once_with_its_source(tmp_path: Path) -> None:
    file = tmp_path / "chat.toml"
    file.write_text("shards = true\nno_such = 1\nqueue_max = 0\n", encoding="utf-8")
    environ = {"CHAT_PORT": "70000", "CHAT_NO_SUCH": "1", "CHAT_MONGO_URI_FILE": "/no/such"}
    with pytest.raises(SettingsError) as caught:
        load_settings({"data_dir": ""}, environ, file)
    said = "\n".join(caught.value.problems)
    for words in (
        "shards: must be an integer from 1 to 64, not True",
        "there is no setting 'no_such'",
        "queue_max: must be an integer from 1, not 0",
        "CHAT_PORT: must be an integer from 0 to 65535, not '70000'",
        "CHAT_NO_SUCH: there is no setting",
        "CHAT_MONGO_URI_FILE",
        "--data-dir: must be a path",
    ):
        assert words in said
    assert len(caught.value.problems) == 7


@pytest.mark.parametrize("content", ["port = ", "port = 1\nport = 2\n"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: str) -> None:
    file = tmp_path / "chat.toml"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(SettingsError, match="is not TOML"):
        load_settings({}, {}, file)
    with pytest.raises(SettingsError, match="cannot be read"):
        load_settings({}, {}, tmp_path / "none")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"default_timeout_s": "100", "max_timeout_s": "50"}, "longer than max_timeout_s"),
        ({"max_body_bytes": "100"}, "shorter than max_text_bytes"),
        ({"mongo_timeout_s": "6"}, "longer than deadline_s"),
        ({"mongo_uri": "http://db"}, "mongodb://"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(given: dict[str, str], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        load_settings(given, {})


def test_the_readmes_table_is_the_codes() -> None:
    readme = (PROJECT_ROOT / "README.md").read_text(encoding="utf-8")
    assert markdown_table() in readme, "refresh it with: scripts/settings-table"


def test_without_a_checkout_data_is_kept_apart_from_what_is_installed(tmp_path: Path) -> None:
    installed = tmp_path / "site-packages"
    shutil.copytree(PROJECT_ROOT / "config", installed / "config")
    program = "from config import Settings; print(Settings().data_dir)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", program],
        env={**os.environ, "PYTHONPATH": str(installed), "XDG_STATE_HOME": "/state"},
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    assert done.stdout == "/state/chat-inbox\n"
    assert Settings().data_dir == PROJECT_ROOT / "data"
