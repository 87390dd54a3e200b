"""`chat token`: makes tokens that work, and judges access files as the service does."""

import os
import stat
import subprocess
import tomllib
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest

from tests.cli.conftest import Chat
from tests.cli.terminal import Terminal

RIGHTS = ("--send", "*", "--read", "jobs-*", "--read", "{sub}", "--ops")


def test_a_token_is_shown_once_and_its_entry_has_its_hash(chat: Chat) -> None:
    made = chat("token", "new", "worker", *RIGHTS, "--until", "2099-01-01")
    assert made.code == 0
    token = made.out.removesuffix("\n")
    # 256 bits in base64url.
    assert token.startswith("cht_")
    assert len(token) == 4 + 43
    assert token not in made.err
    (entry,) = tomllib.loads(made.err)["token"]
    assert entry["sha256"] == sha256(token.encode()).hexdigest()
    assert (entry["name"], entry["send"], entry["read"]) == ("worker", ["*"], ["jobs-*", "{sub}"])
    assert entry["ops"] is True
    assert entry["until"].isoformat() == "2099-01-01T00:00:00+00:00"
    assert chat("token", "new", "worker", *RIGHTS).out != made.out


def test_an_entry_is_added_to_the_file_in_one_step(chat: Chat, tmp_path: Path) -> None:
    file = tmp_path / "access.toml"
    first = chat("token", "new", "one", "--send", "*", "--add", str(file))
    assert (first.code, first.err) == (0, "")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.write_text(f"# ours\n{file.read_text(encoding='utf-8')}", encoding="utf-8")
    file.chmod(0o640)
    link = tmp_path / "link.toml"
    link.symlink_to(file)
    inode = file.stat().st_ino
    assert chat("token", "new", "two", "--read", "two", "--add", str(link)).code == 0
    text = file.read_text(encoding="utf-8")
    assert text.startswith("# ours\n[[token]]\n")
    assert [each["name"] for each in tomllib.loads(text)["token"]] == ["one", "two"]
    assert link.is_symlink()
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert file.stat().st_ino != inode
    assert {each.name for each in tmp_path.iterdir()} == {"access.toml", "link.toml"}


def test_tokens_added_at_once_are_all_in_the_file(chat: Chat, tmp_path: Path) -> None:
    file = tmp_path / "access.toml"

    def add(number: int) -> int:
        return chat("token", "new", f"n{number}", "--send", "*", "--add", str(file)).code

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(add, range(6))) == [0] * 6
    entries = tomllib.loads(file.read_text(encoding="utf-8"))["token"]
    assert {each["name"] for each in entries} == {f"n{number}" for number in range(6)}


def test_a_file_that_is_refused_is_not_changed(chat: Chat, tmp_path: Path) -> None:
    file = tmp_path / "access.toml"
    chat("token", "new", "one", "--send", "*", "--add", str(file))
    before = file.read_bytes()
    again = chat("token", "new", "one", "--send", "*", "--add", str(file))
    assert (again.code, again.out) == (2, "")
    assert "another entry has it" in again.err
    assert file.read_bytes() == before
    file.write_text("[[token]\n", encoding="utf-8")
    broken = chat("token", "new", "two", "--send", "*", "--add", str(file))
    assert (broken.code, broken.out) == (2, "")
    assert file.read_text(encoding="utf-8") == "[[token]\n"
    nowhere = chat("token", "new", "two", "--send", "*", "--add", str(tmp_path / "no" / "file"))
    assert (nowhere.code, nowhere.out) == (2, "")
    assert nowhere.err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["worker"], "Give it a right"),
        (["worker", "--send", "a*b"], "one * only"),
        (["wor\nker", "--send", "*"], "control characters"),
        (["worker", "--send", "*", "--until", "2020-01-01"], "is in the past"),
        (["worker", "--send", "*", "--until", "2099-01-01T00:00"], "has no time zone"),
        (["worker", "--send", "*", "--until", "soon"], "is not a date"),
        (["worker", "--send", "*", "--until", "2027"], "is not a date"),
        (["", "--send", "*"], "must not be empty"),
    ],
)
def test_the_command_makes_no_entry_the_service_refuses(
    chat: Chat, words: list[str], message: str
) -> None:
    result = chat("token", "new", *words)
    assert (result.code, result.out) == (2, "")
    assert message in result.err
    assert result.err.count("\n") == 1


def test_quotes_and_other_scripts_survive_in_an_entry(chat: Chat, tmp_path: Path) -> None:
    file, name = tmp_path / "access.toml", 'a"b\\c é 🙂'
    assert chat("token", "new", name, "--send", f"{name}*", "--add", str(file)).code == 0
    (entry, anonymous) = chat("token", "check", str(file)).records
    assert (entry["name"], entry["send"]) == (name, [f"{name}*"])
    assert (anonymous["name"], anonymous["send"]) == (None, [])


def test_a_check_tells_who_a_token_is(chat: Chat, tmp_path: Path) -> None:
    file = tmp_path / "access.toml"
    made = chat("token", "new", "worker", *RIGHTS, "--until", "90d", "--add", str(file))
    token = made.out.encode()
    known = chat("token", "check", str(file), "-", stdin=token)
    assert known.code == 0
    (record,) = known.records
    assert record["name"] == "worker"
    assert record["read"] == ["jobs-*", "worker"]
    assert (record["ops"], record["fault"]) == (True, None)
    assert made.out.strip() not in known.out
    text = chat("token", "check", "--text", str(file), "-", stdin=token).out
    assert text.startswith("worker: send *, read jobs-*, read worker, ops; until ")
    unknown = chat("token", "check", str(file), "-", stdin=b"cht_other\n")
    assert (unknown.code, unknown.out) == (9, "")
    assert "cht_other" not in unknown.err
    malformed = chat("token", "check", str(file), "-", stdin=b"two words")
    assert (malformed.code, malformed.out) == (2, "")


def test_a_check_names_expired_and_revoked_tokens(chat: Chat, tmp_path: Path) -> None:
    file = tmp_path / "access.toml"
    expired, revoked = (sha256(each).hexdigest() for each in (b"cht_old", b"cht_eve"))
    file.write_text(
        f'[[token]]\nname = "old"\nsha256 = "{expired}"\nuntil = 2020-01-01T00:00:00Z\n'
        f'[[token]]\nname = "eve"\nsha256 = "{revoked}"\n'
        '[[revoked]]\nsub = "eve"\nbefore = 2021-01-01T00:00:00Z\n',
        encoding="utf-8",
    )
    result = chat("token", "check", str(file))
    assert result.code == 0
    assert [each["fault"] for each in result.records] == [
        "expired at 2020-01-01T00:00:00Z",
        "revoked",
        None,
    ]
    for token in (b"cht_old", b"cht_eve"):
        assert chat("token", "check", str(file), "-", stdin=token).code == 9


def test_a_check_lists_an_entry_with_two_tokens_once(chat: Chat, tmp_path: Path) -> None:
    file = tmp_path / "access.toml"
    both = ", ".join(f'"{sha256(each).hexdigest()}"' for each in (b"cht_old", b"cht_new"))
    file.write_text(f'[[token]]\nname = "worker"\nsha256 = [{both}]\n', encoding="utf-8")
    assert [each["name"] for each in chat("token", "check", str(file)).records] == ["worker", None]
    for token in (b"cht_old", b"cht_new"):
        (record,) = chat("token", "check", str(file), "-", stdin=token).records
        assert record["name"] == "worker"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[[token]]\nname = 'x'\n", "sha256: must be 64 hexadecimal digits"),
        (b"[anonymus]\n", "there is no key 'anonymus'"),
        (b"\xff", "is not UTF-8"),
        (b"x = ", "not valid TOML"),
        (None, "No such file"),
    ],
)
def test_a_check_fails_if_the_service_would_not_start(
    chat: Chat, tmp_path: Path, content: bytes | None, message: str
) -> None:
    file = tmp_path / "access.toml"
    if content is not None:
        file.write_bytes(content)
    result = chat("token", "check", str(file))
    assert (result.code, result.out) == (2, "")
    assert message in result.err
    assert result.err.count("\n") == 1


def test_a_hash_is_that_of_the_token(chat: Chat) -> None:
    result = chat("token", "hash", stdin=b"\xef\xbb\xbfcht_x\r\n")
    assert (result.code, result.out) == (0, sha256(b"cht_x").hexdigest() + "\n")
    assert chat("token", "hash", stdin=b"").code == 2


def test_a_terminal_does_not_show_a_typed_token(chat: Chat) -> None:
    # Python's own getpass opens the terminal without naming an encoding.
    with Terminal(chat, "token", "hash", PYTHONWARNDEFAULTENCODING="") as terminal:
        terminal.until(b"Token: ")
        terminal.type(b"cht_typed\n")
        assert terminal.exit_code() == 0
        assert b"cht_typed" not in terminal.seen
        assert sha256(b"cht_typed").hexdigest().encode() in terminal.seen


def test_a_token_that_cannot_be_printed_is_reported(chat: Chat, tmp_path: Path) -> None:
    file = tmp_path / "access.toml"
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            chat.command("token", "new", "worker", "--send", "*", "--add", str(file)),
            stdout=full,
            stderr=subprocess.PIPE,
            env=chat.environ,
            check=False,
        )
    assert done.returncode == 8
    assert f"the token is lost; delete its entry from {file}".encode() in done.stderr


def test_a_token_in_a_file_is_not_overwritten(chat: Chat, tmp_path: Path) -> None:
    access, file = tmp_path / "access.toml", tmp_path / "worker.token"
    words = ("token", "new", "worker", "--send", "*", "--add", str(access), "--out", str(file))
    made = chat(*words)
    assert (made.code, made.out, made.err) == (0, "", "")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    before = file.read_bytes()
    (record,) = chat("token", "check", str(access), "-", stdin=before).records
    assert record["name"] == "worker"
    entries = access.read_bytes()
    # Neither with the same name nor with another one.
    for name in ("worker", "other"):
        again = chat("token", "new", name, *words[3:])
        assert (again.code, again.out) == (2, "")
        assert "worker.token exists" in again.err
    assert (file.read_bytes(), access.read_bytes()) == (before, entries)


def test_without_an_entry_there_is_no_file_with_a_token(chat: Chat, tmp_path: Path) -> None:
    access, file = tmp_path / "access.toml", tmp_path / "new.token"
    assert chat("token", "new", "worker", "--send", "*", "--add", str(access)).code == 0
    words = ("token", "new", "worker", "--send", "*", "--add", str(access))
    refused = chat(*words, "--out", str(file))
    assert (refused.code, refused.out) == (2, "")
    assert "another entry has it" in refused.err
    nowhere = chat(*words, "--out", str(tmp_path / "no" / "file"))
    assert (nowhere.code, nowhere.out, nowhere.err.count("\n")) == (2, "", 1)
    assert {each.name for each in tmp_path.iterdir()} == {"access.toml"}


def test_a_token_in_a_file_is_not_printed_with_its_entry(chat: Chat, tmp_path: Path) -> None:
    file = tmp_path / "worker.token"
    made = chat("token", "new", "worker", "--send", "*", "--out", str(file))
    assert (made.code, made.out) == (0, "")
    token = file.read_text(encoding="utf-8").strip()
    assert token not in made.err
    (entry,) = tomllib.loads(made.err)["token"]
    assert entry["sha256"] == sha256(token.encode()).hexdigest()


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_read_only_gives_one_line(chat: Chat, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    result = chat("token", "new", "worker", "--send", "*", "--add", str(tmp_path / "access.toml"))
    tmp_path.chmod(0o700)
    assert (result.code, result.out) == (2, "")
    assert result.err.count("\n") == 1
