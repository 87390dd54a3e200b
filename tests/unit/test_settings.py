"""Settings: their sources, which source wins, and errors that name all problems at once."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from config import Settings, SettingsError, load_settings
from config.environment import setting_variables, unknown_variables
from config.load import describe
from config.settings import PROJECT_ROOT
from config.table import markdown_table


def test_without_any_source_the_defaults_are_in_force() -> None:
    assert load_settings({}, {}) == Settings()


def test_the_command_line_precedes_environment_and_file(tmp_path: Path) -> None:
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


def test_all_errors_are_named_at_once_with_their_source(tmp_path: Path) -> None:
    file = tmp_path / "chat.toml"
    file.write_text("shards = true\nno_such = 1\nqueue_max = 0\n", encoding="utf-8")
    environ = {"CHAT_PORT": "70000", "CHAT_HOST": "\udcff", "CHAT_MONGO_URI_FILE": "/no/such"}
    with pytest.raises(SettingsError) as caught:
        load_settings({"data_dir": ""}, environ, file)
    said = "\n".join(caught.value.problems)
    for words in (
        "shards: must be an integer from 1 to 64, not True",
        "there is no setting 'no_such'",
        "queue_max: must be an integer from 1, not 0",
        "CHAT_PORT: must be an integer from 0 to 65535, not '70000'",
        "CHAT_HOST: must be text, not '\\udcff'",
        "CHAT_MONGO_URI_FILE",
        "--data-dir: must be a path",
    ):
        assert words in said
    assert len(caught.value.problems) == 7


#: Settings of access that make no sense, and what is said about each.
SENSELESS: Final = {
    "tokens": ({"access": "tokens"}, ["access_file: is required for access=tokens"]),
    "both": (
        {"access": "both"},
        [
            "access_file: is required for access=both",
            "jwt_issuer: is required for access=both",
            "jwt_audience: is required for access=both",
        ],
    ),
    "jwt": (
        {"access": "jwt", "jwt_issuer": "https://a"},
        ["jwt_audience: is required for access=jwt"],
    ),
    "a file": (
        {"access_file": "a"},
        ["access_file: has no effect with access=off; set access=tokens"],
    ),
    "an address": (
        {"public_url": "chat.example"},
        ["public_url: must be a URL such as https://chat.example"],
    ),
    "keys": (
        {"access": "tokens", "access_file": "a", "jwt_keys": "b"},
        ["jwt_keys: has no effect with access=tokens"],
    ),
}


@pytest.mark.parametrize(("given", "said"), SENSELESS.values(), ids=SENSELESS)
def test_settings_of_access_must_make_sense(given: dict[str, str], said: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(given, {})
    assert caught.value.problems == said


def test_the_access_file_can_be_set_by_a_variable() -> None:
    environ = {"CHAT_ACCESS": "tokens", "CHAT_ACCESS_FILE": "/etc/chat/access.toml"}
    assert load_settings({}, environ).access_file == "/etc/chat/access.toml"
    assert unknown_variables(environ) == []


#: What Kubernetes sets for a Service `chat` (with IPv6, and a port named http), what Docker sets
#: for a link, and what both set for one named `chat-ops`, whose port is a setting of ours.
_LINKS = {
    "CHAT_PORT": "tcp://10.0.0.1:8080",
    "CHAT_SERVICE_HOST": "10.0.0.1",
    "CHAT_SERVICE_PORT": "8080",
    "CHAT_SERVICE_PORT_HTTP": "8080",
    "CHAT_PORT_8080_TCP": "tcp://[fd00::1]:8080",
    "CHAT_PORT_8080_TCP_PROTO": "tcp",
    "CHAT_PORT_8080_TCP_PORT": "8080",
    "CHAT_PORT_8080_TCP_ADDR": "fd00::1",
    "CHAT_PORT_53_UDP": "udp://10.0.0.1:53",
    "CHAT_OPS_PORT": "udp://10.0.0.2:9090",
    "CHAT_OPS_SERVICE_HOST": "10.0.0.2",
    "CHAT_MONGO_URI_PORT": "sctp://10.0.0.3:1",
}


def test_the_variables_of_service_links_are_ignored() -> None:
    assert load_settings({}, _LINKS) == Settings()
    assert unknown_variables(_LINKS) == []
    assert setting_variables({**_LINKS, "CHAT_SHARDS": "3"}) == ["CHAT_SHARDS"]


def test_an_unknown_variable_is_logged_and_ignored() -> None:
    environ = {
        "CHAT_ID": "1",
        "CHAT_DEADLIN_S": "3",
        "CHAT_PORT_FILE": "/run/port",
        "CHAT_SERVICE": "a",
        "CHAT_URL": "http://chat.test",
        "CHAT_CONFIG": "/etc/chat.toml",
        "CHAT_MONGO_URI_FILE": "/run/uri",
        "CHAT_SHARDS": "3",
        "CHATTY": "1",
    }
    lines = unknown_variables(environ)
    assert [line.split()[0] for line in lines] == [
        "CHAT_DEADLIN_S",
        "CHAT_ID",
        "CHAT_PORT_FILE",
        "CHAT_SERVICE",
    ]
    assert lines[0].endswith("there is no setting 'deadlin_s'; did you mean CHAT_DEADLINE_S?")
    assert lines[2].endswith("only secrets can be read from files; set CHAT_PORT")


def test_settings_files_may_have_a_byte_order_mark_and_crlf(tmp_path: Path) -> None:
    file, secret = tmp_path / "chat.toml", tmp_path / "uri"
    file.write_bytes(b"\xef\xbb\xbfport = 1\r\nshards = 3\r\n")
    secret.write_bytes(b"\xef\xbb\xbfmongodb://db/\r\n")
    settings = load_settings({}, {"CHAT_MONGO_URI_FILE": str(secret)}, file)
    assert (settings.port, settings.shards, settings.mongo_uri) == (1, 3, "mongodb://db/")


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"port = \xff")
    environ = {"CHAT_MONGO_URI_FILE": str(file), "CHAT_LOG_USERNAME_KEY_FILE": str(tmp_path)}
    with pytest.raises(SettingsError) as caught:
        load_settings({}, environ, file)
    assert caught.value.problems == [
        f"{file}: is not UTF-8, as TOML must be",
        f"CHAT_LOG_USERNAME_KEY_FILE: {tmp_path} cannot be read: Is a directory",
        f"CHAT_MONGO_URI_FILE: {file} is not UTF-8",
    ]
    with pytest.raises(SettingsError, match="Is a directory"):
        load_settings({}, {}, tmp_path)
    file.write_text("a = " + "[" * 100_000, encoding="ascii")
    with pytest.raises(SettingsError, match="nested too deeply"):
        load_settings({}, {}, file)


@pytest.mark.parametrize("content", ["port = ", "port = 1\nport = 2\n"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: str) -> None:
    file = tmp_path / "chat.toml"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(SettingsError, match="is not valid TOML"):
        load_settings({}, {}, file)
    with pytest.raises(SettingsError, match="cannot be read"):
        load_settings({}, {}, tmp_path / "none")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"default_timeout_s": "100", "max_timeout_s": "50"}, "must not exceed max_timeout_s"),
        ({"max_body_bytes": "100"}, "less than max_text_bytes"),
        ({"mongo_timeout_s": "6"}, "must not exceed deadline_s"),
        ({"mongo_uri": "http://db"}, "mongodb://"),
        ({"mongo_database": "local"}, "must not be 'local', which MongoDB does not replicate"),
        ({"mongo_database": "Admin"}, "holds MongoDB's users"),
        ({"mongo_database": "config"}, "session"),
        ({"idle_timeout_s": "nan"}, "must be a number above 0"),
        ({"dead_letter_inbox": "dead"}, "dead_letter_inbox: must contain {username}"),
        ({"dead_letter_inbox": "{username}"}, "dead_letter_inbox: must contain more than"),
        ({"dead_letter_inbox": "{username}\n"}, "dead_letter_inbox: .* control characters"),
        (
            {"max_deliveries": "1", "max_username_chars": "13"},
            "dead_letter_inbox: must be shorter, or max_username_chars greater",
        ),
        ({"mongo_wait_s": "inf"}, "must be a number from 0"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(given: dict[str, str], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        load_settings(given, {})


def test_short_usernames_need_no_dead_letter_inbox() -> None:
    assert load_settings({"max_username_chars": "13"}, {}).max_deliveries == 0
    load_settings({"max_username_chars": "14", "max_deliveries": "1"}, {})


def test_the_documented_settings_are_those_of_the_code() -> None:
    document = (PROJECT_ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert markdown_table() in document, "refresh it with: scripts/settings-table"


def test_without_a_checkout_data_is_kept_outside_the_package(tmp_path: Path) -> None:
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


def test_a_path_is_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    file = tmp_path / "chat.toml"
    file.write_text('access = "tokens"\naccess_file = "access.toml"\n', encoding="utf-8")
    settings = load_settings({}, {"CHAT_TLS_KEY": "~/key", "CHAT_TLS_CERTIFICATE": "/cert"}, file)
    assert settings.access_file == str(tmp_path / "work" / "access.toml")
    assert (settings.tls_certificate, settings.tls_key) == ("/cert", "/home/ann/key")


@pytest.mark.parametrize(
    ("keys", "expected"), [("https://a/keys", "https://a/keys"), ("/keys", "/keys"), ("", "")]
)
def test_keys_may_be_a_url(keys: str, expected: str) -> None:
    given = {"access": "jwt", "jwt_issuer": "https://a", "jwt_audience": "b", "jwt_keys": keys}
    assert load_settings(given, {}).jwt_keys == expected
